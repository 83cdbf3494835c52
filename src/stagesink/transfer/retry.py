"""Which failures are tried again, how often, and after what wait."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type

from stagesink.errors import SourceChanged, TransferCancelled, TransientSinkError, VerificationError
from stagesink.interrupts import interrupts_whole
from stagesink.transfer.options import TransferOptions
from stagesink.transfer.pool import stepping_aside

T = TypeVar("T")

_RETRIED = (TransientSinkError, SourceChanged, VerificationError)


class RetryPolicy:
    """Full-jitter exponential backoff by class of error, under one time budget for the whole transfer.

    The budget runs from a failure until something moves: a call that succeeds stops it, and so do more bytes than a
    client can keep in its own buffers, so an upload of hours that fails at its end is tried again. Once it is used up
    the backend counts as gone, and what was not tried yet fails at once instead of waiting its turn, unless something
    moves after all.

    Parameters
    ----------
    options : TransferOptions
    cancel : threading.Event
        Ends a wait at once.
    """

    def __init__(self, options: TransferOptions, cancel: threading.Event) -> None:
        self._options = options
        self._cancel = cancel
        self._failing_since: float | None = None
        self._gone: TransientSinkError | None = None
        self._retrying = Retrying(
            retry=retry_if_exception_type(_RETRIED),
            stop=self._stop,
            wait=self._wait,
            sleep=self._sleep,
            reraise=True,
        )

    def call(self, attempt: Callable[[], T]) -> T:
        """Call ``attempt`` until it succeeds or should not be tried again; then its last error is raised."""
        gone = self._gone
        if gone is not None:
            raise TransientSinkError(
                f"Not tried: the time for retries ({self._options.budget:g} s) was used up. "
                f"The last failure was: {gone.message}",
                hint=gone.hint,
            )
        try:
            # The first attempt goes past tenacity: its bookkeeping costs more than sending a small file.
            result = attempt()
        except _RETRIED as first:
            result = self._retrying(_after(first, attempt))
        self.moved()
        return result

    def moved(self) -> None:
        """Note that the backend took or gave something just now."""
        self._failing_since = self._gone = None

    def _stop(self, state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, TransientSinkError):
            now = time.monotonic()
            since = self._failing_since  # read once: another thread may set it to None
            if since is None:
                since = self._failing_since = now
            if now - since + state.upcoming_sleep > self._options.budget:
                self._gone = error
                return True
            return state.attempt_number >= self._options.attempts
        return state.attempt_number >= self._options.reads

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        bound = min(self._options.max_wait, self._options.initial * 2.0 ** min(state.attempt_number - 1, 64))
        # Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        wait = random.uniform(0, bound)
        if isinstance(error, TransientSinkError) and error.retry_after is not None:
            return error.retry_after + wait  # jitter on top, or all who were told the same come back together
        return wait

    def _sleep(self, seconds: float) -> None:
        with interrupts_whole(), stepping_aside():
            stopped = self._cancel.wait(seconds)
        if stopped:
            raise TransferCancelled("The transfer was stopped while it waited to try again.")


def _after(first: Exception, attempt: Callable[[], T]) -> Callable[[], T]:
    """Return a callable that fails with ``first`` once, then calls ``attempt``."""
    pending: list[Exception] = [first]

    def call() -> T:
        if pending:
            raise pending.pop()
        return attempt()

    return call
