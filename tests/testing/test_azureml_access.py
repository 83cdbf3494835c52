"""Who may do what: bearer tokens at the fake service, signed URLs at Azurite."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from azureml_servers import Caller, azureml_server, get_blob, put_blob
from delay import delayed

from stagesink.testing.azureml import FakeAzureML
from stagesink.testing.azureml.tokens import InvalidToken, Tokens

pytestmark = pytest.mark.once

BLOB = {"x-ms-blob-type": "BlockBlob", "x-ms-version": "2021-12-02"}


def _through(service: FakeAzureML, request: urllib.request.Request) -> tuple[int, bytes]:
    """Ask by way of the service's proxy, where it has one."""
    context = ssl.create_default_context(cafile=str(service.ca_path))
    proxies = {"https": service.proxy} if service.proxy else {}
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=context)
    )
    with opener.open(request, timeout=60) as response:
        return response.status, response.read()


_ACCESS: dict[str, tuple[int, Callable[[FakeAzureML], str]]] = {
    "good": (200, lambda service: service.token()),
    "none": (401, lambda service: ""),
    "no JWT": (401, lambda service: "no-token"),
    "not base64": (401, lambda service: "a.b.c"),
    "expired": (401, lambda service: service.token(expires_in=-1)),
    "not valid yet": (401, lambda service: service.token(valid_in=60)),
    "another tenant": (401, lambda service: service.token(tenant="another")),
    "another key": (401, lambda service: Tokens("tenant").make(service.workspace.path)),
    "another workspace": (403, lambda service: service.token(workspace="another")),
}


@pytest.mark.parametrize("name", _ACCESS)
def test_tokens_are_checked(caller: Caller, name: str) -> None:
    wanted, make = _ACCESS[name]
    token = make(caller.service)
    status, answer = caller.ask("GET", caller.of_run, token=token)
    assert status == wanted
    if wanted != 200:
        assert answer["error"]["innerError"]["code"] == "AuthorizationError"
        assert not token or token not in str(answer)


def test_a_job_renews_its_token(caller: Caller) -> None:
    status, answer = caller.ask("GET", caller.of_run.removesuffix("/artifacts") + "/token")
    assert status == 200
    assert answer["expiryTimeUtc"]
    assert caller.ask("GET", caller.of_run, token=answer["token"])[0] == 200


def test_a_token_cannot_be_changed() -> None:
    tokens = Tokens("tenant")
    head, claims, signature = tokens.make("workspace").split(".")
    _, other, _ = tokens.make("another").split(".")
    assert tokens.check(f"{head}.{claims}.{signature}") == "workspace"
    with pytest.raises(InvalidToken):
        tokens.check(f"{head}.{other}.{signature}")


def test_a_url_that_writes_does_nothing_else(caller: Caller) -> None:
    url = caller.write_url("a")
    assert put_blob(url, b"bytes") == 201
    assert get_blob(url)[0] == 403


def test_a_url_that_reads_does_nothing_else(caller: Caller) -> None:
    caller.register("a")
    _, content = caller.ask("GET", f"{caller.of_run}/contentinfo", path="a")
    assert put_blob(content["contentUri"], b"bytes") == 403


def test_a_url_is_good_for_one_blob(caller: Caller) -> None:
    assert put_blob(caller.write_url("a").replace(f"{caller.run_id}/a", f"{caller.run_id}/b"), b"bytes") == 403


def test_urls_expire(azureml_service: FakeAzureML) -> None:
    blobs = replace(azureml_service.blobs, sas_seconds=-1)
    assert put_blob(blobs.write_url("azureml", "a"), b"bytes") == 403


def test_no_secret_shows(azureml_service: FakeAzureML) -> None:
    token = azureml_service.token()
    assert azureml_service.azurite.key not in repr(azureml_service)
    assert token not in repr(azureml_service)


def test_https_is_checked_with_the_throw_away_authority(caller: Caller) -> None:
    with pytest.raises(urllib.error.URLError) as caught:
        urllib.request.urlopen(caller.service.url, timeout=60)
    assert isinstance(caught.value.reason, ssl.SSLCertVerificationError)
    assert caller.ask("GET", caller.of_run)[0] == 200


def test_names_of_azure_lead_to_azurite_through_the_proxy(tmp_path: Path) -> None:
    with azureml_server(tmp_path, azure_names=True) as service:
        caller = Caller(service, service.new_run())
        url = caller.write_url("a")
        assert url.startswith("https://devstoreaccount1.blob.core.windows.net/azureml/ExperimentRun/dcid.")
        data = b"bytes" * 100_000
        assert _through(service, urllib.request.Request(url, method="PUT", data=data, headers=BLOB))[0] == 201
        _, content = caller.ask("GET", f"{caller.of_run}/contentinfo", path="a")
        assert _through(service, urllib.request.Request(content["contentUri"])) == (200, data)
        with pytest.raises(OSError, match="403"):
            _through(service, urllib.request.Request("https://example.org/"))


@pytest.mark.parametrize("azure_names", [False, True])
def test_clients_come_through_what_is_put_in_front(tmp_path: Path, azure_names: bool) -> None:
    with ExitStack() as stack:
        ports: dict[int, int] = {}

        def in_front(port: int) -> int:
            ports[port] = stack.enter_context(delayed(port, 0.0, tmp_path))
            return ports[port]

        service = stack.enter_context(azureml_server(tmp_path, in_front=in_front, azure_names=azure_names))
        assert len(ports) == 2
        assert urlsplit(service.url).port == urlsplit(service.tracking_uri).port == service.port
        assert service.port in ports.values()
        caller = Caller(service, service.new_run())
        url = caller.write_url("a")
        assert urlsplit(url).port == (None if azure_names else ports[service.azurite.port])
        assert _through(service, urllib.request.Request(url, method="PUT", data=b"bytes", headers=BLOB))[0] == 201
