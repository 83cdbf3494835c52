"""What an object store, or what stands before it, can do wrong, whoever carries the sink.

A typed error from the sink, False from the facade; each message is one sentence with what to do next, and nothing
secret is in any of it.
"""

from __future__ import annotations

import logging
import re
import socket
import ssl
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from faults.proxy import Answer, CutRequest, DropReply, Fault, FaultProxy, Reset, TruncateReply
from servers import S3Server, closed_port

pytest.importorskip("obstore", reason="comes with the extras az, s3 and gs, from Python 3.11 on")

from stagesink import ArtifactUploader
from stagesink.artifacts import ArtifactKey, MemorySource
from stagesink.errors import (
    RunNotFound,
    SinkAuthError,
    SinkConflict,
    SinkError,
    SinkQuotaError,
    StagesinkError,
    TransferError,
    TransientSinkError,
)
from stagesink.sinks import ArtifactSink, open_sink
from stagesink.sinks.fsspec import FsspecSink
from stagesink.sinks.obstore import ObstoreSink
from stagesink.testing import GeneratedSource
from stagesink.testing.azurite import Azurite
from stagesink.transfer import Transfer, TransferOptions, plan_file

KEY = ArtifactKey("run", "metrics.json")
QUICK = TransferOptions(attempts=4, initial=0.01, max_wait=0.02)
SECRET = "s3cret-that-nobody-sees"
SIGNED = re.compile(r"(?i)signature=|sig=|SharedKey [a-z]|Credential=")


@dataclass
class Store:
    """One store behind the proxy, as one client carries it."""

    kind: str
    carrier: type
    uri: str
    options: dict[str, Any] = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)

    def sink(self) -> ArtifactSink:
        sink = open_sink(self.uri, storage_options=self.options) if self.carrier is ObstoreSink else None
        sink = sink or FsspecSink(self.uri, self.options)
        assert isinstance(sink, self.carrier)
        return sink


@pytest.fixture(params=["s3", "az"])
def server(request: pytest.FixtureRequest) -> S3Server | Azurite:
    if request.param == "s3":
        request.getfixturevalue("bucket")
        found: S3Server = request.getfixturevalue("moto")
        return replace(found, secret=SECRET)
    azurite: Azurite = request.getfixturevalue("azurite")
    return azurite


@pytest.fixture
def proxy(server: S3Server | Azurite) -> Iterator[FaultProxy]:
    with FaultProxy(server.port) as proxy:
        yield proxy


@pytest.fixture(params=[ObstoreSink, FsspecSink], ids=["obstore", "fsspec"])
def store(request: pytest.FixtureRequest, server: S3Server | Azurite, proxy: FaultProxy, tmp_path: Path) -> Store:
    if isinstance(server, S3Server):
        options = server.options(port=proxy.port)
        return Store("s3", request.param, f"s3://stagesink/faults/{tmp_path.name}", options, (SECRET,))
    there = replace(server, port=proxy.port)
    options = {"connection_string": there.connection_string}
    return Store("az", request.param, f"az://stagesink/faults/{tmp_path.name}", options, (there.key,))


@pytest.fixture(autouse=True)
def _everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.json"
    path.write_bytes(b'{"loss": 0.1}' * 1000)
    return path


def assert_not_secret(text: str, store: Store) -> None:
    for secret in store.secrets:
        assert secret not in text
    assert not SIGNED.search(text)


def failure(call: Callable[[], object], store: Store) -> SinkError:
    with pytest.raises(SinkError) as caught:
        call()
    assert_not_secret("".join(traceback.format_exception(caught.value)) + repr(caught.value), store)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return caught.value


# -- answers -----------------------------------------------------------------------------------------------------------


def xml(code: str) -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{SECRET}</Message></Error>'.encode()


PAGE = b"<html><head><title>Please log in</title></head><body><form/></body></html>"
HTML = {"Content-Type": "text/html"}
LONG_AGO = {"Date": "Mon, 01 Jan 2024 00:00:00 GMT"}


@dataclass(frozen=True)
class Case:
    """What the proxy answers to everything, the class of the error, and a piece of what obstore's sink says."""

    fault: Fault
    error: type[StagesinkError]
    says: str
    retry_after: float | None = None


CASES = {
    "301": Case(Answer(301, headers={"x-amz-bucket-region": "eu-west-1"}), SinkError, "AWS_DEFAULT_REGION=eu-west-1"),
    "401": Case(Answer(401), SinkAuthError, "Check the credentials"),
    "403": Case(Answer(403), SinkAuthError, "Check the credentials"),
    "403 of a firewall": Case(Answer(403, body=xml("AuthorizationFailure")), SinkAuthError, "firewall"),
    "403 with a page": Case(Answer(403, body=PAGE, headers=HTML), SinkAuthError, "403"),
    "a clock that is off": Case(Answer(403, headers=LONG_AGO), SinkAuthError, "clock is"),
    "407": Case(Answer(407), SinkError, "HTTPS_PROXY"),
    "413": Case(Answer(413), SinkQuotaError, "413"),
    "429": Case(Answer(429, retry_after=7), TransientSinkError, "429", 7.0),
    "500": Case(Answer(500), TransientSinkError, "500"),
    "503": Case(Answer(503, retry_after=3, body=xml("SlowDown")), TransientSinkError, "503 (SlowDown)", 3.0),
    "507": Case(Answer(507), SinkQuotaError, "507"),
    "a proxy's page": Case(Answer(200, body=PAGE, headers=HTML), SinkError, "something else than the store"),
    "an error with a page": Case(Answer(502, body=PAGE, headers=HTML), TransientSinkError, "502"),
    "reset": Case(Reset(), TransientSinkError, "broke"),
}
BY_FSSPEC = {"401", "403", "403 of a firewall", "413", "429", "500", "503", "507", "reset", "an error with a page"}


IN_PARTS = ("403 of a firewall", "503", "a proxy's page", "reset")


@pytest.mark.parametrize(
    ("name", "size"),
    [*((name, 1000) for name in CASES), *((name, 17 << 20) for name in IN_PARTS)],
    ids=[*CASES, *(f"{name}, in parts" for name in IN_PARTS)],
)
def test_what_a_put_can_meet(store: Store, proxy: FaultProxy, name: str, size: int) -> None:
    case = CASES[name]
    guarded = store.kind == "az" and name == "a proxy's page"
    if store.carrier is FsspecSink and ((name not in BY_FSSPEC and not guarded) or size > 1000):
        pytest.skip("the clients that fsspec uses have answers of their own to this")
    sink = store.sink()
    proxy.plan(case.fault, times=100)
    error = failure(lambda: sink.put(KEY, GeneratedSource(size)), store)
    assert type(error) is case.error
    if store.carrier is ObstoreSink:
        assert case.says in str(error)
    assert getattr(error, "retry_after", None) == case.retry_after
    proxy.forget()
    assert sink.stat(KEY) is None
    assert sink.put(KEY, MemorySource(b"well")).size == 4  # and all is well


@pytest.mark.parametrize("operation", ["stat", "open", "list", "delete"])
@pytest.mark.parametrize("name", ["403 of a firewall", "503", "reset", "a proxy's page"])
def test_what_other_operations_can_meet(store: Store, proxy: FaultProxy, name: str, operation: str) -> None:
    guarded = name == "a proxy's page" and (operation in ("stat", "list") or store.kind == "az")
    if store.carrier is FsspecSink and name not in BY_FSSPEC and not guarded:
        pytest.skip("the clients that fsspec uses have answers of their own to this")
    if name == "a proxy's page" and operation == "delete" and store.kind == "s3":
        pytest.skip("S3 says nothing to a deletion that a proxy could not say: 2xx is all there is")
    sink, case = store.sink(), CASES[name]
    calls: dict[str, Callable[[], object]] = {
        "stat": lambda: sink.stat(KEY),
        "open": lambda: sink.open(KEY).read(),
        "list": lambda: list(sink.list("run")),
        "delete": lambda: sink.delete(KEY),
    }
    proxy.plan(case.fault, times=100)
    assert type(failure(calls[operation], store)) is case.error


@pytest.mark.parametrize("name", ["403 of a firewall", "503", "a proxy's page", "reset"])
def test_the_facade_turns_it_into_false_and_one_line(
    store: Store, proxy: FaultProxy, name: str, file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if store.carrier is FsspecSink:
        pytest.skip("the facade opens the sink by its URI")
    proxy.plan(CASES[name].fault, times=100)
    with ArtifactUploader("run", sink=store.sink(), attempts=1) as uploader:
        assert uploader.upload_file(file, "metrics.json") is False
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.name for record in lines] == ["stagesink"]
    assert not lines[0].exc_info
    shown = [record.getMessage() for record in caplog.records] + list(map(repr, uploader.receipts))
    assert_not_secret("\n".join(shown), store)


@pytest.mark.parametrize("fault", [Answer(503), Answer(429), Reset(), CutRequest(100)], ids=str)
def test_what_passes_is_tried_again_and_lands(store: Store, proxy: FaultProxy, file: Path, fault: Fault) -> None:
    sink = store.sink()
    proxy.plan(fault, times=3, method="PUT", path="metrics.json")
    (receipt,) = Transfer(sink, QUICK).run(plan_file("run", "metrics.json", file))
    assert receipt.status == "uploaded"
    # aiohttp, below fsspec, sends a PUT anew by itself when the connection breaks.
    assert receipt.attempts == 4 or (store.carrier is FsspecSink and not isinstance(fault, Answer))
    assert sink.open(KEY).read() == file.read_bytes()


def test_a_reply_lost_after_the_bytes_had_arrived_sends_nothing_twice(
    store: Store, proxy: FaultProxy, file: Path
) -> None:
    proxy.plan(DropReply(), method="PUT", path="metrics.json")
    (receipt,) = Transfer(store.sink(), QUICK).run(plan_file("run", "metrics.json", file))
    assert receipt.attempts == 1
    assert receipt.verified_by in ("md5", "readback") or store.carrier is FsspecSink  # aiohttp had sent it again


def test_an_answer_that_is_cut_is_noticed(store: Store, proxy: FaultProxy) -> None:
    sink = store.sink()
    sink.put(KEY, GeneratedSource(300_000))
    proxy.plan(TruncateReply(), times=100, method="GET")
    assert type(failure(lambda: sink.open(KEY).read(), store)) is TransientSinkError


def test_a_part_that_fails_costs_one_attempt(store: Store, proxy: FaultProxy, tmp_path: Path) -> None:
    if store.carrier is FsspecSink:
        pytest.skip("tested of fsspec by itself")
    file = tmp_path / "large.bin"
    file.write_bytes(GeneratedSource(20 << 20).read())
    proxy.plan(Answer(500), method="PUT", path="partNumber=2" if store.kind == "s3" else "comp=block&")
    (receipt,) = Transfer(store.sink(), QUICK).run(plan_file("run", "large.bin", file))
    assert (receipt.attempts, receipt.status, receipt.verified_by) == (2, "uploaded", "size")


def test_everything_that_is_logged_and_written_is_free_of_secrets(
    store: Store, proxy: FaultProxy, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = store.sink()
    proxy.plan(Answer(503, body=xml("SlowDown")), times=2, method="PUT")
    with pytest.raises(TransferError) as caught:
        Transfer(sink, TransferOptions(attempts=1)).run(plan_file("run", "metrics.json", file))
    receipts = Transfer(sink, QUICK).run(plan_file("run", "metrics.json", file))
    manifest = sink.open(ArtifactKey("run", "metrics.json.manifest.json")).read().decode()
    shown = [*map(repr, (sink, store, receipts, list(sink.list("run")), sink.stat(KEY))), sink.uri, manifest]
    shown += traceback.format_exception(caught.value)
    if store.carrier is ObstoreSink:  # what botocore and azure-core log of answers at DEBUG is theirs
        shown += [record.getMessage() for record in caplog.records]
        assert any("?***" in line for line in shown)  # what went by signed URLs was logged, without its signature
    assert_not_secret("\n".join(shown), store)


def test_botocores_own_log_shows_no_session_token_and_no_signature(
    moto: S3Server, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    sink = FsspecSink(f"s3://{bucket}/logged", {**moto.options(), "token": "T0KEN/that+nobody=sees"})
    sink.put(KEY, MemorySource(b"x"))
    logged = "\n".join(record.getMessage() for record in caplog.records)
    assert "X-Amz-Security-Token" in logged
    assert "T0KEN" not in logged
    assert not re.search(r"(?i)signature[=:]\s*[0-9a-f]{32}", logged)


# -- credentials -------------------------------------------------------------------------------------------------------


def sas_of(azurite: Azurite, container: str, *, hours: float = 1, permission: str = "rwlcd") -> str:
    from azure.storage.blob import generate_container_sas

    end = datetime.now(timezone.utc) + timedelta(hours=hours)
    sas: str = generate_container_sas(
        azurite.account, container, account_key=azurite.key, permission=permission, expiry=end
    )
    return sas


def with_sas(azurite: Azurite, sas: str) -> Store:
    text = f"BlobEndpoint={azurite.endpoint};AccountName={azurite.account};SharedAccessSignature={sas}"
    return Store("az", FsspecSink, "az://stagesink/by sas", {"connection_string": text}, (sas.partition("sig=")[2],))


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # adlfs sends its parts so
def test_a_sas_is_enough(azurite: Azurite) -> None:
    sink = with_sas(azurite, sas_of(azurite, "stagesink")).sink()
    key = ArtifactKey("run", "größe 100%.bin")
    for size in (1000, 17 << 20):
        assert sink.put(key, GeneratedSource(size)).size == size
        assert sink.stat(key) == next(sink.list("run"))
        assert len(sink.open(key).read()) == size
    sink.delete(key)
    assert list(sink.list("run")) == []


@pytest.mark.parametrize(
    ("container", "hours", "permission", "says"),
    [
        ("another", 1, "rwlcd", "AuthorizationFailure|AuthenticationFailed"),
        ("stagesink", -1, "rwlcd", "AuthorizationFailure|AuthenticationFailed"),
        ("stagesink", 1, "rl", "Check the credentials|permission"),
    ],
    ids=["of another container", "expired", "that may only read"],
)
def test_a_sas_that_does_not_let_us(azurite: Azurite, container: str, hours: float, permission: str, says: str) -> None:
    store = with_sas(azurite, sas_of(azurite, container, hours=hours, permission=permission))
    error = failure(lambda: store.sink().put(KEY, MemorySource(b"x")), store)
    assert type(error) is SinkAuthError
    assert re.search(says, str(error))


@pytest.mark.parametrize(("uri", "error"), [("s3://stagesink/x", SinkAuthError), ("az://stagesink/x", SinkError)])
def test_no_credentials(monkeypatch: pytest.MonkeyPatch, moto: S3Server, uri: str, error: type[SinkError]) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    options = {"endpoint_url": moto.endpoint} if uri.startswith("s3") else {}
    with pytest.raises(error) as caught:
        open_sink(uri, storage_options=options).put(KEY, MemorySource(b"x"))
    assert caught.value.hint


def test_a_store_that_is_not_there(store: Store) -> None:
    options = {**store.options}
    if store.kind == "s3":
        options["endpoint_url"] = f"http://127.0.0.1:{closed_port()}"
    else:
        options["connection_string"] = re.sub(r":\d+/", f":{closed_port()}/", options["connection_string"])
    sink = replace(store, options=options).sink()
    error = failure(lambda: sink.put(KEY, MemorySource(b"x")), store)
    assert type(error) is TransientSinkError


# -- the way there -----------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """What a server on this machine shows, and the file of the authority that signed it."""
    trustme = pytest.importorskip("trustme", reason="comes with the tests of MLflow")
    ca, file = trustme.CA(), tmp_path / "ca.pem"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    ca.cert_pem.write_to_path(str(file))
    return context, file


@pytest.mark.parametrize("trusted", [True, False])
def test_the_environment_says_whose_certificates_hold(
    moto: S3Server, bucket: str, authority: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    context, file = authority
    if trusted:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(file))
    with FaultProxy(moto.port, tls=context) as proxy:
        options = {**moto.options(), "endpoint_url": f"https://127.0.0.1:{proxy.port}"}
        store = Store("s3", ObstoreSink, f"s3://{bucket}/tls", options, (moto.secret,))
        sink = store.sink()
        if trusted:
            assert sink.put(KEY, MemorySource(b"x")) == sink.stat(KEY)
            return
        for call in (lambda: sink.put(KEY, MemorySource(b"x")), lambda: sink.stat(KEY)):
            error = failure(call, store)
            assert type(error) is SinkError
            assert "certificate" in str(error)


def test_the_proxy_of_the_environment_is_taken(
    moto: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = {**moto.options(), "endpoint_url": "http://s3.nowhere.invalid"}
    with FaultProxy(moto.port) as proxy:
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        proxy.plan(Answer(503, retry_after=3), times=2)
        sink = open_sink(f"s3://{bucket}/proxied", storage_options=options)
        assert isinstance(sink, ObstoreSink)
        with pytest.raises(TransientSinkError) as caught:
            sink.put(KEY, MemorySource(b"x"))
        assert caught.value.retry_after == 3
        targets = [target for _, target in proxy.requests]
    assert len(targets) == 2  # the put, and the second look
    assert all(target.startswith("http://s3.nowhere.invalid/") for target in targets)


def test_a_store_that_hangs_is_given_up(moto: S3Server, bucket: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        options = {**moto.options(port=silent.getsockname()[1]), "config_kwargs": {"read_timeout": 0.3}}
        sink = open_sink(f"s3://{bucket}/hangs", storage_options=options)
        assert isinstance(sink, ObstoreSink)
        for call in (lambda: sink.put(KEY, MemorySource(b"x")), lambda: sink.stat(KEY)):
            with pytest.raises(TransientSinkError, match="took too long"):
                call()


@pytest.mark.parametrize("size", [1000, 17 << 20], ids=["small", "large"])
@pytest.mark.parametrize("server", ["az"], indirect=True)
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_a_lease_that_somebody_holds(store: Store, server: Azurite, size: int) -> None:
    from azure.storage.blob import BlobServiceClient

    sink = store.sink()
    sink.put(KEY, MemorySource(b"old"))
    with BlobServiceClient.from_connection_string(server.connection_string) as service:
        container, _, root = store.uri.removeprefix("az://").partition("/")
        lease = service.get_blob_client(container, f"{root}/{KEY}").acquire_lease()
        try:
            error = failure(lambda: sink.put(KEY, GeneratedSource(size)), store)
            assert type(error) is SinkConflict
        finally:
            lease.release()
    assert sink.open(KEY).read() == b"old"


@pytest.mark.parametrize("size", [1000, 17 << 20], ids=["small", "large"])
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_a_bucket_or_container_that_is_not_there(store: Store, size: int) -> None:
    sink = replace(store, uri=store.uri.replace("stagesink", "not-there")).sink()
    error = failure(lambda: sink.put(KEY, GeneratedSource(size)), store)
    assert type(error) is RunNotFound
    assert "Create the bucket or container first" in str(error)
    assert sink.stat(KEY) is None
    if (store.kind, store.carrier) == ("az", FsspecSink):
        return  # adlfs lists one that is not there as an empty one
    with pytest.raises(RunNotFound):
        list(sink.list(KEY.run_id))
