"""What every test stands on: the same examples in CI each time, no setting of the machine, one server of each kind."""

from __future__ import annotations

import os
import secrets
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from azureml_lines import Job, Lines, job_on, lines_before
from azureml_servers import azureml_server
from hypothesis import HealthCheck, settings
from mlflow_servers import AUTH_CONFIG, MlflowServer, launcher, s3_environment, workers
from servers import FtpServer, S3Server, azurite_server, ftp_server, installed, moto_server, shared

from stagesink import keeping
from stagesink.outbox import background
from stagesink.testing.azureml import FakeAzureML
from stagesink.testing.azurite import Azurite

# No deadline: a test must not fail because the machine is busy.
settings.register_profile("local", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

_SETTINGS = ("STAGESINK_", "MLFLOW_", "AZUREML_")

# The clouds' settings go before any fixture opens a store; these files would be looked for in the home folder.
for _name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
    del os.environ[_name]
os.environ.update(AWS_CONFIG_FILE=os.devnull, AWS_SHARED_CREDENTIALS_FILE=os.devnull, NETRC=os.devnull)

# A shell starts what goes to its background with SIGINT ignored, and every process of a test would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


_ONCE = ("torture", "faults", "e2e", "pipeline")


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.path.relative_to(Path(__file__).parent).parts[0] in _ONCE:
        item.add_marker("once")


@pytest.fixture(autouse=True)
def _no_settings_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(_SETTINGS)]:
        monkeypatch.delenv(name)
    # What a test cannot land must not wait in the working folder, nor for the next test.
    monkeypatch.setenv("STAGESINK_OUTBOX_PATH", str(tmp_path_factory.getbasetemp() / f"outbox-{secrets.token_hex(6)}"))
    yield
    keeping._opened.clear()  # thousands of tests, each with an outbox of its own
    for uploader in background.uploaders_here():
        _end(uploader)
    background._uploaders.clear()


def _end(uploader: background.BackgroundUploader) -> None:
    """End what is tried for ever, with the attempt that is under way."""
    with uploader._changed:
        uploader._over = True
        uploader._changed.wait_for(lambda: not uploader._busy, 30)
        uploader._jobs.clear()


@pytest.fixture(scope="session")
def moto(request: pytest.FixtureRequest) -> S3Server:
    installed("s3fs", "moto", "flask")
    return shared(request, "moto", moto_server)


@pytest.fixture(scope="session")
def bucket(moto: S3Server) -> str:
    moto.boto3().create_bucket(Bucket="stagesink")
    return "stagesink"


@pytest.fixture(scope="session")
def azurite(request: pytest.FixtureRequest) -> Azurite:
    """Azure's blob store; it has the container ``stagesink``."""
    installed("adlfs", "azure.storage.blob")
    return shared(request, "azurite", azurite_server)


@pytest.fixture(scope="session")
def azureml_service(request: pytest.FixtureRequest) -> FakeAzureML:
    """Azure ML's calls over an Azurite of its own, with https."""
    return shared(request, "azureml", azureml_server)


@pytest.fixture(scope="session")
def azureml_lines(request: pytest.FixtureRequest, azureml_service: FakeAzureML) -> Lines:
    """Another service over the same Azurite, with a proxy before each."""
    return shared(request, "azureml-lines", lambda folder: lines_before(azureml_service, folder))


@pytest.fixture
def job(azureml_lines: Lines, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    """The environment of an Azure ML job with a run of its own, and the sink that it means."""
    with job_on(azureml_lines, monkeypatch) as job:
        yield job


@pytest.fixture(scope="session")
def ftp(request: pytest.FixtureRequest) -> FtpServer:
    installed("pyftpdlib")
    return shared(request, "ftp", ftp_server)


@pytest.fixture(scope="session")
def mlflow() -> ModuleType:
    """The package mlflow. Its import may warn: old versions use what newer packages have deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: ModuleType = pytest.importorskip("mlflow", reason="comes with an extra")
        return module


@pytest.fixture(scope="session")
def mlflow_moto(request: pytest.FixtureRequest) -> S3Server:
    """S3 for MLflow servers, and for clients that go to it directly; it has the bucket ``mlflow``."""
    port, _ = launcher(request).ask("moto")
    moto = S3Server(port)
    moto.boto3().create_bucket(Bucket="mlflow")
    return moto


@pytest.fixture(scope="session")
def mlflow_server(request: pytest.FixtureRequest, mlflow_moto: S3Server) -> MlflowServer:
    """A server that proxies into a folder. Runs of an experiment with a location of its own are reached directly."""
    keeps = ("--artifacts-destination", "artifacts")
    return MlflowServer(*launcher(request).ask("folder", *workers(), *keeps, **s3_environment(mlflow_moto)))


@pytest.fixture(scope="session")
def mlflow_s3_server(request: pytest.FixtureRequest, mlflow_moto: S3Server) -> MlflowServer:
    """A server that proxies into S3."""
    keeps = ("--artifacts-destination", "s3://mlflow/proxied")
    return MlflowServer(*launcher(request).ask("s3", *workers(), *keeps, **s3_environment(mlflow_moto)))


@pytest.fixture(scope="session")
def mlflow_auth_server(request: pytest.FixtureRequest) -> MlflowServer:
    """A server that asks for user and password; the user ``admin`` may do anything, others read."""
    installed("flask_wtf")
    keeps = ("--artifacts-destination", "artifacts", "--app-name", "basic-auth")
    port, folder = launcher(request).ask("auth", *workers(), *keeps, MLFLOW_AUTH_CONFIG_PATH=str(AUTH_CONFIG))
    return MlflowServer(port, folder, "admin", "basic-auth-password")
