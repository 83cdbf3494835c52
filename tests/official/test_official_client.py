"""Microsoft's own client, azureml-mlflow, against the fake Azure ML: what it makes of it proves the fake."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import uuid
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from azureml_servers import azureml_server
from servers import installed

from stagesink import upload_training_artifacts
from stagesink.artifacts import ArtifactKey, MemorySource
from stagesink.sinks import open_sink
from stagesink.testing.azureml import FakeAzureML
from stagesink.trackers import MLflowTrainingTracker

installed("azureml", "urllib3")

# How the client and its packages warn is not our subject.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeAzureML]:
    """Over https, with Azure's names for blobs: the client downloads from no others."""
    with azureml_server(tmp_path_factory.mktemp("azureml"), azure_names=True) as service:
        yield service


@pytest.fixture
def job(service: FakeAzureML, monkeypatch: pytest.MonkeyPatch) -> str:
    """The run of a job; this process has the job's environment."""
    run_id = service.new_run("training")
    for name, value in service.environment(run_id).items():
        monkeypatch.setenv(name, value)
    return run_id


@pytest.fixture
def mlflow(job: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow

    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    return mlflow


@pytest.fixture
def client(mlflow: ModuleType) -> Any:
    return mlflow.MlflowClient()


@pytest.fixture
def run_id(client: Any) -> str:
    """A run that the official client has made."""
    experiment = client.create_experiment(f"experiment-{uuid.uuid4().hex}")
    return str(client.create_run(experiment).info.run_id)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkpoint, with names that have to be quoted and more files than one batch takes."""
    sizes = {"model.bin": 300_000, "empty": 0, "sub/größe 100% #1.txt": 17, "sub/deep/a+b=c.json": 5}
    sizes |= {f"shards/{number:03}": number for number in range(60)}
    for name, size in sizes.items():
        file = tmp_path / "checkpoint" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(random.Random(name).randbytes(size))
    return tmp_path / "checkpoint"


def _digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _in_azurite(service: FakeAzureML, run_id: str) -> dict[str, str]:
    """What azure-storage-blob finds, by the account's key and past the service."""
    from azure.storage.blob import ContainerClient

    prefix = f"ExperimentRun/dcid.{run_id}/"
    azurite = service.azurite
    with ContainerClient.from_connection_string(
        azurite.connection_string, "azureml", connection_verify=str(service.ca_path)
    ) as container:
        names = [blob.name for blob in container.list_blobs(name_starts_with=prefix)]
        return {
            name.removeprefix(prefix): hashlib.sha256(container.download_blob(name).readall()).hexdigest()
            for name in names
        }


def test_it_makes_a_run_and_logs_to_it(client: Any, run_id: str) -> None:
    client.log_param(run_id, "lr", 0.1)
    client.log_metric(run_id, "loss", 2.0, step=1)
    client.log_metric(run_id, "loss", 1.0, step=2)
    client.set_tag(run_id, "stage", "training")
    client.set_terminated(run_id)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert (run.data.params, run.data.metrics) == ({"lr": "0.1"}, {"loss": 1.0})
    assert run.data.tags["stage"] == "training"
    assert [metric.value for metric in client.get_metric_history(run_id, "loss")] == [2.0, 1.0]


def test_it_uploads_lists_and_downloads(
    mlflow: ModuleType, client: Any, run_id: str, tree: Path, tmp_path: Path, service: FakeAzureML
) -> None:
    client.log_artifacts(run_id, str(tree), "checkpoint")
    client.log_artifact(run_id, str(tree / "model.bin"))
    wanted = _digests(tree)
    assert {info.path for info in client.list_artifacts(run_id)} == {"checkpoint", "model.bin"}
    folders = {info.path for info in client.list_artifacts(run_id, "checkpoint") if info.is_dir}
    assert folders == {"checkpoint/sub", "checkpoint/shards"}
    for path in ("checkpoint", "model.bin"):
        mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=path, dst_path=str(tmp_path / "down"))
    assert _digests(tmp_path / "down" / "checkpoint") == wanted
    assert _digests(tmp_path / "down")["model.bin"] == wanted["model.bin"]
    expected = {f"checkpoint/{name}": digest for name, digest in wanted.items()} | {"model.bin": wanted["model.bin"]}
    assert _in_azurite(service, run_id) == expected


def test_a_large_file_goes_in_blocks(client: Any, run_id: str, tmp_path: Path, service: FakeAzureML) -> None:
    large = tmp_path / "large.bin"
    large.write_bytes(random.Random(1).randbytes(1 << 20) * 65)
    client.log_artifact(run_id, str(large))
    assert _in_azurite(service, run_id) == _digests(tmp_path)


def test_a_job_uploads_to_its_own_run(mlflow: ModuleType, job: str, tree: Path, service: FakeAzureML) -> None:
    with mlflow.start_run() as run:
        assert run.info.run_id == job
        mlflow.log_artifact(str(tree / "model.bin"), "checkpoint")
    assert _in_azurite(service, job) == {"checkpoint/model.bin": _digests(tree)["model.bin"]}


def test_a_path_with_no_blob_is_burnt_for_it(client: Any, run_id: str, tree: Path, service: FakeAzureML) -> None:
    service.faults.bad_urls(call="register")  # the upload dies after its path is registered
    with pytest.raises(Exception, match=r"not authorized|AuthenticationFailed|Server failed to authenticate"):
        client.log_artifact(run_id, str(tree / "model.bin"))
    for _ in range(2):
        with pytest.raises(Exception, match="Resource Conflict"):
            client.log_artifact(run_id, str(tree / "model.bin"))
    assert _in_azurite(service, run_id) == {}


def test_it_cannot_overwrite(client: Any, run_id: str, tree: Path) -> None:
    client.log_artifact(run_id, str(tree / "model.bin"))
    with pytest.raises(Exception, match="Resource Conflict"):
        client.log_artifact(run_id, str(tree / "model.bin"))


def test_ours_recovers_a_path_that_is_burnt_for_it(
    mlflow: ModuleType, client: Any, job: str, tree: Path, tmp_path: Path, service: FakeAzureML
) -> None:
    service.faults.bad_urls(call="register")
    for _ in range(2):
        with pytest.raises(Exception, match=r"authenticat|Resource Conflict"):
            client.log_artifact(job, str(tree / "model.bin"), "checkpoint")
    assert upload_training_artifacts(tree, run_id=job, sink="azureml:") == {"checkpoint": True}
    down = mlflow.artifacts.download_artifacts(run_id=job, artifact_path="checkpoint/model.bin", dst_path=str(tmp_path))
    assert Path(down).read_bytes() == (tree / "model.bin").read_bytes()


def test_it_reads_what_ours_wrote(mlflow: ModuleType, job: str, tree: Path, tmp_path: Path) -> None:
    assert upload_training_artifacts(tree, run_id=job, sink="azureml:") == {"checkpoint": True}
    down = mlflow.artifacts.download_artifacts(run_id=job, artifact_path="checkpoint", dst_path=str(tmp_path / "down"))
    assert _digests(Path(down)) == _digests(tree)


def test_ours_reads_what_it_wrote(client: Any, job: str, tree: Path) -> None:
    client.log_artifacts(job, str(tree), "checkpoint")
    with closing(open_sink("azureml:")) as sink:
        found = {}
        for stored in sink.list(job, "checkpoint"):
            with sink.open(stored.key) as stream:
                data = stream.read()
            assert len(data) == stored.size
            found[stored.key.path.removeprefix("checkpoint/")] = hashlib.sha256(data).hexdigest()
        assert found == _digests(tree)


def test_ours_overwrites_and_deletes_what_it_wrote(client: Any, job: str, tree: Path, service: FakeAzureML) -> None:
    client.log_artifact(job, str(tree / "model.bin"))
    key = ArtifactKey(job, "model.bin")
    with closing(open_sink("azureml:")) as sink:
        sink.put(key, MemorySource(b"new"))
        assert _in_azurite(service, job) == {"model.bin": hashlib.sha256(b"new").hexdigest()}
        sink.delete(key)
    assert _in_azurite(service, job) == {}
    assert client.list_artifacts(job) == []
    client.log_artifact(job, str(tree / "model.bin"))


# -- trackers ----------------------------------------------------------------------------------------------------------


def test_a_tracker_joins_the_jobs_run(mlflow: ModuleType, job: str, tree: Path, service: FakeAzureML) -> None:
    with MLflowTrainingTracker() as tracker:
        assert tracker.run_id == job
        assert tracker.log_params({"lr": 0.1}) is True
        assert all(tracker.log_training_artifacts(tree).values())
    assert service.state.runs[job].params == {"lr": "0.1"}
    assert _landed(service, job, tree)


def test_a_tracker_uploads_where_the_plug_in_is_missing(
    mlflow: ModuleType,
    job: str,
    tree: Path,
    service: FakeAzureML,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With MLflow, but without what teaches it ``azureml://``, one line says so, and uploads land."""
    from mlflow.tracking._tracking_service import utils

    stores = utils._tracking_store_registry
    monkeypatch.delitem(stores._registry, "azureml")
    stores._get_store_with_resolved_uri.cache_clear()
    caplog.clear()
    with MLflowTrainingTracker() as tracker:
        assert tracker.log_params({"lr": 0.1}) is False
        assert all(tracker.log_training_artifacts(tree).values())
    ours = [record for record in caplog.records if record.name == "stagesink" and record.levelno >= logging.WARNING]
    (line,) = [record.getMessage() for record in ours]
    assert line.startswith("The stage training has no run")
    assert "azureml-mlflow" in line
    assert _landed(service, job, tree)


def _landed(service: FakeAzureML, run_id: str, tree: Path) -> bool:
    landed = _in_azurite(service, run_id)
    return all(landed.get(f"checkpoint/{name}") == digest for name, digest in _digests(tree).items())
