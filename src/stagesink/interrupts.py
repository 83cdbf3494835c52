"""Ctrl-C in the middle of a wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_whole() -> Iterator[None]:
    """Let Ctrl-C out of the block as what it is.

    One that comes just as a wait of :mod:`threading` takes its lock again leaves it without that lock, and Python's own
    way out, which releases it, raises RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
