"""A stage's code in an Azure ML job: the helpers and the command, read back by Microsoft's own client for blobs."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from azureml_servers import azureml_server
from typer.testing import CliRunner

pytest.importorskip("urllib3", reason="comes with the extra azureml")

from stagesink import (
    ArtifactUploader,
    list_committed,
    open_sink,
    upload_benchmark_artifacts,
    upload_conversion_artifacts,
    upload_hpo_artifacts,
    upload_training_artifacts,
)
from stagesink.cli.app import app
from stagesink.sinks.azureml.auth import SCOPE
from stagesink.testing.azureml import FakeAzureML


@pytest.fixture
def run_id(azureml_service: FakeAzureML, monkeypatch: pytest.MonkeyPatch) -> str:
    """The run of the job whose environment is set."""
    run_id = azureml_service.new_run("training")
    for name, value in azureml_service.environment(run_id).items():
        monkeypatch.setenv(name, value)
    return run_id


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """What the stages of a pipeline write."""
    checkpoint = tmp_path / "checkpoint"
    (checkpoint / "states").mkdir(parents=True)
    for name, size in {"model.bin": 100_000, "states/optimizer.bin": (9 << 20) + 7, "states/empty": 0}.items():
        (checkpoint / name).write_bytes(os.urandom(size))
    for name in ("metrics.json", "benchmark.json", "model.onnx", "conversion_log.txt"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    return tmp_path


@contextmanager
def blobs_of(service: FakeAzureML, run_id: str) -> Iterator[dict[str, str]]:
    """Name and sha256 of each blob of a run, by Microsoft's own client."""
    container_client = pytest.importorskip("azure.storage.blob", reason="comes with the extra az").ContainerClient
    root = f"ExperimentRun/dcid.{run_id}/"
    with container_client.from_connection_string(service.azurite.connection_string, "azureml") as client:
        names = [blob.name for blob in client.list_blobs(root)]
        data = {name: client.download_blob(name).readall() for name in names}
    yield {name.removeprefix(root): hashlib.sha256(each).hexdigest() for name, each in data.items()}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_four_helpers_in_a_job(azureml_service: FakeAzureML, run_id: str, output: Path) -> None:
    """With nothing said about the sink or the run."""
    assert upload_training_artifacts(output / "checkpoint", output / "metrics.json") == {
        "checkpoint": True,
        "metrics_json": True,
    }
    assert upload_conversion_artifacts(output / "model.onnx") is True
    assert upload_benchmark_artifacts(output / "benchmark.json") == {"benchmark_json": True}
    assert upload_hpo_artifacts(output / "checkpoint", 7) is True
    with blobs_of(azureml_service, run_id) as found:
        for name in ("model.bin", "states/optimizer.bin", "states/empty"):
            assert found[f"checkpoint/{name}"] == sha256(output / "checkpoint" / name)
        assert found["metrics.json"] == sha256(output / "metrics.json")
        assert found["onnx_model/model.onnx"] == sha256(output / "model.onnx")
        assert found["benchmark_results.json"] == sha256(output / "benchmark.json")
        assert {"best_trial_checkpoint.tar.gz", "best_trial_checkpoint_manifest.json"} <= set(found)
    registered = azureml_service.state.runs[run_id].artifacts.page("", "", 1000)[0]
    assert {artifact.path for artifact in registered} == set(found)


def test_the_receipts_name_the_proof(run_id: str, output: Path) -> None:
    with ArtifactUploader(stage="training") as uploader:
        assert uploader.upload_checkpoint(output / "checkpoint")
        assert uploader.upload_checkpoint(output / "checkpoint")
    first, second = uploader.receipts[:3], uploader.receipts[3:]
    assert {receipt.status for receipt in first} == {"uploaded"}
    proofs = {receipt.key.path: receipt.verified_by for receipt in first}
    assert proofs.pop("checkpoint/states/optimizer.bin") == "size"  # the store checks its blocks, and has no sum of all
    assert set(proofs.values()) == {"md5"}
    assert {receipt.status for receipt in second} == {"unchanged"}


def test_neither_mlflow_nor_its_plugin_is_imported(azureml_service: FakeAzureML, run_id: str, output: Path) -> None:
    program = (
        "import sys\n"
        "from stagesink import upload_training_artifacts\n"
        "done = upload_training_artifacts(sys.argv[1], sys.argv[2])\n"
        "assert done == {'checkpoint': True, 'metrics_json': True}, done\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'mlflow', 'azureml', 'azure', 'requests', 'fsspec'}, loaded\n"
    )
    command = [sys.executable, "-c", program, str(output / "checkpoint"), str(output / "metrics.json")]
    subprocess.run(command, check=True)
    with blobs_of(azureml_service, run_id) as found:
        assert found["metrics.json"] == sha256(output / "metrics.json")


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    logger = logging.getLogger("stagesink")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


# -- the command -------------------------------------------------------------------------------------------------------


def command(*arguments: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), prog_name="stagesink")
    assert result.exit_code == code, result.output
    return result.output


def test_upload_ls_verify_restore(run_id: str, output: Path, tmp_path: Path) -> None:
    command("upload", output / "checkpoint", "--stage", "training")
    command("upload", output / "metrics.json", "--to", "metrics.json")
    listed = command("ls")
    assert "checkpoint" in listed
    assert "metrics.json" in listed
    command("verify")
    command("restore", "checkpoint", "--to", tmp_path / "restored")
    for name in ("model.bin", "states/optimizer.bin", "states/empty"):
        assert sha256(tmp_path / "restored" / "checkpoint" / name) == sha256(output / "checkpoint" / name)


def test_doctor_probes_in_a_run_that_it_deletes(azureml_service: FakeAzureML, run_id: str) -> None:
    before = set(azureml_service.state.runs)
    found = json.loads(command("doctor", "--json"))
    assert "azureml:" in json.dumps(found)
    (made,) = set(azureml_service.state.runs) - before
    assert azureml_service.state.runs[made].deleted
    assert azureml_service.state.runs[made].experiment.name == "training"
    with blobs_of(azureml_service, made) as left:
        assert left == {}


def test_doctor_from_a_laptop(azureml_service: FakeAzureML, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZUREML_RUN_ID", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name)
    command("doctor", "--sink", "azureml:")
    assert "stagesink-doctor" in azureml_service.state.experiments


@dataclass
class Login:
    """A credential of azure-identity's, as far as it is used, whose token the service takes."""

    token: str
    asked: list[str] = field(default_factory=list)

    def get_token(self, *scopes: str, **kwargs: object) -> Any:
        self.asked += scopes
        return SimpleNamespace(token=self.token, expires_on=time.time() + 3600)


@pytest.fixture
def laptop(azureml_service: FakeAzureML, run_id: str, monkeypatch: pytest.MonkeyPatch) -> Login:
    """No job: of its environment there is the workspace's address alone; and a login that the service takes."""
    for name in os.environ:
        if name.startswith(("AZUREML_", "MLFLOW_")) and name != "MLFLOW_TRACKING_URI":
            monkeypatch.delenv(name)
    return Login(azureml_service.token())


def test_a_laptop_that_is_logged_in(
    laptop: Login, azureml_service: FakeAzureML, run_id: str, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ``az login`` and the like, which azure-identity finds."""
    identity = pytest.importorskip("azure.identity")
    monkeypatch.setattr(identity, "DefaultAzureCredential", lambda: laptop)
    found = json.loads(command("doctor", "--sink", "azureml:", "--json"))
    assert found["ok"]
    assert set(laptop.asked) == {SCOPE}
    command("upload", output / "metrics.json", "--to", "metrics.json", "--sink", "azureml:", "--run-id", run_id)
    with blobs_of(azureml_service, run_id) as landed:
        assert landed["metrics.json"] == sha256(output / "metrics.json")


def test_a_laptop_that_hands_its_credential_over(
    laptop: Login, azureml_service: FakeAzureML, run_id: str, output: Path
) -> None:
    options = {"credential": laptop}
    with ArtifactUploader(run_id, sink="azureml:", storage_options=options, on_failure="raise") as uploader:
        assert uploader.upload_file(output / "metrics.json", "metrics.json")
    assert set(laptop.asked) == {SCOPE}
    with blobs_of(azureml_service, run_id) as landed:
        assert landed["metrics.json"] == sha256(output / "metrics.json")


def test_a_laptop_that_is_not_logged_in(laptop: Login, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    result = CliRunner().invoke(app, ["doctor", "--sink", "azureml:"], prog_name="stagesink")
    assert result.exit_code != 0
    assert "There is no token for Azure ML" in " ".join(result.output.split())


def test_doctor_says_what_is_wrong(run_id: str, azureml_service: FakeAzureML, monkeypatch: pytest.MonkeyPatch) -> None:
    token = azureml_service.token(tenant="another")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", token)
    monkeypatch.setenv("AZUREML_RUN_TOKEN", token)  # a good one would do instead
    result = CliRunner().invoke(app, ["doctor"], prog_name="stagesink")
    assert result.exit_code != 0
    assert "tenant" in " ".join(result.output.split())
    assert token not in result.output


# -- trackers ----------------------------------------------------------------------------------------------------------


def test_a_tracker_uploads_where_the_run_cannot_be_joined(
    azureml_service: FakeAzureML,
    run_id: str,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Azure ML's runs are tracked through MLflow: without it one line says so, and uploads land.

    ``tests/official`` has the same without MLflow's plug-in for Azure ML alone.
    """
    from stagesink.trackers import MLflowTrainingTracker

    monkeypatch.setitem(sys.modules, "mlflow", None)
    with MLflowTrainingTracker() as tracker:
        assert tracker.log_params({"lr": 0.1}) is False
        done: Any = tracker.log_training_artifacts(output / "checkpoint", output / "metrics.json")
    ours = [record for record in caplog.records if record.name == "stagesink" and record.levelno >= logging.WARNING]
    lines = [record.getMessage() for record in ours]
    assert len(lines) == 1, lines
    assert lines[0].startswith("The stage training has no run")
    assert "pip install 'stagesink[mlflow]'" in lines[0]
    assert done
    with open_sink_closed("azureml:") as sink:
        assert {manifest.path for manifest in list_committed(sink, run_id)} == {"checkpoint", "metrics.json"}


@contextmanager
def open_sink_closed(uri: str) -> Iterator[Any]:
    sink = open_sink(uri)
    try:
        yield sink
    finally:
        sink.close()


# -- growth ------------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("many", [2_000])
def test_many_files_in_flat_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    """What a listing and a verification hold does not grow with the number of objects beyond their own records."""
    import tracemalloc

    from stagesink.artifacts import ArtifactKey, MemorySource

    with azureml_server(tmp_path, page_size=100) as service:
        run_id = service.new_run()
        for name, value in service.environment(run_id).items():
            monkeypatch.setenv(name, value)
        with open_sink_closed("azureml:") as sink:
            peaks = []
            for count in (many // 4, many):
                there = sum(1 for _ in sink.list(run_id))
                for number in range(there, count):
                    sink.put(ArtifactKey(run_id, f"{number % 100:02}/{number:05}"), MemorySource(b"x"))
                tracemalloc.start()
                assert sum(1 for _ in sink.list(run_id)) == count
                peaks.append(tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + (1 << 20)
