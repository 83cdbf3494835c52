"""Which failures are tried again, how often, and after what wait."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type

from stagesink.errors import SourceChanged, TransferCancelled, TransientSinkError, VerificationError
from stagesink.transfer.options import TransferOptions

T = TypeVar("T")

_RETRIED = (TransientSinkError, SourceChanged, VerificationError)


class RetryPolicy:
    """Full-jitter exponential backoff by class of error, under one time budget for the whole transfer.

    The budget runs while nothing moves: each byte sent starts it anew, so an upload of hours that fails at its end is tried
    again. Once it is used up the backend counts as gone, and what was not tried yet fails at once instead of waiting its turn.

    Parameters
    ----------
    options : TransferOptions
    cancel : threading.Event
        Ends a wait at once.
    """

    def __init__(self, options: TransferOptions, cancel: threading.Event) -> None:
        self._options = options
        self._cancel = cancel
        self._moved_at = time.monotonic()
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
        if self._gone is not None:
            raise TransientSinkError(
                f"Not tried: nothing had moved for {self._options.budget:g} s. The last failure was: {self._gone.message}",
                hint=self._gone.hint,
            )
        try:
            # The first attempt goes past tenacity: its bookkeeping costs more than sending a small file.
            return attempt()
        except _RETRIED as first:
            return self._retrying(_after(first, attempt))

    def moved(self) -> None:
        """Note that the backend took or gave some bytes just now."""
        self._moved_at = time.monotonic()

    def _stop(self, state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, TransientSinkError):
            if time.monotonic() - self._moved_at + state.upcoming_sleep > self._options.budget:
                self._gone = error
                return True
            return state.attempt_number >= self._options.attempts
        return state.attempt_number >= self._options.reads

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        bound = min(self._options.max_wait, self._options.initial * 2.0 ** (state.attempt_number - 1))
        # Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        wait = random.uniform(0, bound)
        if isinstance(error, TransientSinkError) and error.retry_after is not None:
            return error.retry_after + wait  # jitter on top, or all who were told the same come back together
        return wait

    def _sleep(self, seconds: float) -> None:
        if self._cancel.wait(seconds):
            raise TransferCancelled("The transfer was stopped while it waited to try again.")


def _after(first: Exception, attempt: Callable[[], T]) -> Callable[[], T]:
    """Return a callable that fails with ``first`` once, then calls ``attempt``."""
    pending: list[Exception] = [first]

    def call() -> T:
        if pending:
            raise pending.pop()
        return attempt()

    return call
