from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="needs the extra demo")
pytest.importorskip("skl2onnx", reason="needs the extra demo")
pytest.importorskip("onnxruntime", reason="needs the extra demo")

from stagesink.pipeline import data
from stagesink.pipeline.benchmark import measure
from stagesink.pipeline.conversion import convert
from stagesink.pipeline.training import Settings, load_model, train
from stagesink.trackers import MLflowBenchmarkTracker, MLflowConversionTracker, MLflowTrainingTracker


def test_the_benchmark_measures_the_held_back_images_and_its_figures_land(tmp_path: Path) -> None:
    sink = f"file:{tmp_path / 'store'}"
    training = train(Settings(epochs=5), tmp_path / "training", MLflowTrainingTracker("run", sink=sink))
    conversion = convert(training.checkpoint_dir, tmp_path / "conversion", MLflowConversionTracker("run", sink=sink))

    benchmark = measure(conversion.onnx_path, tmp_path / "benchmark", MLflowBenchmarkTracker("run", sink=sink))

    figures = json.loads(benchmark.benchmark_json.read_text())
    held_back = data.load().held_back
    expected = load_model(training.checkpoint_dir).score(held_back.images, held_back.labels)
    assert figures["accuracy"] == benchmark.accuracy == pytest.approx(expected)
    assert figures["images"] == len(held_back.images)
    assert 0 < figures["latency_ms"]["p50"] <= figures["latency_ms"]["p95"]
    assert benchmark.landed == {"benchmark_json": True}
    landed = tmp_path / "store" / "run" / "benchmark_results.json"
    assert landed.read_bytes() == benchmark.benchmark_json.read_bytes()
