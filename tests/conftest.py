"""What every test stands on: the same examples in CI each time, no setting of the machine, one server of each kind."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from servers import FtpServer, S3Server, ftp_server, installed, moto_server, shared

# No deadline: a test must not fail because the machine is busy.
settings.register_profile("local", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

_SETTINGS = ("STAGESINK_", "MLFLOW_", "AZUREML_")


@pytest.fixture(autouse=True)
def _no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(_SETTINGS)]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def moto(request: pytest.FixtureRequest) -> S3Server:
    installed("s3fs", "moto", "flask")
    return shared(request, "moto", moto_server)


@pytest.fixture(scope="session")
def bucket(moto: S3Server) -> str:
    moto.boto3().create_bucket(Bucket="stagesink")
    return "stagesink"


@pytest.fixture(scope="session")
def ftp(request: pytest.FixtureRequest) -> FtpServer:
    installed("pyftpdlib")
    return shared(request, "ftp", ftp_server)
