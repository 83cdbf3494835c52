"""The four helpers, as the end of each stage calls them."""

from __future__ import annotations

import json
import sys
import types
import uuid
from pathlib import Path
from typing import Any

import pytest
from outside import files_in

from stagesink import (
    upload_benchmark_artifacts,
    upload_conversion_artifacts,
    upload_hpo_artifacts,
    upload_training_artifacts,
)
from stagesink.errors import EmptyTree, SinkError, SourceKindError, SourceNotFound
from stagesink.sinks.memory import MemorySink
from stagesink.testing import FaultySink, fails


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink(uuid.uuid4().hex)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "out" / "checkpoint"
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def report(tmp_path: Path) -> Path:
    file = tmp_path / "report of mine.json"
    file.write_text('{"accuracy": 0.9}')
    return file


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"onnx")
    return file


@pytest.fixture
def active_run(monkeypatch: pytest.MonkeyPatch) -> str:
    """An active MLflow run; mlflow itself comes with a later release."""
    mlflow = types.ModuleType("mlflow")
    run = types.SimpleNamespace(info=types.SimpleNamespace(run_id="active"))
    mlflow.active_run = lambda: run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    return "active"


def landed(sink: MemorySink, run_id: str = "run") -> dict[str, bytes]:
    found = {stored.key.path: sink.open(stored.key).read() for stored in sink.list(run_id)}
    return {path: data for path, data in found.items() if not path.endswith("manifest.json")}


TREE = {"checkpoint/weights.bin": b"weights", "checkpoint/config.json": b"{}"}


# -- training ----------------------------------------------------------------------------------------------------------


def test_training_uploads_checkpoint_and_metrics(sink: MemorySink, checkpoint: Path, report: Path) -> None:
    result = upload_training_artifacts(checkpoint, report, "run", sink=sink)
    assert result == {"checkpoint": True, "metrics_json": True}
    assert all(type(value) is bool for value in result.values())
    assert landed(sink) == {**TREE, "metrics.json": report.read_bytes()}


def test_training_without_metrics(sink: MemorySink, checkpoint: Path) -> None:
    assert upload_training_artifacts(checkpoint, run_id="run", sink=sink) == {"checkpoint": True}
    assert landed(sink) == TREE


def test_training_without_a_checkpoint(sink: MemorySink, report: Path) -> None:
    assert upload_training_artifacts(None, report, "run", sink=sink) == {"metrics_json": True}


@pytest.mark.parametrize(("checkpoint_is", "metrics_are"), [("missing", "there"), ("there", "missing")])
def test_what_fails_in_training_does_not_stop_the_rest(
    sink: MemorySink,
    checkpoint: Path,
    report: Path,
    tmp_path: Path,
    checkpoint_is: str,
    metrics_are: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    result = upload_training_artifacts(
        checkpoint if checkpoint_is == "there" else tmp_path / "nothing",
        report if metrics_are == "there" else tmp_path / "nothing",
        "run",
        sink=sink,
    )
    assert result == {"checkpoint": checkpoint_is == "there", "metrics_json": metrics_are == "there"}
    assert len(caplog.messages) == 1
    assert "does not exist. Check the path." in caplog.text
    assert landed(sink) == (TREE if checkpoint_is == "there" else {"metrics.json": report.read_bytes()})


# -- conversion --------------------------------------------------------------------------------------------------------


def test_conversion_uploads_the_model_under_its_own_name(sink: MemorySink, onnx: Path) -> None:
    assert upload_conversion_artifacts(onnx, "run", sink=sink) is True
    assert landed(sink) == {"onnx_model/model.onnx": b"onnx"}


def test_conversion_uploads_its_log_too(sink: MemorySink, onnx: Path, tmp_path: Path) -> None:
    (tmp_path / "any.log").write_text("converted")
    assert upload_conversion_artifacts(onnx, "run", sink=sink, conversion_log_path=tmp_path / "any.log") is True
    assert landed(sink) == {"onnx_model/model.onnx": b"onnx", "conversion_log.txt": b"converted"}


@pytest.mark.parametrize("missing", ["model", "log"])
def test_conversion_is_false_when_one_of_two_fails(sink: MemorySink, onnx: Path, tmp_path: Path, missing: str) -> None:
    nothing = tmp_path / "nothing"
    model, log = (nothing, onnx) if missing == "model" else (onnx, nothing)
    assert upload_conversion_artifacts(model, "run", sink=sink, conversion_log_path=log) is False
    assert len(landed(sink)) == 1


def test_a_conversion_that_made_nothing_did_not_land(sink: MemorySink, caplog: pytest.LogCaptureFixture) -> None:
    nothing: Any = None
    assert upload_conversion_artifacts(nothing, "run", sink=sink) is False
    assert caplog.messages == ["onnx_model was not uploaded: Expected a path, got NoneType. Pass a str or a Path."]


# -- benchmark ---------------------------------------------------------------------------------------------------------


def test_benchmark_uploads_its_results(sink: MemorySink, report: Path) -> None:
    assert upload_benchmark_artifacts(report, "run", sink=sink) == {"benchmark_json": True}
    assert landed(sink) == {"benchmark_results.json": report.read_bytes()}


def test_a_benchmark_without_results_uploads_nothing(sink: MemorySink) -> None:
    assert upload_benchmark_artifacts(run_id="run", sink=sink) == {}
    assert landed(sink) == {}


def test_benchmark_results_that_are_missing(sink: MemorySink, tmp_path: Path) -> None:
    assert upload_benchmark_artifacts(tmp_path / "nothing", "run", sink=sink) == {"benchmark_json": False}


# -- hpo ---------------------------------------------------------------------------------------------------------------


def test_hpo_uploads_the_best_trial_as_an_archive_with_its_manifest(
    sink: MemorySink, checkpoint: Path, tmp_path: Path
) -> None:
    before = files_in(tmp_path)
    assert upload_hpo_artifacts(checkpoint, 7, "run", sink=sink) is True
    assert set(landed(sink)) == {"best_trial_checkpoint.tar.gz"}
    (manifest,) = (stored.key for stored in sink.list("run") if stored.key.path.endswith("manifest.json"))
    assert manifest.path == "best_trial_checkpoint_manifest.json"
    assert json.loads(sink.open(manifest).read())["trial_number"] == 7
    assert files_in(tmp_path) == before  # no temporary archive


def test_hpo_of_a_folder_that_is_missing(sink: MemorySink, tmp_path: Path) -> None:
    assert upload_hpo_artifacts(tmp_path / "nothing", 7, "run", sink=sink) is False
    nothing: Any = None
    assert upload_hpo_artifacts(nothing, 7, "run", sink=sink) is False
    assert landed(sink) == {}


# -- all of them -------------------------------------------------------------------------------------------------------


def all_four(checkpoint: Path, report: Path, onnx: Path, *run: str, **options: Any) -> list[bool]:
    """Call every helper as a pipeline does; return their booleans."""
    return [
        *upload_training_artifacts(checkpoint, report, *run, **options).values(),
        upload_conversion_artifacts(onnx, *run, **options),
        *upload_benchmark_artifacts(report, *run, **options).values(),
        upload_hpo_artifacts(checkpoint, 1, *run, **options),
    ]


def test_without_a_run_id_the_active_run_is_taken(
    sink: MemorySink, checkpoint: Path, report: Path, onnx: Path, active_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "not this one")
    assert all_four(checkpoint, report, onnx, sink=sink) == [True] * 5
    assert len(landed(sink, active_run)) == 6


def test_a_run_id_is_above_the_active_run(
    sink: MemorySink, checkpoint: Path, report: Path, onnx: Path, active_run: str
) -> None:
    assert all_four(checkpoint, report, onnx, "run", sink=sink) == [True] * 5
    assert landed(sink, active_run) == {}
    assert len(landed(sink)) == 6


def test_without_any_run_all_share_one_of_this_process(
    sink: MemorySink, checkpoint: Path, report: Path, onnx: Path
) -> None:
    from stagesink.runs import find_run

    assert all_four(checkpoint, report, onnx, sink=sink) == [True] * 5
    assert len(landed(sink, find_run(needs_server=False).run_id)) == 6


def test_the_configuration_rules_all(checkpoint: Path, report: Path, onnx: Path, tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/mlflow.yaml").write_text(
        f"artifacts: {{sink: 'file:{tmp_path}/store'}}\n"
        "tracking: {training: {log_checkpoint: false}, conversion: {enabled: false}}\n"
    )
    results = all_four(checkpoint, report, onnx, "run", config_dir=tmp_path / "conf")
    assert results == [False, True, False, True, True]
    paths = {path for path in files_in(tmp_path / "store/run") if not path.endswith("manifest.json")}
    assert paths == {"metrics.json", "benchmark_results.json", "best_trial_checkpoint.tar.gz"}


def test_a_trial_that_must_not_upload_uploads_nothing(
    sink: MemorySink,
    checkpoint: Path,
    report: Path,
    onnx: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_SKIP_ARTIFACT_LOGGING", "true")
    assert all_four(checkpoint, report, onnx, "run", sink=sink) == [False] * 5
    assert landed(sink) == {}
    assert set(caplog.messages) == {"Nothing is uploaded: MLFLOW_SKIP_ARTIFACT_LOGGING is set."}
    assert len(caplog.messages) == 4  # one line for each stage


def test_a_store_that_fails_is_false_everywhere(checkpoint: Path, report: Path, onnx: Path) -> None:
    sink = FaultySink(MemorySink(uuid.uuid4().hex), fails("put", SinkError("The store said no.")))
    assert all_four(checkpoint, report, onnx, "run", sink=sink) == [False] * 5


def test_a_broken_configuration_is_false_everywhere(
    sink: MemorySink, checkpoint: Path, report: Path, onnx: Path, tmp_path: Path
) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/mlflow.yaml").write_text("artifacts: [")
    assert all_four(checkpoint, report, onnx, "run", config_dir=tmp_path / "conf", sink=sink) == [False] * 5
    assert landed(sink) == {}


def test_on_failure_raise_is_taken_by_each(sink: MemorySink, checkpoint: Path, report: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    raising: dict[str, Any] = {"run_id": "run", "sink": sink, "on_failure": "raise"}
    with pytest.raises(EmptyTree):
        upload_training_artifacts(tmp_path / "empty", **raising)
    with pytest.raises(SourceKindError):
        upload_conversion_artifacts(checkpoint, **raising)
    with pytest.raises(SourceNotFound):
        upload_benchmark_artifacts(tmp_path / "nothing", **raising)
    with pytest.raises(SourceKindError):
        upload_hpo_artifacts(report, 1, **raising)
