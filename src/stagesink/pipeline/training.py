"""Stage two: train a classifier, write its checkpoint folder and metrics.json, and hand both to stagesink."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import joblib
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from stagesink.pipeline import data
from stagesink.trackers import MLflowTrainingTracker


@dataclass(frozen=True)
class Settings:
    """What a sweep may turn."""

    hidden_units: int = 48
    learning_rate: float = 0.005
    l2: float = 0.0001
    epochs: int = 20


@dataclass(frozen=True)
class Training:
    """What a training left behind. Its accuracy is on the validation part; ``landed`` is what stagesink answered."""

    checkpoint_dir: Path
    metrics_json: Path
    accuracy: float
    landed: dict[str, bool]


def train(settings: Settings, out_dir: Path, tracker: MLflowTrainingTracker) -> Training:
    """Train with ``settings`` and hand the result to the tracker.

    Parameters
    ----------
    settings : Settings
    out_dir : Path
        Gets ``checkpoint/`` and ``metrics.json``.
    tracker : MLflowTrainingTracker
        Of the run, which is open.
    """
    checkpoint_dir = out_dir / "checkpoint"
    checkpoint_dir.mkdir(parents=True)
    started = time.perf_counter()
    tracker.log_params(asdict(settings))
    model, accuracy = _fit(settings, checkpoint_dir / "training.log", tracker)
    joblib.dump(model, checkpoint_dir / "model.joblib")
    _write_json(checkpoint_dir / "config.json", asdict(settings))
    metrics_json = out_dir / "metrics.json"
    _write_json(metrics_json, {"validation_accuracy": accuracy, "loss": model.loss_, "seconds": _since(started)})

    landed = tracker.log_training_artifacts(checkpoint_dir, metrics_json)
    return Training(checkpoint_dir, metrics_json, accuracy, landed)


def load_model(checkpoint_dir: Path) -> Any:
    """Load the scikit-learn classifier from a checkpoint folder of ours."""
    return joblib.load(checkpoint_dir / "model.joblib")


def _fit(settings: Settings, log_path: Path, tracker: MLflowTrainingTracker) -> tuple[Any, float]:
    digits = data.load()
    model = MLPClassifier(
        hidden_layer_sizes=(settings.hidden_units,),
        learning_rate_init=settings.learning_rate,
        alpha=settings.l2,
        batch_size=64,
        random_state=data.SEED,
    )
    accuracy = 0.0
    # One thread: on so small a model more only get in each other's way, and sums come out the same each time.
    with threadpool_limits(limits=1), log_path.open("w", encoding="utf-8") as log:
        for epoch in range(1, settings.epochs + 1):
            model.partial_fit(digits.train.images, digits.train.labels, classes=range(10))
            accuracy = float(model.score(digits.validation.images, digits.validation.labels))
            log.write(f"epoch {epoch:3d}  loss {model.loss_:.4f}  validation accuracy {accuracy:.4f}\n")
            tracker.log_metrics({"loss": model.loss_, "validation_accuracy": accuracy}, step=epoch)
    return model, accuracy


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
