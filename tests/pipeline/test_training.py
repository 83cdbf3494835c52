from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="needs the extra demo")

import numpy as np

from stagesink.pipeline import data
from stagesink.pipeline.training import Settings, load_model, train
from stagesink.trackers import MLflowTrainingTracker

QUICK = Settings(hidden_units=16, epochs=3)


@pytest.fixture
def sink(tmp_path: Path) -> str:
    return f"file:{tmp_path / 'store'}"


def test_a_training_writes_checkpoint_folder_and_metrics(tmp_path: Path, sink: str) -> None:
    training = train(QUICK, tmp_path / "out", MLflowTrainingTracker("run", sink=sink))
    assert sorted(path.name for path in training.checkpoint_dir.iterdir()) == [
        "config.json",
        "model.joblib",
        "training.log",
    ]
    assert json.loads((training.checkpoint_dir / "config.json").read_text())["hidden_units"] == 16
    assert len((training.checkpoint_dir / "training.log").read_text().splitlines()) == QUICK.epochs
    assert json.loads(training.metrics_json.read_text())["validation_accuracy"] == training.accuracy


def test_both_results_of_a_training_land_byte_for_byte(tmp_path: Path, sink: str) -> None:
    training = train(QUICK, tmp_path / "out", MLflowTrainingTracker("run", sink=sink))
    assert training.landed == {"checkpoint": True, "metrics_json": True}
    landed = tmp_path / "store" / "run"
    assert (landed / "metrics.json").read_bytes() == training.metrics_json.read_bytes()
    for path in training.checkpoint_dir.iterdir():
        assert (landed / "checkpoint" / path.name).read_bytes() == path.read_bytes()


def test_the_same_settings_train_the_same_model(tmp_path: Path, sink: str) -> None:
    once = train(QUICK, tmp_path / "once", MLflowTrainingTracker("once", sink=sink))
    again = train(QUICK, tmp_path / "again", MLflowTrainingTracker("again", sink=sink))
    for left, right in zip(
        load_model(once.checkpoint_dir).coefs_, load_model(again.checkpoint_dir).coefs_, strict=True
    ):
        assert np.array_equal(left, right)


def test_the_default_settings_learn_the_digits(tmp_path: Path, sink: str) -> None:
    training = train(Settings(), tmp_path / "out", MLflowTrainingTracker("run", sink=sink))
    model, held_back = load_model(training.checkpoint_dir), data.load().held_back
    assert training.accuracy > 0.9
    assert model.score(held_back.images, held_back.labels) > 0.9
