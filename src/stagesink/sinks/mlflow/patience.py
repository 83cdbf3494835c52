"""mlflow's own client tries again for minutes, and draws bars: whoever calls it from here does both by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

_ours: ContextVar[bool] = ContextVar("stagesink_calls_mlflow", default=False)


@contextmanager
def trying_once() -> Iterator[None]:
    """Have mlflow's client send each request of this thread once, and show nothing, until the block ends.

    With its seven retries, four minutes of them, inside each attempt of the engine an upload to a server that is gone
    took twelve minutes. Its variables are not touched, since other threads, and our own configuration, read them: what
    they are asked for answers otherwise here.
    """
    _teach()
    before = _ours.set(True)
    try:
        yield
    finally:
        _ours.reset(before)


@cache
def _teach() -> None:
    from mlflow import environment_variables

    for name, here in (("MLFLOW_HTTP_REQUEST_MAX_RETRIES", 0), ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", False)):
        variable = getattr(environment_variables, name, None)
        if variable is not None:
            variable.get = _answering(here, variable.get)


def _answering(here: object, elsewhere: Any) -> Any:
    return lambda: here if _ours.get() else elsewhere()
