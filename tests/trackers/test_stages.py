"""What each stage's tracker hands over, and where it lands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlflow_servers import MlflowServer

from stagesink.trackers import MLflowBenchmarkTracker, MLflowConversionTracker, MLflowTrainingTracker


def test_a_training_lands_its_checkpoint_and_metrics(out: Path, tmp_path: Path) -> None:
    tracker = MLflowTrainingTracker("run", sink=f"file:{tmp_path / 'store'}")
    assert tracker.log_training_artifacts(out / "checkpoint", out / "metrics.json") == {
        "checkpoint": True,
        "metrics_json": True,
    }
    assert tracker.log_training_artifacts(None, out / "metrics.json") == {"metrics_json": True}
    landed = tmp_path / "store" / "run"
    assert (landed / "checkpoint" / "model.bin").read_bytes() == b"weights"
    assert (landed / "metrics.json").read_bytes() == (out / "metrics.json").read_bytes()


def test_a_conversion_lands_model_and_log_and_logs_what_was_measured(
    server: MlflowServer, client: Any, out: Path, tmp_path: Path
) -> None:
    with MLflowConversionTracker(sink=server.sink_uri, training_run_id="t") as tracker:
        assert tracker.log_conversion_results(out / "model.onnx", out / "conversion.log", metrics={"bytes": 4}) is True
    (tmp_path / "down").mkdir()
    there = server.downloaded(str(tracker.run_id), tmp_path / "down")
    assert there["onnx_model/model.onnx"] == b"onnx"
    assert there["conversion_log.txt"] == b"converted\n"
    run = client.get_run(tracker.run_id)
    assert run.data.metrics == {"bytes": 4}
    assert run.data.tags["stagesink.training_run_id"] == "t"


def test_a_conversion_whose_log_is_missing_is_not_all_there(out: Path, tmp_path: Path) -> None:
    tracker = MLflowConversionTracker("run", sink=f"file:{tmp_path / 'store'}")
    assert tracker.log_conversion_results(out / "model.onnx") is True
    assert tracker.log_conversion_results(out / "model.onnx", out / "no.log") is False


def test_a_benchmark_lands_its_file_and_logs_its_figures(
    server: MlflowServer, client: Any, out: Path, tmp_path: Path
) -> None:
    with MLflowBenchmarkTracker(sink=server.sink_uri) as tracker:
        assert tracker.log_benchmark_results(metrics={"p50_ms": 1.5}) == {}
        assert tracker.log_benchmark_results(out / "benchmark.json", {"p95_ms": 2}) == {"benchmark_json": True}
    assert client.get_run(tracker.run_id).data.metrics == {"p50_ms": 1.5, "p95_ms": 2}
    (tmp_path / "down").mkdir()
    there = server.downloaded(str(tracker.run_id), tmp_path / "down")
    assert there["benchmark_results.json"] == (out / "benchmark.json").read_bytes()


def test_figures_that_cannot_be_logged_keep_no_file_back(out: Path, server: MlflowServer) -> None:
    with MLflowBenchmarkTracker(sink=server.sink_uri) as tracker:
        landed = tracker.log_benchmark_results(out / "benchmark.json", {"p50_ms": "1.5 ms"})
    assert landed == {"benchmark_json": True}
