"""A tracking server that sends us elsewhere is not told there who we are."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.elsewhere import STATUSES, Elsewhere, assert_told_nothing, elsewhere, use
from faults.proxy import Answer, FaultProxy
from servers import free_port

pytest.importorskip("urllib3", reason="comes with the extra mlflow")

from stagesink.sinks.mlflow import MlflowSink
from stagesink.sinks.mlflow.proxied import ENDPOINT

TOKEN = "t0ken-that-nobody-sees"
PASSWORD = "pa55word-that-nobody-sees"


@pytest.fixture
def there() -> Iterator[Elsewhere]:
    with elsewhere() as found:
        yield found


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("login", ["", f"me:{PASSWORD}@"], ids=["token", "password"])
def test_no_token_and_no_password_goes_elsewhere(
    there: Elsewhere, status: int, login: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "" if login else TOKEN)
    with FaultProxy(free_port()) as proxy:
        proxy.plan(there.answer(status), times=1000)
        use(MlflowSink(f"mlflow+http://{login}127.0.0.1:{proxy.port}"), "0" * 32)
        assert all("authorization" in headers for headers in proxy.headers)
        assert proxy.headers
    assert there.heard == ""


@pytest.mark.parametrize("status", STATUSES)
def test_nobody_is_followed_from_https_to_http(
    there: Elsewhere, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trustme = pytest.importorskip("trustme", reason="comes with the environments mlflow2 and mlflow3")
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(tmp_path / "authority.pem"))
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    with FaultProxy(free_port(), tls=context) as proxy:
        proxy.plan(there.answer(status), times=1000)
        use(MlflowSink(f"mlflow+https://127.0.0.1:{proxy.port}"), "0" * 32)
        assert any(TOKEN in headers.get("authorization", "") for headers in proxy.headers)
    assert_told_nothing(there, [TOKEN])
    assert there.heard == ""


@pytest.mark.parametrize("root", ["mlflow-artifacts://localhost:{port}/x", "http://localhost:{port}{endpoint}/x"])
@pytest.mark.parametrize("login", ["", f"me:{PASSWORD}@"], ids=["token", "password"])
def test_an_artifact_server_on_another_host_is_not_told_who_we_are(
    there: Elsewhere, root: str, login: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may make an experiment says where its artifacts lie."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "" if login else TOKEN)
    there_is = root.format(port=there.port, endpoint=ENDPOINT)
    run = {"run": {"info": {"run_id": "0" * 32, "artifact_uri": there_is, "lifecycle_stage": "active"}}}
    with FaultProxy(free_port()) as proxy:
        proxy.plan(Answer(200, body=json.dumps(run).encode()), times=1000)
        use(MlflowSink(f"mlflow+http://{login}127.0.0.1:{proxy.port}"), "0" * 32)
        assert all("authorization" in headers for headers in proxy.headers)
        assert proxy.headers
    assert "metrics.json" in there.heard
    assert_told_nothing(there, [TOKEN, PASSWORD])
