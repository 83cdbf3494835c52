"""Runs whose artifacts lie on Azure's blob store: through a server, in parts past it, and straight there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.proxy import FaultProxy
from mlflow_servers import MlflowServer, launcher, mlflow_version, workers

pytest.importorskip("urllib3", reason="comes with the extra mlflow")

from stagesink import ArtifactUploader, list_committed, restore
from stagesink.artifacts import ArtifactKey
from stagesink.sinks.mlflow import MlflowSink
from stagesink.testing import GeneratedSource
from stagesink.testing.azurite import Azurite

HOST = "devstoreaccount1.blob.core.windows.net"
PART = 1 << 20
SIZE = 11 * PART + 12_345  # more than nine parts: MLflow's names for them have two lengths then
FEW = 3 * PART + 12_345


# Before MLflow 2.10 a server has parts for S3 alone: the object goes whole once it has said so.
IN_PARTS = ["create", "complete"] if mlflow_version() >= (2, 10) else ["create"]
in_parts_here = pytest.mark.skipif(mlflow_version() < (2, 10), reason="before MLflow 2.10 a server has no parts there")


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, azurite: Azurite) -> MlflowServer:
    """A server that proxies into Azurite: the connection string goes before the host of the destination."""
    keeps = ("--artifacts-destination", f"wasbs://stagesink@{HOST}/proxied")
    # By the port, since each test process has an Azurite of its own.
    return MlflowServer(
        *launcher(request).ask(
            f"azure-{azurite.port}",
            *workers(),
            *keeps,
            AZURE_STORAGE_CONNECTION_STRING=azurite.connection_string,
        )
    )


@pytest.fixture
def proxy(server: MlflowServer) -> Iterator[FaultProxy]:
    """Stands before the server and writes down what it is asked; the parts go past it."""
    with FaultProxy(server.port) as proxy:
        yield proxy


def calls(proxy: FaultProxy) -> list[str]:
    paths = [path for method, path in proxy.requests if method in ("PUT", "POST")]
    return [path.partition("/mpu/")[2].partition("/")[0] or "whole" for path in paths]


def blobs(azurite: Azurite, prefix: str) -> dict[str, bytes]:
    """Read what lies in the container, by a client that is not ours."""
    from azure.storage.blob import ContainerClient

    with ContainerClient.from_connection_string(azurite.connection_string, "stagesink") as container:
        names = list(container.list_blob_names(name_starts_with=prefix))
        return {name.removeprefix(prefix): container.download_blob(name).readall() for name in names}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (tmp_path / "theirs").mkdir()  # which MLflow's client wants
    with (folder / "model.bin").open("wb") as file, GeneratedSource(SIZE, seed=7).open() as stream:
        file.write(stream.read())
    (folder / "größe b.json").write_text("{}")
    return folder


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", str(PART))
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE", str(PART))
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "true")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.usefixtures("in_parts")
def test_a_large_object_goes_in_parts_past_the_server(
    server: MlflowServer, proxy: FaultProxy, azurite: Azurite, folder: Path, tmp_path: Path
) -> None:
    run_id = server.run()
    with ArtifactUploader(run_id, sink=f"mlflow+http://127.0.0.1:{proxy.port}", verify="full") as uploader:
        assert uploader.upload_checkpoint(folder) is True, uploader.errors
    assert [call for call in calls(proxy) if call != "whole"] == IN_PARTS
    written = contents(folder)
    found = server.downloaded(run_id, tmp_path / "theirs", "checkpoint")
    assert written.items() <= {Path(name).name: data for name, data in found.items()}.items()
    assert written.items() <= blobs(azurite, f"proxied/0/{run_id}/artifacts/checkpoint/").items()
    sink = MlflowSink(server.sink_uri)
    restore(sink, list(list_committed(sink, run_id)), tmp_path / "ours")
    assert contents(tmp_path / "ours" / "checkpoint") == written


@pytest.mark.usefixtures("in_parts")
@in_parts_here
def test_parts_that_mlflows_client_left_are_in_nobodys_way(server: MlflowServer, azurite: Azurite) -> None:
    from azure.storage.blob import BlobClient

    key, source = ArtifactKey(server.run(), "model.bin"), GeneratedSource(SIZE, seed=8)
    name = f"proxied/0/{key.run_id}/artifacts/{key.path}"
    with BlobClient.from_connection_string(azurite.connection_string, "stagesink", name) as blob:
        blob.stage_block("mlflow_block_1", b"never committed")
    MlflowSink(server.sink_uri).put(key, source)
    assert hashlib.sha256(blobs(azurite, name)[""]).hexdigest() == source.digest()


@pytest.mark.usefixtures("in_parts")
@in_parts_here
def test_parts_of_another_writer_get_into_no_object_of_ours(server: MlflowServer, azurite: Azurite) -> None:
    """The other one sends its first part while our last is on its way, and then ends."""
    key, source = ArtifactKey(server.run(), "model.bin"), GeneratedSource(FEW, seed=9)
    counted: list[int] = []

    def end(_: int) -> None:
        raise KeyboardInterrupt

    def at_the_last(count: int) -> None:
        counted.append(count)
        if sum(counted) == FEW:
            with pytest.raises(KeyboardInterrupt):
                MlflowSink(server.sink_uri).put(key, GeneratedSource(FEW, seed=10), on_bytes=end)

    MlflowSink(server.sink_uri).put(key, source, on_bytes=at_the_last)
    assert sum(counted) == FEW
    stored = blobs(azurite, f"proxied/0/{key.run_id}/artifacts/{key.path}")[""]
    assert hashlib.sha256(stored).hexdigest() == source.digest()


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # adlfs sends its parts so
def test_a_root_there_is_reached_directly(
    server: MlflowServer,
    proxy: FaultProxy,
    azurite: Azurite,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite.connection_string)
    run_id = server.run(server.experiment(f"wasbs://stagesink@{HOST}/direct"))
    with ArtifactUploader(run_id, sink=f"mlflow+http://127.0.0.1:{proxy.port}") as uploader:
        assert uploader.upload_checkpoint(folder) is True, uploader.errors
    assert calls(proxy) == []
    written = contents(folder)
    assert written.items() <= blobs(azurite, f"direct/{run_id}/artifacts/checkpoint/").items()
    theirs = server.downloaded(run_id, tmp_path / "theirs", "checkpoint")
    assert written.items() <= {Path(name).name: data for name, data in theirs.items()}.items()
    sink = MlflowSink(server.sink_uri)
    restore(sink, list(list_committed(sink, run_id)), tmp_path / "ours")
    assert contents(tmp_path / "ours" / "checkpoint") == written
    key = ArtifactKey(run_id, "checkpoint/model.bin")
    sink.delete(key)
    assert sink.stat(key) is None
