"""Which sink: the one that was named, or the one that the surroundings call for, and why."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagesink.errors import ConfigError
from stagesink.redaction import without_secrets
from stagesink.runs import active_tracking_uri
from stagesink.sinks.registry import scheme_of

if TYPE_CHECKING:
    from stagesink.config import Config

AUTO = "auto"
DEFAULT_SINK = "file:./artifacts"
"""Where ``auto`` goes when nothing speaks for another place; relative to the working folder."""

_BARE_WORDS = ("databricks", "databricks-uc")
"""Tracking URIs of mlflow's without a colon that are no paths."""


@dataclass(frozen=True, slots=True)
class SinkChoice:
    """The sink that will be used.

    Parameters
    ----------
    uri : str
        For :func:`~stagesink.sinks.registry.open_sink`. May hold a password, so it is not in the repr; print ``shown``.
    why : str
        What decided it, free of secrets.
    """

    uri: str = field(repr=False)
    why: str

    @property
    def shown(self) -> str:
        """The URI without its secrets."""
        return without_secrets(self.uri)


def choose_sink(config: Config, argument: str | None = None, environ: Mapping[str, str] = os.environ) -> SinkChoice:
    """Choose the sink: argument, ``STAGESINK_SINK``, ``artifacts.sink``, else what the surroundings call for.

    ``auto`` takes Azure ML inside its jobs, then the store of the MLflow run that is active in this thread, then what
    ``MLFLOW_TRACKING_URI`` names, then a local folder. It never puts artifacts elsewhere because a package for that is
    missing.

    Parameters
    ----------
    config : Config
        Its ``artifacts.sink`` is the file's or the environment's.
    argument : str, optional
        URI, or ``auto`` to set aside what is configured.
    environ : mapping of str to str
        Where the variables of Azure ML and MLflow are looked up; an empty one counts as unset.

    Raises
    ------
    ConfigError
        The argument is empty.
    """
    if argument == "":
        raise ConfigError("The sink is empty.", hint=f"Name one, for example {DEFAULT_SINK}, or leave it out.")
    uri = argument if argument is not None else config.artifacts.sink
    origin = "argument" if argument is not None else config.origin("artifacts.sink")
    if uri != AUTO:
        return SinkChoice(uri, f"set by {origin}")
    return _surroundings(environ)


def _surroundings(environ: Mapping[str, str]) -> SinkChoice:
    tracking = environ.get("MLFLOW_TRACKING_URI", "")
    to_azure = scheme_of(tracking) == "azureml"
    workspace = environ.get("AZUREML_ARM_WORKSPACE_NAME")
    if environ.get("AZUREML_RUN_ID") and (workspace or to_azure):
        return SinkChoice("azureml:", "this is an Azure ML job (AZUREML_RUN_ID is set)")
    active = active_tracking_uri()
    if active is not None and not _is_same(active, tracking):
        # mlflow's default store, or mlflow.set_tracking_uri before MLflow 3, which sets no variable: the run is there.
        return SinkChoice(_sink_of(active), f"an MLflow run is active in {without_secrets(active)!r}")
    if tracking:
        return SinkChoice(
            "azureml:" if to_azure else "mlflow:", f"MLFLOW_TRACKING_URI is {without_secrets(tracking)!r}"
        )
    return SinkChoice(DEFAULT_SINK, "nothing names a sink, an Azure ML job or an MLflow server")


def _is_same(active: str, tracking: str) -> bool:
    return active.strip().rstrip("/") == tracking.strip().rstrip("/")


def _sink_of(tracking_uri: str) -> str:
    scheme = scheme_of(tracking_uri)
    if scheme == "azureml":
        return tracking_uri
    if tracking_uri in _BARE_WORDS:
        return f"mlflow+{tracking_uri}:"
    if scheme == "file" and ":" not in tracking_uri:  # mlflow takes bare paths too
        return f"mlflow+{Path(tracking_uri).absolute().as_uri()}"
    return f"mlflow+{tracking_uri}"


def storage_options_for(config: Config, uri: str) -> Mapping[str, Any]:
    """Return ``artifacts.storage_options`` for a sink of the kind they were meant for, and none for others."""
    configured = config.artifacts.sink
    if configured != AUTO and scheme_of(configured) != scheme_of(uri):
        return {}
    return config.artifacts.storage_options
