"""obstore's own objects: made when they are needed, and never used in a forked child.

obstore's threads do not survive a fork, but what they wait on does: a child that uses obstore after its parent had
hangs for ever, and crashes the parent (they share one epoll instance; seen with 0.12). There fsspec carries, and what
the parent had made is never dropped (:mod:`stagesink.sinks._forks`).
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from stagesink.errors import ConfigError
from stagesink.sinks._forks import never_dropped_in_children
from stagesink.sinks.obstore.settings import Settings

_NO_LIMIT = timedelta(days=30)  # for a whole answer: how long it takes depends on its size
_forked = False


def usable() -> bool:
    """Tell whether this process may use obstore: not when it was forked from one that had loaded it."""
    return not _forked


def make(settings: Settings) -> Any:
    """Make the store. obstore looks at the environment too, so whatever matters is told.

    Raises
    ------
    ConfigError
        A credential is malformed, or the file that should hold it.
    """
    from obstore import exceptions, store

    connect, answer = settings.seconds
    client: dict[str, Any] = {
        "allow_http": settings.endpoint.lower().startswith("http://"),
        "connect_timeout": timedelta(seconds=connect),
        "read_timeout": timedelta(seconds=answer),
        "timeout": _NO_LIMIT,
    }
    if settings.authorities:
        try:
            client["root_certificate"] = b"\n".join(Path(name).read_bytes() for name in settings.authorities)
        except OSError as error:
            raise ConfigError(
                f"{error.filename} cannot be read: {error.strerror}.",
                hint="The variables AWS_CA_BUNDLE, REQUESTS_CA_BUNDLE and SSL_CERT_FILE name PEM files.",
            ) from error
    retry = {"max_retries": 0, "retry_timeout": timedelta(0)}  # retrying is the engine's
    try:
        return never_dropped_in_children(
            getattr(store, settings.kind)(
                settings.bucket, config=dict(settings.config), client_options=client, retry_config=retry
            )
        )
    except (exceptions.BaseError, ValueError, TypeError):
        # From None: the message quotes what it could not use.
        raise ConfigError(
            f"The credentials or the endpoint for {settings.bucket} cannot be used.",
            hint="Look for a typing error in artifacts.storage_options and in the environment.",
        ) from None


def errors() -> tuple[type[Exception], ...]:
    """Return what obstore raises: its own errors, and two of Python's."""
    from obstore import exceptions

    return exceptions.BaseError, FileNotFoundError, ValueError


def _after_fork() -> None:
    global _forked
    _forked = _forked or "obstore._obstore" in sys.modules


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
