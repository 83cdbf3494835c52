"""Which run the artifacts belong to."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stagesink.errors import RunNotFound

_log = logging.getLogger("stagesink")

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u to misread
_RANDOM_LETTERS = 7
"""35 bits: a thousand processes that start in the same second collide once in 70,000 times."""

MADE_HERE = "made for this process"
"""Where a run was found that nothing names."""

_lock = threading.Lock()
_local_run_id: str | None = None


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run id and where it was found."""

    run_id: str
    source: str


def get_mlflow_run_id() -> str | None:
    """Return the active MLflow run's id, else ``MLFLOW_RUN_ID``, else None. Never raises; mlflow is not needed.

    MLflow keeps a run active per thread: ask in the thread that started it.
    """
    return _active_mlflow_run() or os.environ.get("MLFLOW_RUN_ID") or None


def active_tracking_uri() -> str | None:
    """Return mlflow's tracking URI where a run is active in this thread, else None. May hold a password. Never raises.

    It is what that run was started on, unless ``mlflow.set_tracking_uri`` was called since.
    """
    if _active_mlflow_run() is None:
        return None
    return _told("tracking URI", lambda mlflow: mlflow.get_tracking_uri())


def _active_mlflow_run() -> str | None:
    return _told("active run", _id_of_active_run)


def _id_of_active_run(mlflow: Any) -> object:
    run = mlflow.active_run()
    return run.info.run_id if run is not None else None


def _told(what: str, ask: Callable[[Any], object]) -> str | None:
    """Return what an imported mlflow answers, if that is text."""
    # Importing mlflow takes seconds, and a run that is active in this process means that it was imported.
    mlflow = sys.modules.get("mlflow")
    if mlflow is None:
        return None
    try:
        told = ask(mlflow)
    except _mlflow_trouble() as error:
        _log.debug("mlflow was asked for its %s and failed: %s", what, type(error).__name__)
        return None
    return told if isinstance(told, str) and told else None


def _mlflow_trouble() -> tuple[type[Exception], ...]:
    """Return what a half-imported, mismatched or broken mlflow raises, and its own exception where it is loaded."""
    own = getattr(sys.modules.get("mlflow.exceptions"), "MlflowException", None)
    known = (AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError, TypeError, ValueError)
    return (*known, own) if isinstance(own, type) and issubclass(own, Exception) else known


def named_run(run_id: str | None = None, *, environ: Mapping[str, str] = os.environ) -> FoundRun | None:
    """Find the run: argument, ``STAGESINK_RUN_ID``, active MLflow run, ``MLFLOW_RUN_ID``, ``AZUREML_RUN_ID``.

    Parameters
    ----------
    run_id : str, optional
        Named by the caller. Whether it is a valid one is :class:`~stagesink.artifacts.ArtifactKey`'s business.
    environ : mapping of str to str
        The environment. An empty variable counts as unset.

    Returns
    -------
    FoundRun or None
        None when nothing names a run.
    """
    if run_id is not None:
        return FoundRun(run_id, "argument")
    if named := environ.get("STAGESINK_RUN_ID"):
        return FoundRun(named, "STAGESINK_RUN_ID")
    if active := _active_mlflow_run():
        return FoundRun(active, "active MLflow run")
    for variable in ("MLFLOW_RUN_ID", "AZUREML_RUN_ID"):
        if named := environ.get(variable):
            return FoundRun(named, variable)
    return None


def find_run(run_id: str | None = None, *, needs_server: bool, environ: Mapping[str, str] = os.environ) -> FoundRun:
    """Find the run as :func:`named_run` does, and make one up where nothing names it.

    Parameters
    ----------
    run_id, environ
        As :func:`named_run` takes them.
    needs_server : bool
        The sink stores under runs that a tracking server knows, so none can be made up here. Otherwise, when there is
        no run, one run id is made for this process: sortable by time, the same in all threads, inherited over fork.

    Raises
    ------
    RunNotFound
        There is no run and the sink needs one.
    """
    found = named_run(run_id, environ=environ)
    if found is not None:
        return found
    if needs_server:
        raise RunNotFound(
            "There is no run to upload to.",
            hint="Pass run_id=, set STAGESINK_RUN_ID or MLFLOW_RUN_ID, or call it inside `with mlflow.start_run():`.",
        )
    return FoundRun(_run_of_this_process(), MADE_HERE)


def new_run_id() -> str:
    """Return an id for a run that no server has made: sortable by time."""
    letters = "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_LETTERS))
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{letters}"


def _run_of_this_process() -> str:
    global _local_run_id
    with _lock:
        if _local_run_id is None:
            _local_run_id = new_run_id()
            # A warning, so that it is seen where nobody configured logging: whoever seeks the artifacts needs it.
            _log.warning(
                "No run was named: this process uploads to run %s. Set STAGESINK_RUN_ID to name it.", _local_run_id
            )
        return _local_run_id


def _new_lock_after_fork() -> None:
    # Another thread may have held it when this process was forked, and that thread is not here to let go.
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock_after_fork)
