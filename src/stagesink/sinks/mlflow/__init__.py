"""MLflow runs: ``mlflow:`` and ``mlflow+<tracking URI>``."""

from __future__ import annotations

from stagesink.sinks.mlflow.sink import MlflowSink, open_mlflow, open_mlflow_client

__all__ = ["MlflowSink", "open_mlflow", "open_mlflow_client"]
