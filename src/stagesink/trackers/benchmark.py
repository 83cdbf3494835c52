"""The run of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagesink.planning import StrPath
from stagesink.stage_helpers import upload_benchmark_artifacts
from stagesink.trackers.base import StageTracker


class MLflowBenchmarkTracker(StageTracker):
    """The run of a benchmark; takes what :class:`.StageTracker` takes, ``conversion_run_id`` among it."""

    stage = "benchmark"

    def log_benchmark_results(
        self, benchmark_json_path: StrPath | None = None, metrics: Mapping[str, Any] | None = None
    ) -> dict[str, bool]:
        """Log the figures, and upload the file that holds them all.

        Parameters
        ----------
        benchmark_json_path : path, optional
        metrics : mapping of str to number, optional
            Those that MLflow should plot and compare.

        Returns
        -------
        dict of str to bool
            ``benchmark_json``, when it was given, as :func:`stagesink.upload_benchmark_artifacts` says.
        """
        self.log_metrics(metrics or {})
        return upload_benchmark_artifacts(benchmark_json_path, **self._uploads)
