"""The run of a training."""

from __future__ import annotations

from stagesink.planning import StrPath
from stagesink.stage_helpers import upload_training_artifacts
from stagesink.trackers.base import StageTracker


class MLflowTrainingTracker(StageTracker):
    """The run of a training; takes what :class:`.StageTracker` takes.

    Examples
    --------
    >>> with MLflowTrainingTracker(experiment="digits", sweep_run_id=sweep.run_id) as tracker:
    ...     tracker.log_params({"learning_rate": 0.003})
    ...     tracker.log_metrics({"accuracy": 0.97}, step=20)
    ...     tracker.log_training_artifacts("out/checkpoint", "out/metrics.json")
    {'checkpoint': True, 'metrics_json': True}
    """

    stage = "training"

    def log_training_artifacts(
        self, checkpoint_dir: StrPath | None, metrics_json_path: StrPath | None = None
    ) -> dict[str, bool]:
        """Upload what the training hands over, as :func:`stagesink.upload_training_artifacts` does."""
        return upload_training_artifacts(checkpoint_dir, metrics_json_path, **self._uploads)
