"""Cumulative figures of uploads, as plain data: what a dashboard needs to see success rates."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from stagesink.artifacts import Receipt

Metrics = dict[str, dict[str, dict[str, float]]]


class UploadMetrics:
    """Counts what receipts say, by stage and sink. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._figures: Metrics = {}

    def add(self, stage: str | None, sink: str, receipts: Iterable[Receipt], seconds: float, *, failed: bool) -> None:
        """Count one upload: the receipts of its objects, its wall time in seconds, and whether it failed as a whole."""
        with self._lock:
            figures = self._figures.setdefault(stage or "", {}).setdefault(
                sink,
                dict.fromkeys(("uploads", "failures", "files", "bytes", "attempts", "retries", "seconds"), 0.0),
            )
            figures["uploads"] += 1
            figures["failures"] += failed
            figures["seconds"] += seconds
            for receipt in receipts:
                figures["attempts"] += receipt.attempts
                figures["retries"] += max(0, receipt.attempts - 1)
                if receipt.status == "uploaded":
                    figures["files"] += 1
                    figures["bytes"] += receipt.size

    def snapshot(self) -> Metrics:
        """Return a copy: ``{stage: {sink uri: figures}}``.

        The figures are ``uploads``, ``failures``, ``files``, ``bytes``, ``attempts``, ``retries`` and ``seconds``.
        """
        with self._lock:
            return {
                stage: {sink: dict(figures) for sink, figures in sinks.items()}
                for stage, sinks in self._figures.items()
            }


PROCESS_METRICS = UploadMetrics()
"""All uploads of this process, those of the stage helpers included."""


def upload_metrics() -> Metrics:
    """Return the figures of every upload this process has made, by stage and sink."""
    return PROCESS_METRICS.snapshot()
