"""The run of a conversion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagesink.planning import StrPath
from stagesink.stage_helpers import upload_conversion_artifacts
from stagesink.trackers.base import StageTracker


class MLflowConversionTracker(StageTracker):
    """The run of a conversion; takes what :class:`.StageTracker` takes, ``training_run_id`` among it."""

    stage = "conversion"

    def log_conversion_results(
        self,
        onnx_path: StrPath,
        conversion_log_path: StrPath | None = None,
        *,
        metrics: Mapping[str, Any] | None = None,
    ) -> bool:
        """Log what was measured of the conversion, and upload model and log.

        Parameters
        ----------
        onnx_path : path
        conversion_log_path : path, optional
        metrics : mapping of str to number, optional
            For example the size, or how far the outputs are apart.

        Returns
        -------
        bool
            True when every file that was given landed, as :func:`stagesink.upload_conversion_artifacts` says.
        """
        self.log_metrics(metrics or {})
        return upload_conversion_artifacts(onnx_path, conversion_log_path=conversion_log_path, **self._uploads)
