"""azure-identity signs in at the fake, and the token it gets is good there."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPSConnection
from pathlib import Path

import pytest
from azureml_servers import Caller, azureml_server
from servers import azurite_command

from stagesink.testing.azureml import FakeAzureML

pytestmark = pytest.mark.once

SCOPE = "https://management.azure.com/.default"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeAzureML]:
    pytest.importorskip("azure.identity", reason="comes with the extra azureml")
    with azureml_server(tmp_path_factory.mktemp("azureml"), azure_names=True) as service:
        yield service


@pytest.fixture
def login(service: FakeAzureML, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The variables of a machine where a service principal is at home; this process has them."""
    variables = service.login()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


def test_a_service_principal_signs_in(service: FakeAzureML, login: dict[str, str]) -> None:
    from azure.identity import DefaultAzureCredential

    with DefaultAzureCredential() as credential:
        token = credential.get_token(SCOPE).token
    caller = Caller(service, service.new_run())
    assert caller.ask("GET", caller.of_run, token=token)[0] == 200


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("AZURE_CLIENT_SECRET", "another", "AADSTS7000215"),
        ("AZURE_CLIENT_ID", "11111111-0000-0000-0000-000000000000", "AADSTS700016"),
    ],
)
def test_another_is_refused(
    login: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str, value: str, code: str
) -> None:
    from azure.core.exceptions import ClientAuthenticationError
    from azure.identity import EnvironmentCredential

    monkeypatch.setenv(name, value)
    with EnvironmentCredential() as credential, pytest.raises(ClientAuthenticationError, match=code):
        credential.get_token(SCOPE)


def test_another_tenant_is_unknown(login: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    from azure.core.exceptions import ClientAuthenticationError
    from azure.identity import EnvironmentCredential

    monkeypatch.setenv("AZURE_TENANT_ID", "22222222-0000-0000-0000-000000000000")
    with EnvironmentCredential() as credential, pytest.raises(ClientAuthenticationError, match="tenant"):
        credential.get_token(SCOPE)


def test_without_names_of_azures_there_is_no_sign_in(azureml_service: FakeAzureML) -> None:
    with pytest.raises(ValueError, match="azure_names"):
        azureml_service.login()


def test_names_of_azures_need_https(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="https"),
        FakeAzureML.start(tmp_path, command=[azurite_command()], azure_names=True, plain=True),
    ):
        pass


@pytest.mark.parametrize(("ahead", "status"), [(0, 200), (7200, 401), (-7200, 401)])
def test_the_services_clock_can_differ(azureml_service: FakeAzureML, ahead: float, status: int) -> None:
    caller = Caller(azureml_service, azureml_service.new_run())
    token = azureml_service.token()
    right, _ = _asked(caller, token)
    azureml_service.faults.clock_ahead = ahead
    try:
        date, answered = _asked(caller, token)
    finally:
        azureml_service.faults.clear()
    assert answered == status
    assert abs((date - right).total_seconds() - ahead) < 600


def _asked(caller: Caller, token: str) -> tuple[datetime, int]:
    """Return the date of an answer, and its status."""
    assert caller.service.certificates is not None
    context = caller.service.certificates.client_context()
    connection = HTTPSConnection("127.0.0.1", caller.service.port, context=context, timeout=60)
    try:
        connection.request("GET", caller.of_run, headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        answer.read()
        return parsedate_to_datetime(answer.headers["Date"]), answer.status
    finally:
        connection.close()
