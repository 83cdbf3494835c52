from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="needs the extra demo")
pytest.importorskip("skl2onnx", reason="needs the extra demo")
pytest.importorskip("onnxruntime", reason="needs the extra demo")

import numpy as np

from stagesink.pipeline import data
from stagesink.pipeline.benchmark import OnnxClassifier
from stagesink.pipeline.conversion import Conversion, convert
from stagesink.pipeline.training import Settings, Training, load_model, train
from stagesink.trackers import MLflowConversionTracker, MLflowTrainingTracker


@pytest.fixture
def training(tmp_path: Path) -> Training:
    tracker = MLflowTrainingTracker("run", sink=f"file:{tmp_path / 'store'}")
    return train(Settings(epochs=5), tmp_path / "training", tracker)


@pytest.fixture
def conversion(training: Training, tmp_path: Path) -> Conversion:
    tracker = MLflowConversionTracker("run", sink=f"file:{tmp_path / 'store'}")
    return convert(training.checkpoint_dir, tmp_path / "conversion", tracker)


def test_the_onnx_model_predicts_what_the_trained_one_predicts(training: Training, conversion: Conversion) -> None:
    model = load_model(training.checkpoint_dir)
    for part in data.load():
        assert np.array_equal(OnnxClassifier(conversion.onnx_path).predict(part.images), model.predict(part.images))


def test_model_and_log_of_the_conversion_land(conversion: Conversion, tmp_path: Path) -> None:
    assert conversion.landed is True
    landed = tmp_path / "store" / "run"
    assert (landed / "onnx_model" / "model.onnx").read_bytes() == conversion.onnx_path.read_bytes()
    assert (landed / "conversion_log.txt").read_bytes() == conversion.log_path.read_bytes()


def test_the_log_names_the_model_the_converter_and_the_operators(conversion: Conversion) -> None:
    log = conversion.log_path.read_text()
    for word in ("MLPClassifier", "skl2onnx", "opset 17", "MatMul"):
        assert word in log
