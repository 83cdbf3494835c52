"""What Azure ML's service, its blob store, or what stands before them can do wrong, and what bad input gets: a typed
error from the engine, False from the facade.

Each message is one sentence with what to do next, and nothing secret is in any of it.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import ssl
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from azureml_lines import Job
from faults.proxy import Answer, CutRequest, Delay, DropReply, Fault, FaultProxy, Reset, TruncateReply
from servers import closed_port

pytest.importorskip("urllib3", reason="comes with the extra azureml")

from stagesink import ArtifactUploader
from stagesink.artifacts import ArtifactKey, MemorySource
from stagesink.errors import (
    ConfigError,
    MissingExtra,
    RunNotFound,
    SinkAuthError,
    SinkConflict,
    SinkError,
    SinkQuotaError,
    StagesinkError,
    TransferError,
    TransientSinkError,
    VerificationError,
)
from stagesink.sinks.registry import open_sink
from stagesink.testing import GeneratedSource
from stagesink.transfer import Transfer, TransferOptions, list_committed, plan_file, plan_tree, verify

ONCE = TransferOptions(attempts=1)
QUICK = TransferOptions(attempts=4, initial=0.01, max_wait=0.02)
PAGE = b"<!DOCTYPE html><html>Please sign in</html>"
IDS = {"x-ms-request-id": "1", "x-ms-version": "2021-12-02"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.json"
    path.write_bytes(b'{"loss": 0.1}' * 1000)
    return path


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID", "IDENTITY_ENDPOINT", "MSI_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure.identity", None)  # as if it were not installed


def blob_error(status: int, code: str, **headers: str) -> Answer:
    """An error as Azure's blob store words it."""
    body = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>sig=abc</Message></Error>'
    return Answer(status, body=body.encode(), headers={"x-ms-error-code": code, **IDS, **headers})


def failure(job: Job, file: Path, options: TransferOptions = ONCE) -> StagesinkError:
    """Upload by the engine, and return why the one object failed."""
    with pytest.raises(TransferError) as caught:
        Transfer(job.sink, options).run(plan_file(job.run_id, "metrics.json", file))
    assert_nothing_secret(job, caught.value)
    (error,) = caught.value.failures.values()
    assert error.hint, error
    assert error.message.rstrip().endswith("."), error
    return error


def refused(
    job: Job, file: Path, caplog: pytest.LogCaptureFixture, *, run_id: str | None = None, uri: str = "azureml:"
) -> StagesinkError:
    """Upload by the facade, see False and one line, and return the error behind it."""
    caplog.clear()
    with ArtifactUploader(run_id or job.run_id, sink=uri, attempts=1) as uploader:
        assert uploader.upload_file(file, "metrics.json") is False
        lines = [
            record for record in caplog.records if record.name == "stagesink" and record.levelno >= logging.WARNING
        ]
        assert len(lines) == 1
        assert not lines[0].exc_info
        assert_nothing_secret(job, uploader.errors[0])
        assert_not_secret(job, "\n".join(map(repr, [*uploader.receipts, uploader.metrics])))
    for record in caplog.records:
        assert_not_secret(job, record.getMessage())
    return uploader.errors[0]


def assert_nothing_secret(job: Job, error: BaseException) -> None:
    assert_not_secret(job, "".join(traceback.format_exception(error)) + repr(error))


def assert_not_secret(job: Job, text: str) -> None:
    for secret in (*tokens_of(job), job.service.azurite.key, "sig=", "Signature="):
        assert secret not in text


def tokens_of(job: Job) -> set[str]:
    sent = {headers.get("authorization", "").partition(" ")[2] for headers in job.lines.front.headers}
    return {token for token in (*sent, os.environ.get("MLFLOW_TRACKING_TOKEN", "")) if token}


# -- what the store, and what the service, can answer ------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What a proxy does to one request, the class of the error, and a piece of what is said."""

    fault: Fault
    error: type[StagesinkError]
    says: str
    retry_after: float | None = None


OF_THE_STORE = {
    "429": Case(Answer(429, retry_after=7), TransientSinkError, "429", 7.0),
    "503": Case(blob_error(503, "ServerBusy", **{"Retry-After": "3"}), TransientSinkError, "503 (ServerBusy)", 3.0),
    "500": Case(blob_error(500, "InternalError"), TransientSinkError, "500"),
    "502 with a page": Case(Answer(502, body=PAGE), TransientSinkError, "answered 502"),
    "507": Case(Answer(507), SinkQuotaError, "507"),
    "413": Case(blob_error(413, "RequestBodyTooLarge"), SinkQuotaError, "413"),
    "too many blocks": Case(blob_error(409, "BlockCountExceedsLimit"), SinkQuotaError, "409"),
    "a page with 200": Case(Answer(200, body=PAGE), SinkError, "a proxy's page looks like this"),
    "a page with 201": Case(Answer(201, body=PAGE), SinkError, "a proxy's page looks like this"),
    "a page with 404": Case(Answer(404, body=PAGE), SinkError, "a proxy's page looks like this"),
    "a redirect": Case(Answer(302, headers={"Location": "http://elsewhere/"}), SinkError, "Check what stands between"),
    "a firewall": Case(
        blob_error(403, "AuthorizationFailure"),
        SinkAuthError,
        "Let this machine through the storage account's firewall",
    ),
    "another firewall": Case(
        Answer(403, body=b"<?xml version='1.0'?><Error><Code>Blocked</Code></Error>"),
        SinkAuthError,
        "answered 403. Check what stands between",
    ),
    "no permission": Case(
        blob_error(403, "AuthorizationPermissionMismatch"), SinkAuthError, "The signature does not allow it"
    ),
    "no such container": Case(blob_error(404, "ContainerNotFound"), RunNotFound, "ask whoever runs the workspace"),
    "an immutable container": Case(blob_error(409, "BlobImmutableDueToPolicy"), SinkConflict, "keeps what is written"),
    "a checksum": Case(blob_error(400, "Md5Mismatch"), VerificationError, "Md5Mismatch"),
    "a disabled account": Case(blob_error(403, "AccountIsDisabled"), SinkAuthError, "AccountIsDisabled"),
    "a strange code": Case(blob_error(400, "<b>sig=abc</b>"), SinkError, "answered 400."),
    "reset": Case(Reset(), TransientSinkError, "broke"),
    "cut in the request": Case(CutRequest(10), TransientSinkError, "broke"),
}

OF_THE_SERVICE = {
    "401": Case(Answer(401), SinkAuthError, "Check that the login is of the workspace's tenant"),
    "403": Case(Answer(403), SinkAuthError, "`az login`"),
    "404": Case(Answer(404, body=b'{"error": {"code": "UserError"}}'), RunNotFound, "404 (UserError)"),
    "400": Case(Answer(400, body=b'{"error": {"code": "UserError"}}'), SinkError, "400 (UserError)"),
    "409": Case(Answer(409), SinkConflict, "409"),
    "429": Case(Answer(429, retry_after=7), TransientSinkError, "429", 7.0),
    "503": Case(Answer(503, retry_after=3), TransientSinkError, "503", 3.0),
    "500": Case(Answer(500, body=b'{"error": {"code": "<b>sig=abc</b>"}}'), TransientSinkError, "answered 500."),
    "502 with a page": Case(Answer(502, body=PAGE), TransientSinkError, "answered 502"),
    "a page with 200": Case(Answer(200, body=PAGE), SinkError, "a proxy's page looks like this"),
    "a list with 200": Case(Answer(200, body=b"[]"), SinkError, "does not answer as Azure ML does"),
    "nesting": Case(Answer(200, body=b"[" * 100_000), SinkError, "does not answer as Azure ML does"),
    "a redirect": Case(Answer(302, headers={"Location": "http://elsewhere/"}), SinkError, "answered 302"),
    "reset": Case(Reset(), TransientSinkError, "broke"),
}


@pytest.mark.parametrize("name", OF_THE_STORE)
def test_what_a_put_can_meet_at_the_store(job: Job, file: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    case = OF_THE_STORE[name]
    job.lines.store.plan(case.fault, times=9, method="PUT")
    _meets(job, file, case)
    job.lines.store.forget()
    Transfer(job.sink, ONCE).run(plan_file(job.run_id, "metrics.json", file))
    job.lines.store.plan(case.fault, times=9, method="PUT")
    file.write_bytes(b"another" * 1000)
    refused(job, file, caplog)


@pytest.mark.parametrize("name", OF_THE_SERVICE)
def test_what_a_put_can_meet_at_the_service(job: Job, file: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    case = OF_THE_SERVICE[name]
    job.lines.front.plan(case.fault, method="POST")
    _meets(job, file, case)
    job.lines.front.plan(case.fault, method="POST")
    refused(job, file, caplog)
    Transfer(job.sink, ONCE).run(plan_file(job.run_id, "metrics.json", file))


def _meets(job: Job, file: Path, case: Case) -> None:
    error = failure(job, file)
    assert type(error) is case.error
    assert case.says in str(error)
    assert getattr(error, "retry_after", None) == case.retry_after
    assert job.sink.stat(job.key("metrics.json")) is None
    assert list(job.sink.list(job.run_id)) == []


@pytest.mark.parametrize("at", ["front", "store"])
@pytest.mark.parametrize("fault", [Answer(503), Answer(429), Reset(), Answer(504)], ids=str)
def test_what_passes_is_tried_again_and_lands(job: Job, file: Path, fault: Fault, at: str) -> None:
    getattr(job.lines, at).plan(fault, times=3, method="POST" if at == "front" else "PUT", after=1)
    (receipt,) = Transfer(job.sink, QUICK).run(plan_file(job.run_id, "metrics.json", file))
    assert (receipt.attempts, receipt.status, receipt.verified_by) == (4, "uploaded", "md5")


def test_what_does_not_pass_is_not_tried_again(job: Job, file: Path) -> None:
    job.lines.front.plan(Answer(403), method="POST")
    failure(job, file, QUICK)
    assert sum(method == "POST" for method, _ in job.lines.front.requests) == 1


@pytest.mark.parametrize("part", ["comp=block&", "comp=blocklist"])
@pytest.mark.parametrize(
    "fault", [Reset(), blob_error(503, "ServerBusy"), CutRequest(50)], ids=["reset", "busy", "cut"]
)
def test_a_large_object_of_which_a_part_fails_is_not_there_and_lands_next_time(
    job: Job, fault: Fault, part: str
) -> None:
    job.lines.store.plan(fault, method="PUT", path=part)
    source = GeneratedSource((16 << 20) + 1000)  # its last part has more than what is read of the one that is cut
    with pytest.raises(TransientSinkError):
        job.sink.put(job.key(), source)
    assert job.sink.stat(job.key()) is None
    job.sink.put(job.key(), source)
    with job.sink.open(job.key()) as stream:
        assert hashlib.sha256(stream.read()).hexdigest() == source.digest()


# -- a reply that is lost ----------------------------------------------------------------------------------------------


def puts(job: Job) -> list[str]:
    names = [target.partition("?")[0].rpartition("/")[2] for target in job.lines.blobs("PUT")]
    return [name for name in names if not name.startswith("turn.")]


def test_a_reply_lost_after_the_bytes_had_arrived_sends_nothing_twice(job: Job, file: Path) -> None:
    job.lines.store.plan(DropReply(), method="PUT", after=1)
    (receipt,) = Transfer(job.sink, QUICK).run(plan_file(job.run_id, "metrics.json", file))
    assert receipt.status == "uploaded"
    assert puts(job) == ["metrics.json", "metrics.json.manifest.json"]


def test_a_commit_whose_reply_is_lost_sends_nothing_twice(job: Job, tmp_path: Path) -> None:
    large = tmp_path / "large.bin"
    large.write_bytes(GeneratedSource((16 << 20) + 1).read())
    job.lines.store.plan(DropReply(), method="PUT", path="comp=blocklist")
    Transfer(job.sink, QUICK).run(plan_file(job.run_id, "large.bin", large))
    assert len(job.lines.blobs("PUT", part="comp=block&")) == 3


def test_a_registration_whose_reply_is_lost_is_no_conflict(job: Job, file: Path) -> None:
    """The path is registered, so the next attempt is refused it: it asks for another URL."""
    job.lines.front.plan(DropReply(), method="POST", after=1)
    (receipt,) = Transfer(job.sink, QUICK).run(plan_file(job.run_id, "metrics.json", file))
    assert (receipt.status, receipt.attempts) == ("uploaded", 2)
    assert job.service.calls.count("write") == 2  # the manifest's path was in that request, too


def test_a_slow_service_and_store(job: Job, file: Path) -> None:
    job.lines.front.plan(Delay(0.3), times=3)
    job.lines.store.plan(Delay(0.3), times=2)
    Transfer(job.sink, ONCE).run(plan_file(job.run_id, "metrics.json", file))
    assert [manifest.path for manifest in list_committed(job.sink, job.run_id)] == ["metrics.json"]


# -- reading -----------------------------------------------------------------------------------------------------------


def test_a_body_that_ends_early_is_an_error_and_no_end(job: Job) -> None:
    job.sink.put(job.key(), MemorySource(b"x" * 100_000))
    job.lines.store.plan(TruncateReply(), method="GET")
    with pytest.raises(TransientSinkError) as caught, job.sink.open(job.key()) as stream:
        stream.read()
    assert_nothing_secret(job, caught.value)


def test_a_listing_that_ends_early_is_an_error_and_not_short(job: Job) -> None:
    for number in range(9):
        job.sink.put(job.key(f"{number}"), MemorySource(b"x"))
    job.lines.front.plan(TruncateReply(), method="GET", path="continuationToken")
    with pytest.raises(TransientSinkError):
        list(job.sink.list(job.run_id))


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, body=PAGE),
        Answer(200, body=b'{"value": "none"}'),
        Answer(200, body=b'{"value": [1]}'),
        Answer(200, body=b'{"value": [{"path": 1}]}'),
        Answer(200, body=b'{"value": [{"path": "a"}]}'),
        Answer(200, body=b'{"value": [{"path": "a", "contentUri": "file:///etc/passwd"}]}'),
        Answer(200, body=b'{"value": [{"path": "a", "contentUri": 7}]}'),
        Answer(200, body=b"[" * 100_000),
    ],
    ids=["a page", "no list", "no object", "no path", "no URL", "no http URL", "no text", "nested"],
)
def test_a_listing_that_is_none_is_an_error(job: Job, answer: Answer) -> None:
    job.lines.front.plan(answer, method="GET", path="prefix")
    with pytest.raises(SinkError, match="does not answer as Azure ML does"):
        list(job.sink.list(job.run_id))


def test_a_listing_that_goes_round_is_noticed(job: Job) -> None:
    page = json.dumps({"value": [], "continuationToken": "again"}).encode()
    job.lines.front.plan(Answer(200, body=page), times=3, method="GET", path="prefix")
    with pytest.raises(SinkError, match="the same page again and again"):
        list(job.sink.list(job.run_id))


@pytest.mark.parametrize("call", ["stat", "open", "list"])
@pytest.mark.parametrize("status", [200, 206, 404])
def test_a_proxys_page_is_no_blob_and_no_sign_that_there_is_none(job: Job, call: str, status: int) -> None:
    job.sink.put(job.key(), MemorySource(b"x"))
    job.lines.store.plan(Answer(status, body=PAGE))
    with pytest.raises(SinkError, match="does not answer as Azure's blob store does"):
        list(job.sink.list(job.run_id)) if call == "list" else getattr(job.sink, call)(job.key())


@pytest.mark.parametrize("call", ["stat", "open", "list", "delete"])
@pytest.mark.parametrize("status", [200, 404])
def test_a_proxys_page_is_no_answer_of_the_service(job: Job, call: str, status: int) -> None:
    job.sink.put(job.key(), MemorySource(b"x"))
    job.lines.front.plan(Answer(status, body=PAGE))
    with pytest.raises(SinkError, match="does not answer as Azure ML does"):
        list(job.sink.list(job.run_id)) if call == "list" else getattr(job.sink, call)(job.key())


@pytest.mark.parametrize(
    "body", [PAGE, b'{"run": 1}', b'{"run": {"info": []}}', b'{"run": {"info": {"artifact_uri": 7}}}']
)
def test_a_run_that_is_none_is_an_error(job: Job, body: bytes) -> None:
    other = job.service.new_run("another")
    job.lines.front.plan(Answer(200, body=body), method="GET", path="runs/get")
    with pytest.raises(SinkError, match="does not answer as Azure ML does"):
        job.sink.stat(ArtifactKey(other, "a"))


# -- who one is --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_identity")
class TestTokens:
    @pytest.mark.parametrize(
        ("token", "says"),
        [
            ({"expires_in": -10.0}, "has ended by this machine's clock"),
            ({"valid_in": 600.0}, "401"),
            ({"tenant": "another"}, "Check that the login is of the workspace's tenant"),
            ({"workspace": "another"}, "403"),
        ],
        ids=["expired", "not valid yet", "wrong tenant", "wrong workspace"],
    )
    def test_one_that_is_no_good(
        self,
        job: Job,
        file: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        token: dict[str, Any],
        says: str,
    ) -> None:
        bad = job.service.token(**token)
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", bad)
        monkeypatch.setenv("AZUREML_RUN_TOKEN", bad)
        error = failure(job, file)
        assert type(error) is SinkAuthError
        assert says in str(error)
        refused(job, file, caplog)

    def test_none_at_all(
        self, job: Job, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
        monkeypatch.delenv("AZUREML_RUN_TOKEN")
        error = failure(job, file)
        assert type(error) is MissingExtra
        assert "set MLFLOW_TRACKING_TOKEN" in str(error)
        refused(job, file, caplog)

    @pytest.mark.parametrize("seconds", [3000, -3000])
    def test_a_clock_that_is_wrong_is_named(
        self, job: Job, file: Path, seconds: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        date = {"Date": formatdate(time.time() + seconds, usegmt=True)}
        says = "clock is 50 minutes " + ("behind" if seconds > 0 else "ahead")
        job.lines.front.plan(Answer(401, headers=date), method="POST")
        assert says in str(failure(job, file))
        job.lines.front.plan(Answer(401, headers=date), method="POST")
        assert "Set the clock" in str(refused(job, file, caplog))
        job.lines.store.plan(blob_error(403, "AuthenticationFailed", **date), method="PUT", times=2)
        assert says in str(failure(job, file))


def test_no_credentials_with_azure_identity(
    job: Job, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A real one that finds nothing: it looks at its variables alone, since other ways would ask the network."""
    pytest.importorskip("azure.identity", reason="comes with the extra azureml")
    from azure.identity import EnvironmentCredential

    monkeypatch.setenv("AZURE_CLIENT_SECRET", "s3cret-of-the-client")
    monkeypatch.setattr("azure.identity.DefaultAzureCredential", EnvironmentCredential)
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
    monkeypatch.delenv("AZUREML_RUN_TOKEN")
    error = failure(job, file)
    assert type(error) is SinkAuthError
    assert "Azure gave no token" in str(error)
    assert "Log in with `az login`, or set AZURE_CLIENT_ID" in str(error)
    refused(job, file, caplog)
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    ("why", "error", "says"),
    [
        ("signature", SinkAuthError, "403"),
        ("expired", SinkAuthError, "403"),
        ("early", SinkAuthError, "403"),
        ("permission", SinkAuthError, "403"),
        ("container", RunNotFound, "404 (ContainerNotFound)"),
    ],
)
def test_urls_that_give_no_access(
    job: Job, file: Path, why: Any, error: type[SinkError], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    job.service.faults.bad_urls(why, times=99)
    found = failure(job, file)
    assert type(found) is error
    assert says in str(found)
    refused(job, file, caplog)


def test_a_url_for_another_container(job: Job, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The signature is good, for another place."""
    job.service.blobs.create_container("elsewhere")
    url = job.service.blobs.write_url("azureml", f"ExperimentRun/dcid.{job.run_id}/metrics.json")
    content = {"contentUri": url.replace("/azureml/", "/elsewhere/")}
    for _ in range(2):
        registered = json.dumps({"artifacts": {}, "artifactContentInformation": {"metrics.json": content}}).encode()
        job.lines.front.plan(Answer(200, body=registered), method="POST")
        job.lines.front.plan(Answer(200, body=json.dumps(content).encode()), method="GET", path="/write?")
    error = failure(job, file)
    assert type(error) is SinkAuthError
    assert "answered 403" in str(error)
    refused(job, file, caplog)


# -- runs, leases, servers ---------------------------------------------------------------------------------------------


def test_an_unknown_run(job: Job, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    error = refused(job, file, caplog, run_id="no-such-run")
    assert "Check the run id, and that it is a run of this workspace" in str(error)


def test_no_run_at_all(job: Job, file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZUREML_RUN_ID", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name)
    with ArtifactUploader(sink="azureml:") as uploader:
        assert uploader.upload_file(file, "metrics.json") is False
    assert "There is no run to upload to." in str(uploader.errors[0])


def test_a_run_of_another_workspace(job: Job, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZUREML_ARM_WORKSPACE_NAME", "another")
    sink = open_sink("azureml:")
    with pytest.raises(RunNotFound, match="Check the run id, and that it is a run of this workspace"):
        sink.put(job.key(), MemorySource(b"x"))
    sink.close()


@pytest.mark.parametrize("large", [False, True])
def test_a_lease_that_somebody_holds(job: Job, file: Path, large: bool, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("azure.storage.blob", reason="comes with the extra az")
    if large:
        file.write_bytes(GeneratedSource((16 << 20) + 1).read())
    job.sink.put(job.key("metrics.json"), MemorySource(b"old"))
    lease = job.lines.client(job.key("metrics.json")).acquire_lease()
    try:
        error = failure(job, file)
        assert type(error) is SinkConflict
        assert "Somebody holds a lease on the blob; break it" in str(error)
        if not large:
            refused(job, file, caplog)
    finally:
        lease.release()
    with job.sink.open(job.key("metrics.json")) as stream:
        assert stream.read() == b"old"


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_nobody_there(
    job: Job, file: Path, host: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AZUREML_SERVICE_ENDPOINT", f"http://{host}:{closed_port()}")
    error = refused(job, file, caplog)
    assert "cannot be reached" in str(error)
    assert "Check the address" in str(error)


def test_nobody_at_the_store(job: Job, file: Path) -> None:
    url = f"http://127.0.0.1:{closed_port()}/devstoreaccount1/azureml/x?se=2999-01-01T00%3A00%3A00Z&sig=abc"
    answer = {"artifactContentInformation": {"metrics.json": {"contentUri": url}}, "artifacts": {}}
    job.lines.front.plan(Answer(200, body=json.dumps(answer).encode()), method="POST", after=1)
    error = failure(job, file)
    assert type(error) is TransientSinkError
    assert "the workspace's storage cannot be reached (Connection refused)" in str(error)


def test_a_workspace_that_is_none(job: Job, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(refused(job, file, caplog, uri="azureml://jobs/x"), ConfigError)


# -- certificates ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tls(job: Job, tmp_path: Path) -> Iterator[tuple[FaultProxy, Path]]:
    """The service behind a certificate, and its authority."""
    trustme = pytest.importorskip("trustme", reason="comes with the extra testing")
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with FaultProxy(job.service.port, tls=context) as proxy:
        yield proxy, tmp_path / "ca.pem"


def test_a_certificate_that_nobody_vouches_for(
    job: Job,
    file: Path,
    tls: tuple[FaultProxy, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    proxy, authority = tls
    monkeypatch.setenv("AZUREML_SERVICE_ENDPOINT", f"https://127.0.0.1:{proxy.port}")
    error = refused(job, file, caplog)
    assert "shows a certificate that does not hold" in str(error)
    assert "REQUESTS_CA_BUNDLE" in str(error)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))
    with ArtifactUploader(sink="azureml:") as uploader:
        assert uploader.upload_file(file, "metrics.json") is True


def test_a_server_that_speaks_no_tls(
    job: Job, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AZUREML_SERVICE_ENDPOINT", f"https://127.0.0.1:{job.service.port}")
    assert "does not speak TLS. Write http:// instead of https://" in str(refused(job, file, caplog))


# -- secrets -----------------------------------------------------------------------------------------------------------


def test_no_secret_is_anywhere(
    job: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Everything that can be captured of uploads that land and that fail, at DEBUG, looked through for every secret."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(12):
        (tree / f"{number}.bin").write_bytes(b"x" * number)
    (tree / "large.bin").write_bytes(GeneratedSource((16 << 20) + 1).read())
    shown: list[object] = []
    faults: list[tuple[str, Fault]] = [
        ("front", Answer(403)),
        ("front", DropReply()),
        ("front", TruncateReply()),
        ("store", blob_error(403, "AuthenticationFailed")),
        ("store", Reset()),
        ("store", DropReply()),
        ("store", TruncateReply()),
        ("store", blob_error(400, "InvalidBlockList")),
    ]
    for turn, (at, fault) in enumerate([("store", Delay(0)), *faults]):
        getattr(job.lines, at).plan(fault, times=4)
        with ArtifactUploader(job.run_id, sink="azureml:", attempts=2) as uploader:
            (tree / "0.bin").write_bytes(f"{turn}".encode())
            uploader.upload_checkpoint(tree, f"tree-{turn}")
            shown += [uploader, *uploader.receipts, uploader.metrics, uploader.sink, vars(uploader.sink)]
            shown += ["".join(traceback.format_exception(error)) for error in uploader.errors]
    job.lines.forget()
    Transfer(job.sink, ONCE).run(plan_tree(job.run_id, "whole", tree))
    checks = list(verify(job.sink, list(list_committed(job.sink, job.run_id))))
    assert checks
    for stored in job.sink.list(job.run_id):
        shown.append(stored)
        if stored.size < 1 << 20:
            with job.sink.open(stored.key) as stream:
                shown.append(stream.read())
    records = [
        "\n".join((record.getMessage(), repr(record.args), "".join(map(str, record.exc_info or ()))))
        for record in caplog.records
    ]
    assert any(record.name.startswith("urllib3") for record in caplog.records)  # its log was listened to
    text = "\n".join([*map(repr, shown), *records, *capfd.readouterr()])
    signatures = set()
    for _, target in (*job.lines.store.requests,):
        signatures.add(target.partition("sig=")[2].partition("&")[0])
    assert signatures - {""}
    for secret in (*tokens_of(job), *(signatures - {""}), job.service.azurite.key, "sig=", "Bearer ey"):
        assert secret not in text
    gc.collect()


def test_the_environment_is_left_as_it_was(job: Job, file: Path) -> None:
    before = dict(os.environ)
    with ArtifactUploader(job.run_id, sink="azureml:") as uploader:
        assert uploader.upload_file(file) is True
    assert dict(os.environ) == before
