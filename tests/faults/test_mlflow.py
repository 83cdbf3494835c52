"""What an MLflow server, or what stands before it, can do wrong: a typed error from the engine, False from the facade.

Each message is one sentence with what to do next, and nothing secret is in any of it.
"""

from __future__ import annotations

import base64
import logging
import os
import socket
import ssl
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults.proxy import Answer, CutRequest, DropReply, Fault, FaultProxy, Reset, Stall, TruncateReply
from mlflow_servers import MlflowServer, mlflow_version
from outside import small_disk
from servers import closed_port

pytest.importorskip("urllib3", reason="comes with the extra mlflow")

from stagesink import ArtifactUploader
from stagesink.artifacts import ArtifactKey, MemorySource
from stagesink.errors import (
    ArtifactNotFound,
    ConfigError,
    InvalidKey,
    NameRefused,
    RunNotFound,
    SinkAuthError,
    SinkConflict,
    SinkError,
    SinkQuotaError,
    StagesinkError,
    TransferError,
    TransientSinkError,
)
from stagesink.sinks.mlflow import MlflowSink
from stagesink.sinks.mlflow.connection import HINTS
from stagesink.transfer import Transfer, TransferOptions, plan_file, verify

ONCE = TransferOptions(attempts=1)
QUICK = TransferOptions(attempts=4, initial=0.01, max_wait=0.02)
TOKEN = "t0ken-that-nobody-sees"
PASSWORD = "pa55word-that-nobody-sees"


@pytest.fixture
def proxy(mlflow_server: MlflowServer) -> Iterator[FaultProxy]:
    with FaultProxy(mlflow_server.port) as proxy:
        yield proxy


@pytest.fixture
def uri(proxy: FaultProxy) -> str:
    """The proxy, with a login that the server does not mind and that nobody may see."""
    return f"mlflow+http://me:{PASSWORD}@127.0.0.1:{proxy.port}"


@pytest.fixture
def run_id(mlflow_server: MlflowServer) -> str:
    return mlflow_server.run()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.json"
    path.write_bytes(b'{"loss": 0.1}' * 1000)
    return path


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    caplog.set_level(logging.DEBUG)


def failure(sink: MlflowSink, run_id: str, file: Path, options: TransferOptions = ONCE) -> StagesinkError:
    """Upload by the engine, and return why the one object failed."""
    with pytest.raises(TransferError) as caught:
        Transfer(sink, options).run(plan_file(run_id, "metrics.json", file))
    assert_nothing_secret(caught.value)
    (error,) = caught.value.failures.values()
    assert error.hint, error
    return error


def refused(uri: str, run_id: str | None, file: Path, caplog: pytest.LogCaptureFixture) -> StagesinkError:
    """Upload by the facade, see False and one line, and return the error behind it."""
    caplog.clear()
    with ArtifactUploader(run_id, sink=uri, attempts=1) as uploader:
        assert uploader.upload_file(file, "metrics.json") is False
        lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(lines) == 1
        assert not lines[0].exc_info
        assert_nothing_secret(uploader.errors[0])
        assert_not_secret("\n".join(map(repr, [*uploader.receipts, uploader.metrics])))
    for record in caplog.records:
        assert_not_secret(record.getMessage())
    return uploader.errors[0]


def assert_nothing_secret(error: BaseException) -> None:
    assert_not_secret("".join(traceback.format_exception(error)) + repr(error))


def assert_not_secret(text: str) -> None:
    sent = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
    for secret in (TOKEN, PASSWORD, sent, "Signature="):
        assert secret not in text


# -- answers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What the proxy does to the put, the class of the error, and a piece of what is said."""

    fault: Fault
    error: type[StagesinkError]
    says: str
    retry_after: float | None = None


CASES = {
    "400": Case(Answer(400), SinkError, "answered 400. Choose another artifact path, or look into the server's log."),
    "405": Case(Answer(405), SinkError, "answered 405. Choose another artifact path, or look into the server's log."),
    "501": Case(Answer(501), SinkError, "answered 501. Choose another artifact path, or look into the server's log."),
    "401": Case(Answer(401), SinkAuthError, "Check MLFLOW_TRACKING_TOKEN"),
    "403": Case(Answer(403), SinkAuthError, "Check MLFLOW_TRACKING_TOKEN"),
    "413": Case(Answer(413), SinkQuotaError, "413"),
    "413 in the middle": Case(CutRequest(100, Answer(413)), SinkQuotaError, "413"),
    "429": Case(Answer(429, retry_after=7), TransientSinkError, "429", 7.0),
    "503": Case(Answer(503, retry_after=3), TransientSinkError, "503", 3.0),
    "500": Case(Answer(500), TransientSinkError, "500"),
    "507": Case(Answer(507), SinkQuotaError, "507"),
    "a redirect": Case(Answer(308, headers={"Location": "http://elsewhere/"}), SinkError, "sends us elsewhere"),
    "reset": Case(Reset(), TransientSinkError, "broke"),
    "cut in the request": Case(CutRequest(100), TransientSinkError, "broke"),
    "an error with a page": Case(
        Answer(502, body=f"<html>{TOKEN}</html>".encode()), TransientSinkError, "answered 502"
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_put_can_meet(
    proxy: FaultProxy, uri: str, run_id: str, file: Path, name: str, mlflow_server: MlflowServer
) -> None:
    case = CASES[name]
    proxy.plan(case.fault, method="PUT", path="metrics.json")
    error = failure(MlflowSink(uri), run_id, file)
    assert type(error) is case.error
    assert case.says in str(error)
    assert getattr(error, "retry_after", None) == case.retry_after
    assert mlflow_server.listed(run_id) == {}
    # The next one finds a healthy server, and all is well.
    Transfer(MlflowSink(uri), ONCE).run(plan_file(run_id, "metrics.json", file))


@pytest.mark.parametrize("name", CASES)
def test_the_facade_turns_it_into_false_and_one_line(
    proxy: FaultProxy, uri: str, run_id: str, file: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.plan(CASES[name].fault, method="PUT", path="metrics.json")
    refused(uri, run_id, file, caplog)


@pytest.mark.parametrize("fault", [Answer(503), Answer(429), Reset(), CutRequest(100), Answer(504)], ids=str)
def test_what_passes_is_tried_again_and_lands(
    proxy: FaultProxy, uri: str, run_id: str, file: Path, fault: Fault, mlflow_server: MlflowServer
) -> None:
    proxy.plan(fault, times=3, method="PUT", path="metrics.json")
    (receipt,) = Transfer(MlflowSink(uri), QUICK).run(plan_file(run_id, "metrics.json", file))
    assert (receipt.attempts, receipt.status, receipt.verified_by) == (4, "uploaded", "size")
    assert mlflow_server.listed(run_id)["metrics.json"] == file.stat().st_size


def test_what_does_not_pass_is_not_tried_again(proxy: FaultProxy, uri: str, run_id: str, file: Path) -> None:
    proxy.plan(Answer(403), method="PUT", path="metrics.json")
    failure(MlflowSink(uri), run_id, file, QUICK)
    assert puts(proxy) == ["metrics.json"]


# -- a reply that is lost ----------------------------------------------------------------------------------------------


def puts(proxy: FaultProxy) -> list[str]:
    names = [target.rpartition("/")[2] for method, target in proxy.requests if method == "PUT"]
    return [name for name in names if not name.startswith("turn.")]


def test_a_reply_lost_after_the_bytes_had_arrived_sends_nothing_twice(
    proxy: FaultProxy, uri: str, run_id: str, file: Path
) -> None:
    proxy.plan(DropReply(), method="PUT", path="metrics.json")
    (receipt,) = Transfer(MlflowSink(uri), QUICK).run(plan_file(run_id, "metrics.json", file))
    assert (receipt.attempts, receipt.verified_by) == (1, "readback")
    assert puts(proxy) == ["metrics.json", "metrics.json.manifest.json"]


def test_a_timeout_after_the_bytes_had_arrived_sends_nothing_twice(
    proxy: FaultProxy, uri: str, run_id: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    sink = MlflowSink(uri)
    proxy.plan(Stall(served=True), method="PUT", path="metrics.json")
    (receipt,) = Transfer(sink, QUICK).run(plan_file(run_id, "metrics.json", file))
    assert (receipt.attempts, receipt.verified_by) == (1, "readback")
    assert puts(proxy) == ["metrics.json", "metrics.json.manifest.json"]
    assert [check.status for check in verify(sink, _manifests(sink, run_id))] == ["ok"]


def test_a_manifest_whose_reply_is_lost_commits_once(proxy: FaultProxy, uri: str, run_id: str, file: Path) -> None:
    proxy.plan(DropReply(), method="PUT", path="manifest.json")
    sink = MlflowSink(uri)
    Transfer(sink, QUICK).run(plan_file(run_id, "metrics.json", file))
    assert [manifest.path for manifest in _manifests(sink, run_id)] == ["metrics.json"]


def _manifests(sink: MlflowSink, run_id: str) -> list[object]:
    from stagesink.transfer import list_committed

    return list(list_committed(sink, run_id))


# -- reading -----------------------------------------------------------------------------------------------------------


def test_a_body_that_ends_early_is_an_error_and_no_end(proxy: FaultProxy, uri: str, run_id: str) -> None:
    sink, key = MlflowSink(uri), ArtifactKey(run_id, "a.bin")
    sink.put(key, MemorySource(b"x" * 100_000))
    proxy.plan(TruncateReply(), method="GET", path="a.bin")
    with pytest.raises(TransientSinkError, match="broke") as caught, sink.open(key) as stream:
        stream.read()
    assert_nothing_secret(caught.value)


def test_a_listing_that_ends_early_is_an_error_and_not_short(proxy: FaultProxy, uri: str, run_id: str) -> None:
    sink = MlflowSink(uri)
    for name in ("a", "b"):
        sink.put(ArtifactKey(run_id, name), MemorySource(b"x"))
    proxy.plan(TruncateReply(), method="GET", path="?path=")
    with pytest.raises(TransientSinkError):
        list(sink.list(run_id))


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(200, body=b"<html>hello</html>"), SinkError),
        (Answer(200, body=b'{"files": "none"}'), SinkError),
        (Answer(200, body=b'{"files": [{"path": 1}]}'), SinkError),
        (Answer(200, body=b'{"files": [{"path": "a", "file_size": "big"}]}'), SinkError),
        (Answer(200, body=b"[" * 100_000), SinkError),
    ],
    ids=["a page", "no list", "no path", "no size", "nested"],
)
def test_a_listing_that_is_none_is_an_error(
    proxy: FaultProxy, uri: str, run_id: str, answer: Answer, error: type[SinkError]
) -> None:
    sink = MlflowSink(uri)
    sink.stat(ArtifactKey(run_id, "warm"))
    proxy.plan(answer, method="GET", path="?path=")
    with pytest.raises(error):
        list(sink.list(run_id))


# -- runs and servers --------------------------------------------------------------------------------------------------


def test_an_unknown_run(uri: str, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert type(failure(MlflowSink(uri), "0" * 32, file)) is RunNotFound
    assert "knows no run" in str(refused(uri, "0" * 32, file, caplog))


def test_what_can_be_no_run_id(uri: str, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert type(failure(MlflowSink(uri), "no run?&id", file)) is RunNotFound


def test_no_run_at_all(uri: str, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert "There is no run to upload to" in str(refused(uri, None, file, caplog))


def test_a_deleted_run(
    mlflow_server: MlflowServer, uri: str, run_id: str, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow_server.delete_run(run_id)
    assert "is deleted. Restore it: `mlflow runs restore" in str(failure(MlflowSink(uri), run_id, file))
    refused(uri, run_id, file, caplog)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Answer(200, body=b"<html>a wiki</html>"), "answered 200, and not as an MLflow server does"),
        (Answer(200, body=b"[]"), "answered 200, and not as an MLflow server does"),
        (Answer(200, body=b'{"run": 1}'), "answered 200, and not as an MLflow server does"),
        (Answer(404, body=b"<html>not here</html>"), "answered 404, and not as an MLflow server does"),
        (Answer(301, headers={"Location": "https://elsewhere/"}), "answered 301"),
    ],
    ids=["a page", "a list", "no run", "404", "a redirect"],
)
def test_a_server_that_is_not_mlflow(
    proxy: FaultProxy, uri: str, run_id: str, file: Path, answer: Answer, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.plan(answer, times=2, path="runs/get")
    error = failure(MlflowSink(uri), run_id, file)
    assert says in str(error)
    assert not isinstance(error, TransientSinkError)
    refused(uri, run_id, file, caplog)


def test_nobody_there(run_id: str, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri = f"mlflow+http://me:{PASSWORD}@127.0.0.1:{closed_port()}"
    error = failure(MlflowSink(uri), run_id, file)
    assert type(error) is TransientSinkError
    assert "cannot be reached (Connection refused). Check the address" in str(error)
    refused(uri, run_id, file, caplog)


def test_a_host_that_is_not_known(run_id: str, file: Path) -> None:
    error = failure(MlflowSink(f"mlflow+http://me:{PASSWORD}@no-such-host.invalid"), run_id, file)
    assert type(error) is TransientSinkError
    assert "cannot be reached" in str(error)


def test_no_server_is_named(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(refused("mlflow:", "r", file, caplog), ConfigError)


# -- paths -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["reports/", "/metrics.json", "../metrics.json", "a//b", ""])
def test_a_path_that_is_none(uri: str, run_id: str, file: Path, path: str, caplog: pytest.LogCaptureFixture) -> None:
    with ArtifactUploader(run_id, sink=uri, attempts=1) as uploader:
        assert uploader.upload_file(file, path) is False
    assert isinstance(uploader.errors[0], InvalidKey | ConfigError)
    assert uploader.errors[0].hint


@pytest.mark.parametrize("path", ["a#b.json", "100%25.json", "%41.json"])
def test_a_name_that_the_server_would_refuse_or_change(
    uri: str, run_id: str, file: Path, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with ArtifactUploader(run_id, sink=uri, attempts=1) as uploader:
        assert uploader.upload_file(file, path) is False
    assert "Choose another file name or artifact path." in str(uploader.errors[0])
    assert "It is kept in" not in caplog.text  # it could never land


def test_a_file_where_the_path_has_a_folder(
    uri: str, run_id: str, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ArtifactUploader(run_id, sink=uri, attempts=1) as uploader:
        assert uploader.upload_file(file, "metrics.json") is True
        assert uploader.upload_file(file, "metrics.json/metrics.json") is False
    (error,) = uploader.errors
    assert isinstance(error, TransferError)
    assert [type(each) for each in error.failures.values()] == [SinkConflict]
    assert ": once that is put right, `stagesink sync` uploads it." in caplog.text


def test_what_is_not_there_is_not_found(uri: str, run_id: str) -> None:
    with pytest.raises(ArtifactNotFound):
        MlflowSink(uri).open(ArtifactKey(run_id, "nothing"))


# -- who one is --------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")


@pytest.mark.usefixtures("no_token")
class TestBasicAuth:
    def test_with_the_password_it_lands(self, mlflow_auth_server: MlflowServer, file: Path) -> None:
        run_id = mlflow_auth_server.run()
        Transfer(MlflowSink(mlflow_auth_server.sink_uri), ONCE).run(plan_file(run_id, "metrics.json", file))
        assert set(mlflow_auth_server.listed(run_id)) == {"metrics.json", "metrics.json.manifest.json"}

    def test_the_password_may_come_by_the_environment(
        self, mlflow_auth_server: MlflowServer, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", mlflow_auth_server.user)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", mlflow_auth_server.password)
        run_id = mlflow_auth_server.run()
        with ArtifactUploader(run_id, sink=f"mlflow+{mlflow_auth_server.url}") as uploader:
            assert uploader.upload_file(file) is True

    def test_the_password_may_come_from_netrc(
        self, mlflow_auth_server: MlflowServer, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = mlflow_auth_server
        (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login {server.user} password {server.password}\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        with ArtifactUploader(server.run(), sink=f"mlflow+{server.url}") as uploader:
            assert uploader.upload_file(file) is True

    @pytest.mark.parametrize("login", ["", f"admin:{PASSWORD}@", f"nobody:{PASSWORD}@"])
    def test_without_it_one_is_sent_away(
        self, mlflow_auth_server: MlflowServer, file: Path, login: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        run_id = mlflow_auth_server.run()
        uri = f"mlflow+http://{login}127.0.0.1:{mlflow_auth_server.port}"
        assert type(failure(MlflowSink(uri), run_id, file)) is SinkAuthError
        assert "Check MLFLOW_TRACKING_TOKEN" in str(refused(uri, run_id, file, caplog))

    def test_a_token_that_is_renewed_in_the_environment_is_used(
        self, mlflow_auth_server: MlflowServer, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sink = MlflowSink(f"mlflow+{mlflow_auth_server.url}")
        run_id = mlflow_auth_server.run()
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", mlflow_auth_server.user)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "expired")
        assert type(failure(sink, run_id, file)) is SinkAuthError
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", mlflow_auth_server.password)
        Transfer(sink, ONCE).run(plan_file(run_id, "metrics.json", file))


def test_the_token_is_sent_with_each_request(proxy: FaultProxy, run_id: str, file: Path) -> None:
    sink = MlflowSink(f"mlflow+http://127.0.0.1:{proxy.port}")
    Transfer(sink, ONCE).run(plan_file(run_id, "metrics.json", file))
    assert {headers.get("authorization") for headers in proxy.headers} == {f"Bearer {TOKEN}"}


def test_a_server_under_a_prefix(mlflow_server: MlflowServer, run_id: str, file: Path) -> None:
    with FaultProxy(mlflow_server.port, prefix="/team/mlflow") as proxy:
        Transfer(MlflowSink(f"mlflow+http://127.0.0.1:{proxy.port}/team/mlflow/"), ONCE).run(
            plan_file(run_id, "metrics.json", file)
        )
        error = failure(MlflowSink(f"mlflow+http://127.0.0.1:{proxy.port}"), run_id, file)
    assert "the prefix it is served under" in str(error)


# -- certificates ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tls:
    """A server with a certificate of a throw-away authority; ``files`` has what clients may name."""

    port: int
    authority: str
    other_authority: str
    client: str


@pytest.fixture
def tls_for(mlflow_server: MlflowServer, tmp_path: Path) -> Iterator[Callable[..., Tls]]:
    trustme = pytest.importorskip("trustme", reason="comes with the environments mlflow2 and mlflow3")
    proxies: list[FaultProxy] = []

    def start(name: str = "127.0.0.1", *, wants_client: bool = False) -> Tls:
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        if wants_client:
            authority.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
            context.maximum_version = ssl.TLSVersion.TLSv1_2  # later ones tell only with the first answer
        found = {}
        for each, blob in {
            "authority": authority.cert_pem,
            "other": trustme.CA().cert_pem,
            "client": authority.issue_cert("me@example.org").private_key_and_cert_chain_pem,
        }.items():
            found[each] = str(tmp_path / f"{each}.pem")
            blob.write_to_path(found[each])
        proxy = FaultProxy(mlflow_server.port, tls=context)
        proxy.__enter__()
        proxies.append(proxy)
        return Tls(proxy.port, found["authority"], found["other"], found["client"])

    yield start
    for proxy in proxies:
        proxy.__exit__()


def test_a_certificate_of_a_named_authority(
    tls_for: Callable[..., Tls], run_id: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = tls_for()
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", tls.authority)
    Transfer(MlflowSink(f"mlflow+https://127.0.0.1:{tls.port}"), ONCE).run(plan_file(run_id, "m.json", file))


def test_a_certificate_that_nobody_vouches_for(
    tls_for: Callable[..., Tls], run_id: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = tls_for()
    for authority in ("", tls.other_authority):
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", authority)
        error = failure(MlflowSink(f"mlflow+https://me:{PASSWORD}@127.0.0.1:{tls.port}"), run_id, file)
        assert type(error) is SinkError
        assert "certificate that does not hold" in str(error)
        assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in str(error)


def test_a_named_authority_is_the_only_one(
    tls_for: Callable[..., Tls], run_id: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = tls_for()
    uri = f"mlflow+https://127.0.0.1:{tls.port}"
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.setenv("CURL_CA_BUNDLE", tls.authority)
    Transfer(MlflowSink(uri), ONCE).run(plan_file(run_id, "m.json", file))
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", tls.other_authority)
    assert "certificate that does not hold" in str(failure(MlflowSink(uri), run_id, file))


def test_a_certificate_of_another_host(
    tls_for: Callable[..., Tls], run_id: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = tls_for("another.example.org")
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", tls.authority)
    error = failure(MlflowSink(f"mlflow+https://127.0.0.1:{tls.port}"), run_id, file)
    assert type(error) is SinkError
    assert "Check the host name" in str(error)


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")  # what one asks for
def test_a_certificate_that_is_not_checked(
    tls_for: Callable[..., Tls], run_id: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    tls = tls_for("another.example.org")
    Transfer(MlflowSink(f"mlflow+https://127.0.0.1:{tls.port}"), ONCE).run(plan_file(run_id, "m.json", file))


def test_a_server_that_wants_to_know_the_client(
    tls_for: Callable[..., Tls], run_id: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = tls_for(wants_client=True)
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", tls.authority)
    sink_uri = f"mlflow+https://127.0.0.1:{tls.port}"
    with pytest.raises(TransferError):
        Transfer(MlflowSink(sink_uri), ONCE).run(plan_file(run_id, "m.json", file))
    monkeypatch.setenv("MLFLOW_TRACKING_CLIENT_CERT_PATH", tls.client)
    Transfer(MlflowSink(sink_uri), ONCE).run(plan_file(run_id, "m.json", file))


def test_https_at_the_server_itself_names_the_remedy(mlflow_server: MlflowServer, run_id: str, file: Path) -> None:
    error = failure(MlflowSink(f"mlflow+https://me:{PASSWORD}@127.0.0.1:{mlflow_server.port}"), run_id, file)
    # gunicorn, before MLflow 3, may wait for the end of what it takes for a line, and so do we.
    waits = isinstance(error, TransientSinkError) and mlflow_version() < (3, 0)
    assert str(error).endswith(
        f"127.0.0.1:{mlflow_server.port} took too long to answer. {HINTS.timeout} {HINTS.scheme.format(other='http')}"
        if waits
        else f"127.0.0.1:{mlflow_server.port} does not speak TLS. Write http:// instead of https://, or check the port."
    )


def test_https_at_a_server_that_hangs_up_on_it(proxy: FaultProxy, run_id: str, file: Path) -> None:
    with proxy.cutting():
        error = failure(MlflowSink(f"mlflow+https://me:{PASSWORD}@127.0.0.1:{proxy.port}"), run_id, file)
    assert type(error) is TransientSinkError
    assert str(error).endswith("If it goes on, the server may speak http: write http:// in its address.")


def test_http_where_https_is_spoken(
    tls_for: Callable[..., Tls], run_id: str, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"mlflow+http://me:{PASSWORD}@127.0.0.1:{tls_for().port}"
    error = failure(MlflowSink(uri), run_id, file, QUICK)
    assert type(error) is TransientSinkError  # OpenSSL hangs up and does not say why, as one that ends does
    assert str(error).endswith("If it goes on, the server may speak https: write https:// in its address.")
    assert "may speak https" in str(refused(uri, run_id, file, caplog))


def test_http_where_a_tls_alert_is_the_answer(run_id: str, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Other libraries than OpenSSL say what they miss, in a record of their own: here an unexpected message."""

    def alert(listener: socket.socket) -> None:
        with suppress(OSError):  # closed at the end of the test
            while True:
                client, _ = listener.accept()
                with client:
                    client.recv(1 << 16)
                    client.sendall(b"\x15\x03\x03\x00\x02\x02\x0a")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=alert, args=(listener,), daemon=True).start()
        port = listener.getsockname()[1]
        error = failure(MlflowSink(f"mlflow+http://me:{PASSWORD}@127.0.0.1:{port}"), run_id, file)
        listener.shutdown(socket.SHUT_RDWR)
    assert type(error) is SinkError
    assert str(error).endswith(
        f"127.0.0.1:{port} speaks TLS, and was spoken to without. Write https:// instead of http://, or check the port."
    )


def test_a_server_that_has_answered_is_not_suspected_of_another_scheme(
    proxy: FaultProxy, uri: str, run_id: str, file: Path
) -> None:
    proxy.plan(Reset(), method="PUT", path="metrics.json")
    error = failure(MlflowSink(uri), run_id, file)
    assert "broke" in str(error)
    assert error.hint == TransientSinkError.default_hint


def test_a_page_of_a_tls_server_has_one_check_the_scheme(proxy: FaultProxy, uri: str, run_id: str, file: Path) -> None:
    """nginx and Go answer plain HTTP with 400, in plain HTTP."""
    proxy.plan(Answer(400, body=b"Client sent an HTTP request to an HTTPS server.\n"), times=2)
    error = failure(MlflowSink(uri), run_id, file)
    assert "answered 400, and not as an MLflow server does. Check the address: http or https, host" in str(error)


# -- our own machine ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["stagesink", "mlflow"])
def test_a_full_temporary_folder_keeps_the_upload_and_says_so(
    mlflow_server: MlflowServer,
    run_id: str,
    tmp_path: Path,
    engine: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STAGESINK_ENGINE", engine)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
    if engine == "mlflow":
        pytest.importorskip("mlflow", reason="comes with an extra")
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "model.bin").write_bytes(os.urandom(3 << 20))
    with small_disk(tmp_path / "small") as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        uploader = ArtifactUploader(run_id, sink="mlflow:", attempts=1)
        assert uploader.upload_packed_checkpoint(checkpoint, "best.tar.gz") is False
        (line,) = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
        assert f"A temporary file could not be written in {disk}: No space left on device." in line
        assert f"Free some space in {disk}, or set TMPDIR to another folder." in line
        assert "kept in" in line
    assert mlflow_server.listed(run_id) == {}


def test_the_environment_is_left_as_it_was(uri: str, run_id: str, file: Path) -> None:
    before = dict(os.environ)
    with ArtifactUploader(run_id, sink=uri) as uploader:
        assert uploader.upload_file(file) is True
    assert dict(os.environ) == before


# -- by mlflow's own client --------------------------------------------------------------------------------------------


class TestOwnClient:
    """``artifacts.engine: mlflow``: the errors of another client, of the same classes and as silent about secrets."""

    @pytest.fixture(autouse=True)
    def client(self, mlflow_server: MlflowServer, uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with mlflow_server.client():  # imported without its warnings, and used so
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.partition("+")[2])
            yield

    @pytest.mark.parametrize(
        ("fault", "kind"),
        [
            (Answer(401), SinkAuthError),
            (Answer(403), SinkAuthError),
            (Answer(413), SinkQuotaError),
            (Answer(503), TransientSinkError),
            (Answer(429), TransientSinkError),
            (Reset(), TransientSinkError),
            (DropReply(), TransientSinkError),
        ],
        ids=str,
    )
    def test_what_a_put_can_meet(
        self, proxy: FaultProxy, uri: str, run_id: str, file: Path, fault: Fault, kind: type[SinkError]
    ) -> None:
        proxy.plan(fault, times=9, method="PUT")
        assert type(failure(MlflowSink(uri, own_client=True), run_id, file)) is kind

    def test_an_unknown_run(self, uri: str, file: Path) -> None:
        assert type(failure(MlflowSink(uri, own_client=True), "0" * 32, file)) is RunNotFound

    def test_a_deleted_run(self, mlflow_server: MlflowServer, uri: str, run_id: str, file: Path) -> None:
        mlflow_server.delete_run(run_id)
        assert "is deleted" in str(failure(MlflowSink(uri, own_client=True), run_id, file))

    def test_nobody_there(self, run_id: str, file: Path) -> None:
        uri = f"mlflow+http://me:{PASSWORD}@127.0.0.1:{closed_port()}"
        error = failure(MlflowSink(uri, own_client=True), run_id, file)
        assert type(error) is TransientSinkError
        assert "Check the address and port, and that the server runs." in str(error)

    def test_it_sends_each_request_once_and_shows_no_bar(
        self, proxy: FaultProxy, uri: str, run_id: str, file: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        proxy.plan(Answer(503), times=9, method="PUT")
        failure(MlflowSink(uri, own_client=True), run_id, file)
        sent = [target for method, target in proxy.requests if method == "PUT"]
        assert len(sent) == len(set(sent))
        proxy.forget()
        Transfer(MlflowSink(uri, own_client=True), ONCE).run(plan_file(run_id, "metrics.json", file))
        assert "%|" not in capfd.readouterr().err

    def test_elsewhere_its_retries_are_as_they_were(self, uri: str, run_id: str, file: Path) -> None:
        from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES

        before = MLFLOW_HTTP_REQUEST_MAX_RETRIES.get()
        Transfer(MlflowSink(uri, own_client=True), ONCE).run(plan_file(run_id, "metrics.json", file))
        assert MLFLOW_HTTP_REQUEST_MAX_RETRIES.get() == before > 0

    @pytest.mark.parametrize("path", ["a#b.json", "100%25.json", "a%20b.json"])
    def test_a_name_that_the_server_takes_for_another_overwrites_nothing(
        self, mlflow_server: MlflowServer, uri: str, run_id: str, file: Path, path: str
    ) -> None:
        sink = MlflowSink(uri, own_client=True)
        Transfer(sink, ONCE).run(plan_file(run_id, "a", file))
        before = mlflow_server.listed(run_id)
        with pytest.raises(TransferError) as caught:
            Transfer(sink, ONCE).run(plan_file(run_id, path, file))
        assert {type(error) for error in caught.value.failures.values()} == {NameRefused}
        assert mlflow_server.listed(run_id) == before

    def test_what_stands_in_the_way_is_named(self, uri: str, run_id: str, file: Path) -> None:
        sink = MlflowSink(uri, own_client=True)
        Transfer(sink, ONCE).run(plan_file(run_id, "a", file))
        with pytest.raises(TransferError) as caught:
            Transfer(sink, ONCE).run(plan_file(run_id, "a/b", file))
        assert "a is a file" in str(caught.value)
        assert "Choose another artifact path." in str(caught.value)

    def test_the_facade_says_it_in_one_line(
        self,
        proxy: FaultProxy,
        uri: str,
        run_id: str,
        file: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        proxy.plan(Answer(403), times=9, method="PUT")
        monkeypatch.setenv("STAGESINK_ENGINE", "mlflow")
        refused(uri, run_id, file, caplog)

    @pytest.mark.parametrize("elsewhere", [None, "another server"])
    def test_nothing_lands_on_another_server(
        self,
        uri: str,
        run_id: str,
        file: Path,
        elsewhere: str | None,
        mlflow_server: MlflowServer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Before MLflow 3.2 its client sends artifacts where MLFLOW_TRACKING_URI says, whatever server one names."""
        if elsewhere is None:
            monkeypatch.delenv("MLFLOW_TRACKING_URI")
        else:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)  # the proxy's port is another
        sink = MlflowSink(uri, own_client=True)
        if mlflow_version() < (3, 2):
            error = failure(sink, run_id, file)
            assert type(error) is ConfigError
            assert "MLFLOW_TRACKING_URI" in str(error)
            assert mlflow_server.listed(run_id) == {}
        else:
            Transfer(sink, ONCE).run(plan_file(run_id, "metrics.json", file))
