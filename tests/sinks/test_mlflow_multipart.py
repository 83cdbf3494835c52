"""Large objects in parts, straight to the store behind a real server."""

from __future__ import annotations

import hashlib
import io
import os
import re
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from faults.proxy import Answer, FaultProxy
from mlflow_servers import MlflowServer, mlflow_version
from outside import python
from servers import S3Server, closed_port

pytest.importorskip("urllib3", reason="comes with the extra mlflow")

from stagesink.artifacts import ArtifactKey, MemorySource
from stagesink.errors import SinkAuthError, SinkError, SourceChanged, TransientSinkError
from stagesink.sinks._http.client import HttpClient
from stagesink.sinks.mlflow import MlflowSink, multipart
from stagesink.testing import GeneratedSource
from stagesink.transfer import Transfer, TransferOptions, plan_file

PART = 5 << 20  # S3 takes no smaller ones, but for the last
SIZE = 2 * PART + 12_345


@pytest.fixture(autouse=True)
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", str(PART))
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE", str(PART))
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "true")


@pytest.fixture
def proxy(mlflow_s3_server: MlflowServer) -> Iterator[FaultProxy]:
    """Stands before the server and writes down what it is asked; the parts go past it."""
    with FaultProxy(mlflow_s3_server.port) as proxy:
        yield proxy


@pytest.fixture
def sink(proxy: FaultProxy) -> MlflowSink:
    return MlflowSink(f"mlflow+http://127.0.0.1:{proxy.port}")


@pytest.fixture
def key(mlflow_s3_server: MlflowServer) -> ArtifactKey:
    return ArtifactKey(mlflow_s3_server.run(), "a b/größe.bin")


_FORKED = """
import os, threading
from stagesink.sinks.mlflow.multipart import Multipart

class Server:
    "Takes its time, but for the child."
    name = "server"
    def request(self, *args, **options):
        if os.getpid() == parent:
            asked.set()
            answers.wait()
        raise SystemExit

parent, asked, answers = os.getpid(), threading.Event(), threading.Event()
multipart = Multipart(Server(), None, "http://server")
thread = threading.Thread(target=multipart.takes, args=[1 << 40])
thread.start()
asked.wait()
child = os.fork()
if child == 0:
    try:
        multipart.takes(1 << 40)
    except SystemExit:
        os._exit(0)
    os._exit(1)
assert os.waitpid(child, 0)[1] == 0
answers.set()
thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_that_is_forked_while_its_parent_asks_does_not_wait_for_it() -> None:
    python(_FORKED, PYTHONWARNINGS="ignore", MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD="")


def calls(proxy: FaultProxy) -> list[str]:
    """Name the requests that put something, in short."""
    paths = [path for method, path in proxy.requests if method in ("PUT", "POST")]
    return [path.partition("/mpu/")[2].partition("/")[0] or "whole" for path in paths]


def unfinished(moto: S3Server, run_id: str) -> list[str]:
    found = moto.boto3().list_multipart_uploads(Bucket="mlflow").get("Uploads", [])
    return [upload["Key"] for upload in found if run_id in upload["Key"]]


def test_a_large_object_goes_in_parts_past_the_server(
    sink: MlflowSink, proxy: FaultProxy, key: ArtifactKey, mlflow_moto: S3Server
) -> None:
    counted: list[int] = []
    source = GeneratedSource(SIZE, seed=1)
    stored = sink.put(key, source, on_bytes=counted.append)
    assert (stored.size, sum(counted)) == (SIZE, SIZE)
    assert calls(proxy) == ["create", "complete"]
    with sink.open(key) as stream:
        assert hashlib.sha256(stream.read()).hexdigest() == source.digest()
    assert sink.stat(key) == stored
    assert unfinished(mlflow_moto, key.run_id) == []


@pytest.mark.parametrize("size", [0, PART - 1])
def test_a_small_one_goes_whole(sink: MlflowSink, proxy: FaultProxy, key: ArtifactKey, size: int) -> None:
    sink.put(key, GeneratedSource(size, seed=1))
    assert calls(proxy) == ["whole"]


@pytest.mark.parametrize("size", [PART, 2 * PART])
def test_the_last_part_may_be_a_whole_one(sink: MlflowSink, key: ArtifactKey, size: int) -> None:
    source = GeneratedSource(size, seed=3)
    sink.put(key, source)
    with sink.open(key) as stream:
        assert hashlib.sha256(stream.read()).hexdigest() == source.digest()


def test_it_can_be_switched_off(
    sink: MlflowSink, proxy: FaultProxy, key: ArtifactKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false")
    sink.put(key, GeneratedSource(SIZE, seed=1))
    assert calls(proxy) == ["whole"]


def test_the_server_is_asked_where_nothing_is_said(
    sink: MlflowSink, proxy: FaultProxy, key: ArtifactKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD")
    sink.put(key, GeneratedSource(SIZE, seed=1))
    assert ("GET", "/api/3.0/mlflow/server-info") in proxy.requests
    # Servers tell since MLflow 3.15 or so; one that does not offers nothing.
    assert calls(proxy) == (["create", "complete"] if mlflow_version() >= (3, 15) else ["whole"])


def test_the_server_is_asked_once_for_all_that_start_together(
    sink: MlflowSink, proxy: FaultProxy, key: ArtifactKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD")
    keys = [ArtifactKey(key.run_id, f"{number}.bin") for number in range(8)]
    sink.stat(key)  # the run is known
    with ThreadPoolExecutor(len(keys)) as pool:
        list(pool.map(lambda key: sink.put(key, GeneratedSource(SIZE, seed=1)), keys))
    assert proxy.requests.count(("GET", "/api/3.0/mlflow/server-info")) == 1


def test_a_server_without_it_gets_the_object_whole(mlflow_server: MlflowServer) -> None:
    with FaultProxy(mlflow_server.port) as proxy:
        sink = MlflowSink(f"mlflow+http://127.0.0.1:{proxy.port}")
        key = ArtifactKey(mlflow_server.run(), "big.bin")
        with pytest.raises(TransientSinkError, match="does not offer it"):
            sink.put(key, GeneratedSource(SIZE, seed=1))
        sink.put(key, GeneratedSource(SIZE, seed=1))  # as the engine does next
        assert calls(proxy) == ["create", "whole"]
        sink.put(key, GeneratedSource(SIZE, seed=2))
        assert calls(proxy) == ["create", "whole", "whole"]


def test_a_store_that_only_the_server_reaches_gets_the_object_through_it(
    sink: MlflowSink, proxy: FaultProxy, key: ArtifactKey, mlflow_moto: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink._store, "_connect", _dead_pool)
    with pytest.raises(TransientSinkError, match="the store behind the server cannot be reached"):
        sink.put(key, GeneratedSource(SIZE, seed=1))
    assert calls(proxy) == ["create", "abort"]
    assert unfinished(mlflow_moto, key.run_id) == []
    sink.put(key, GeneratedSource(SIZE, seed=1))
    assert calls(proxy) == ["create", "abort", "whole"]


def test_a_signed_url_that_has_ended_sends_the_object_through_the_server(
    sink: MlflowSink, proxy: FaultProxy, key: ArtifactKey, mlflow_moto: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink._store, "_connect", lambda: _refusing_pool(403))
    with pytest.raises(TransientSinkError, match="answered 403 to a signed URL, whose time may be over") as caught:
        sink.put(key, GeneratedSource(SIZE, seed=1))
    assert "MLFLOW_TRACKING_TOKEN" not in str(caught.value)
    assert unfinished(mlflow_moto, key.run_id) == []
    source = GeneratedSource(SIZE, seed=1)
    sink.put(key, source)
    assert calls(proxy) == ["create", "abort", "whole"]
    with sink.open(key) as stream:
        assert hashlib.sha256(stream.read()).hexdigest() == source.digest()


def test_the_parts_size_bounds_how_many_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    part, count = 60 << 20, 10
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE", str(part))
    way = multipart.Multipart(HttpClient("server", _dead_pool), HttpClient("store", _dead_pool), "http://server")
    monkeypatch.setattr(
        way, "_call", lambda *_, **__: {"upload_id": "1", "credentials": [{"url": "http://store"}] * count}
    )
    held, most, lock = 0, 0, threading.Lock()

    def pieces(*_: object) -> Iterator[memoryview]:
        nonlocal held, most
        for _each in range(count):
            with lock:
                held += 1
                most = max(most, held)
            yield memoryview(b"x")

    def send(*_: object) -> dict[str, object]:
        nonlocal held
        time.sleep(0.005)
        with lock:
            held -= 1
        return {}

    monkeypatch.setattr(multipart, "cut", pieces)
    monkeypatch.setattr(way, "_send_one", send)
    way.put("run/big.bin", io.BytesIO(), part * count, None)
    assert most == 2


def test_a_source_that_ends_early_leaves_nothing(
    sink: MlflowSink, proxy: FaultProxy, key: ArtifactKey, mlflow_moto: S3Server
) -> None:
    class Short(MemorySource):
        @property
        def size(self) -> int:
            return SIZE

    for data in (b"x" * (SIZE - 1), b"x" * (SIZE + 1), b"x" * PART):
        with pytest.raises(SourceChanged):
            sink.put(key, Short(data))
    assert calls(proxy) == ["create", "abort"] * 3
    assert sink.stat(key) is None
    assert unfinished(mlflow_moto, key.run_id) == []


def test_a_complete_that_fails_takes_the_parts_back(
    sink: MlflowSink, proxy: FaultProxy, key: ArtifactKey, mlflow_moto: S3Server
) -> None:
    proxy.plan(Answer(403), path="/mpu/complete")
    with pytest.raises(SinkAuthError):
        sink.put(key, GeneratedSource(SIZE, seed=1))
    assert calls(proxy) == ["create", "complete", "abort"]
    assert sink.stat(key) is None
    assert unfinished(mlflow_moto, key.run_id) == []


@pytest.mark.once
def test_many_at_once_share_their_buffers_and_all_land(sink: MlflowSink, key: ArtifactKey, tmp_path: object) -> None:
    from concurrent.futures import ThreadPoolExecutor

    sources = {ArtifactKey(key.run_id, f"{n}.bin"): GeneratedSource(SIZE, seed=n) for n in range(9)}
    with ThreadPoolExecutor(9) as pool:
        list(pool.map(sink.put, sources, sources.values()))
    for each, source in list(sources.items())[::4]:
        with sink.open(each) as stream:
            assert hashlib.sha256(stream.read()).hexdigest() == source.digest()


def test_the_signature_of_a_part_is_in_no_error(
    sink: MlflowSink, key: ArtifactKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink._store, "_connect", _dead_pool)
    with pytest.raises(TransientSinkError) as caught:
        sink.put(key, GeneratedSource(SIZE, seed=1))
    assert "Signature" not in "".join(traceback.format_exception(caught.value))


def test_the_signature_of_a_part_is_in_no_log(
    sink: MlflowSink, key: ArtifactKey, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    sink.put(key, GeneratedSource(SIZE, seed=1))
    assert "PUT /mlflow/" in caplog.text  # urllib3 logs each request
    # Once mlflow is imported its own filter may be the first one there.
    assert re.search("Signature=[0-9a-f]", caplog.text) is None


def test_the_signature_of_a_part_is_in_no_error_of_mlflows_own_client(
    mlflow_s3_server: MlflowServer,
    key: ArtifactKey,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = f"localhost:{mlflow_s3_server.port}"  # by name: no_proxy takes an address without its port
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{server}")
    own = MlflowSink("mlflow:", own_client=True)
    with mlflow_s3_server.client():
        """Imported without its warnings."""
    own.stat(key)
    # The store is behind a proxy that is not there, the server is not.
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("no_proxy", server)
    caplog.set_level("DEBUG")
    with pytest.raises(SinkError) as caught:
        own.put(key, GeneratedSource(SIZE, seed=1))
    told = capsys.readouterr().err
    assert "using multipart upload" in told  # mlflow's own warning
    for shown in (told, caplog.text, "".join(traceback.format_exception(caught.value))):
        assert re.search("Signature=[0-9a-f]", shown) is None


def test_the_engine_lands_it(sink: MlflowSink, key: ArtifactKey, tmp_path: object) -> None:
    from pathlib import Path

    path = Path(str(tmp_path)) / "big.bin"
    path.write_bytes(b"0123456789" * 1_200_000)
    (receipt,) = Transfer(sink, TransferOptions(verify="full")).run(plan_file(key.run_id, "big.bin", path))
    assert (receipt.status, receipt.verified_by) == ("uploaded", "readback")


def _refusing_pool(status: int) -> object:
    import urllib3

    class Refusing(urllib3.PoolManager):
        def urlopen(self, method: str, url: str, redirect: bool = True, **kw: object) -> urllib3.BaseHTTPResponse:
            return urllib3.HTTPResponse(b"<Error>Request has expired</Error>", status=status, version=11)

    return Refusing(retries=False)


def _dead_pool() -> Any:
    import urllib3

    class Dead(urllib3.PoolManager):
        def urlopen(self, method: str, url: str, redirect: bool = True, **kw: object) -> urllib3.BaseHTTPResponse:
            raise urllib3.exceptions.NewConnectionError(
                urllib3.connection.HTTPConnection("127.0.0.1"), f"refused: {url}"
            )

    return Dead(retries=False)


def test_only_blocks_of_azure_get_other_names() -> None:
    azure = "https://a.blob.core.windows.net/c/a&blockid=zz/m.bin?comp=block&blockid=bWxmbG93&sv=1&sig=x%2B"
    s3 = "https://b.s3.amazonaws.com/a%26blockid%3D/m.bin?partNumber=1&uploadId=blockid&X-Amz-Signature=0"
    named, other = multipart._with_own_blocks([{"url": azure, "part_number": 1}, {"url": s3}])
    assert other["url"] == s3
    before, _, after = named["url"].rpartition("blockid=")
    assert (before, after.partition("&")[2]) == (azure.rpartition("blockid=")[0], "sv=1&sig=x%2B")
    assert after.partition("&")[0] != "bWxmbG93"
