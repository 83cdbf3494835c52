"""A run for each stage of a pipeline, with its parameters, metrics and artifacts."""

from __future__ import annotations

from stagesink.trackers.benchmark import MLflowBenchmarkTracker
from stagesink.trackers.conversion import MLflowConversionTracker
from stagesink.trackers.sweep import MLflowSweepTracker
from stagesink.trackers.training import MLflowTrainingTracker

__all__ = ["MLflowBenchmarkTracker", "MLflowConversionTracker", "MLflowSweepTracker", "MLflowTrainingTracker"]
