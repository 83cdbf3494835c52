"""Azure ML: the run history of a workspace, and its datastores."""

from __future__ import annotations

from stagesink.sinks.azureml.sink import AzureMLSink, open_azureml

__all__ = ["AzureMLSink", "open_azureml"]
