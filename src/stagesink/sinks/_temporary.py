"""Temporary files, for stores that must be told a size first, or take files alone."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from stagesink.errors import SinkError


@contextmanager
def writing_temporary() -> Iterator[None]:
    """Say what a full or missing temporary folder means. For blocks whose only OSErrors are those of such files.

    Raises
    ------
    SinkError
        Not one that passes by itself, and none of the store's.
    """
    try:
        yield
    except OSError as error:
        folder = _folder()
        raise SinkError(
            f"A temporary file could not be written in {folder}: {error.strerror or type(error).__name__}.",
            hint=f"Free some space in {folder}, or set TMPDIR to another folder.",
        ) from error


@contextmanager
def closing_quietly(file: IO[Any]) -> Iterator[None]:
    """Close a temporary file: it would try once more to write what it could not, and raise that again."""
    try:
        yield
    finally:
        with suppress(OSError):
            file.close()


def _folder() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:  # none can be written
        return os.environ.get("TMPDIR") or "/tmp"
