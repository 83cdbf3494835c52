"""Stage one: an Optuna search. Each trial has its own process and uploads nothing; the best checkpoint goes up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna

from stagesink.errors import StagesinkError
from stagesink.pipeline.data import SEED
from stagesink.pipeline.training import Settings
from stagesink.trackers import MLflowSweepTracker

AT_ONCE = 2
"""Trials that run side by side."""

SPACE: dict[str, optuna.distributions.BaseDistribution] = {
    "hidden_units": optuna.distributions.IntDistribution(16, 64, step=16),
    "learning_rate": optuna.distributions.FloatDistribution(0.001, 0.02, log=True),
    "l2": optuna.distributions.FloatDistribution(0.00001, 0.01, log=True),
}


class TrialFailed(StagesinkError):
    """A trial's process ended with an error."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep found, accuracies by trial, on the validation part. ``landed`` is what stagesink answered."""

    best: Settings
    best_trial: int
    accuracies: list[float]
    landed: bool


def search(n_trials: int, out_dir: Path, tracker: MLflowSweepTracker) -> Sweep:
    """Try ``n_trials`` settings and hand the best trial's checkpoint to the tracker.

    Parameters
    ----------
    n_trials : int
    out_dir : Path
        Gets one folder per trial.
    tracker : MLflowSweepTracker
        Of the run, which is open.

    Raises
    ------
    TrialFailed
        A trial's process ended with an error; its log says which.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=SEED))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        # In rounds, so that what the sampler knows when it is asked does not hang on which process is the faster one.
        for first in range(0, n_trials, AT_ONCE):
            trials = [study.ask(SPACE) for _ in range(min(AT_ONCE, n_trials - first))]
            accuracies = pool.map(lambda trial: _try(trial.number, trial.params, out_dir, tracker), trials)
            for trial, accuracy in zip(trials, accuracies, strict=True):
                study.tell(trial, accuracy)

    best = study.best_trial
    tracker.log_params({"trials": n_trials, **{f"best_{name}": value for name, value in best.params.items()}})
    tracker.log_metrics({"best_validation_accuracy": _value(best)})
    landed = tracker.log_best_checkpoint(study, out_dir)
    return Sweep(Settings(**best.params), best.number, [_value(trial) for trial in study.trials], landed)


def _try(number: int, params: dict[str, Any], out_dir: Path, tracker: MLflowSweepTracker) -> float:
    """Give a trial its run, and return its accuracy."""
    with tracker.trial(number) as trial:
        trial.log_params(params)
        accuracy = _run_process(Settings(**params), out_dir / f"trial-{number}", trial.environment)
        trial.log_metrics({"validation_accuracy": accuracy})
        return accuracy


def _run_process(settings: Settings, folder: Path, environment: dict[str, str]) -> float:
    """Train in a process of its own and return the accuracy that it wrote into its metrics.json."""
    folder.mkdir(parents=True)
    log_path = folder / "trial.log"
    command = [sys.executable, "-m", "stagesink.pipeline.trial", str(folder), json.dumps(asdict(settings))]
    with log_path.open("wb") as log:
        done = subprocess.run(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode != 0:
        raise TrialFailed(f"{folder.name} ended with exit code {done.returncode}.", hint=f"Read {log_path}.")
    metrics: dict[str, float] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return metrics["validation_accuracy"]


def _value(trial: Any) -> float:
    return float(trial.value)
