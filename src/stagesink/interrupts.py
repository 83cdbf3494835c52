"""Ctrl-C in the middle of a wait."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_whole() -> Iterator[None]:
    """Let Ctrl-C out of the block as what it is.

    One that comes just as a wait of :mod:`threading` takes its lock again leaves it without that lock, and Python's own
    way out, which releases it, raises RuntimeError.
    """
    earlier = sys.exc_info()[1]  # the context of whatever is raised while somebody handles a Ctrl-C
    try:
        yield
    except RuntimeError as error:
        torn = error.__context__
        if isinstance(torn, KeyboardInterrupt) and torn is not earlier:
            raise torn from None
        raise
