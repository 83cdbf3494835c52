"""What goes wrong to order: answers that are not the service's own, late answers, and URLs that give no access."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Literal, TypeVar

F = TypeVar("F")


@dataclass(frozen=True)
class Answer:
    """An answer instead of the true one; nothing has been done for the call."""

    status: int
    body: bytes
    content_type: str
    retry_after: str | None = None


@dataclass(frozen=True)
class Delay:
    """The true answer, late."""

    seconds: float


@dataclass(frozen=True)
class Partial:
    """A batch of which only the first few paths are registered and answered."""

    paths: int
    code: str | None
    inner: str | None = None


Why = Literal["signature", "expired", "early", "permission", "container"]


@dataclass(frozen=True)
class BadUrl:
    """A blob URL that Azurite refuses."""

    why: Why


@dataclass
class Faults:
    """Orders what goes wrong, each for a number of calls.

    Calls are named as in :data:`stagesink.testing.azureml.CALLS`; ``None`` stands for every call.

    Attributes
    ----------
    clock_ahead : float
        Seconds by which the service's clock differs from this machine's: it judges tokens by it, and its answers say
        so in ``Date``.
    """

    clock_ahead: float = 0.0

    _orders: list[tuple[str | None, object, int]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def answer(
        self,
        status: int,
        body: bytes | None = None,
        *,
        times: int = 1,
        call: str | None = None,
        retry_after: str | None = None,
        content_type: str = "application/json",
    ) -> None:
        """Give another answer, such as 429 or 503.

        Parameters
        ----------
        status : int
        body : bytes, optional
            Default: an error as the service words it.
        times : int
        call : str, optional
        retry_after : str, optional
            The header ``Retry-After``: seconds, or a date.
        content_type : str
        """
        self._order(call, Answer(status, body if body is not None else b"", content_type, retry_after), times)

    def page(self, *, times: int = 1, call: str | None = None) -> None:
        """Give a web page with status 200, as a proxy's log-in page is."""
        body = b"<!DOCTYPE html><html><title>Sign in</title><body>Please sign in to the network.</body></html>"
        self.answer(200, body, times=times, call=call, content_type="text/html; charset=utf-8")

    def slow(self, seconds: float, *, times: int = 1, call: str | None = None) -> None:
        """Answer late."""
        self._order(call, Delay(seconds), times)

    def partial_batch(
        self, paths: int, *, code: str | None = "ServiceError", inner: str | None = None, times: int = 1
    ) -> None:
        """Register only the first paths of a batch.

        Parameters
        ----------
        paths : int
        code : str, optional
            What ``errors`` says of the others; ``None`` leaves them out of the answer.
        inner : str, optional
            The inner code, such as ``"BadArgument"``.
        times : int
        """
        self._order("register", Partial(paths, code, inner), times)

    def bad_urls(self, why: Why = "signature", *, times: int = 1, call: str | None = None) -> None:
        """Give blob URLs that Azurite refuses.

        Parameters
        ----------
        why : {"signature", "expired", "early", "permission", "container"}
            Signed with another key; expired; not valid yet, as clocks that differ make it; signed for another
            purpose: all 403. Or its container does not exist: 404.
        times : int
        call : str, optional
        """
        self._order(call, BadUrl(why), times)

    def clear(self) -> None:
        """Forget what was ordered and has not happened; the clock is right again."""
        self.clock_ahead = 0.0
        with self._lock:
            self._orders.clear()

    @property
    def pending(self) -> int:
        """How many are still to happen."""
        with self._lock:
            return sum(times for _, _, times in self._orders)

    def _order(self, call: str | None, fault: object, times: int) -> None:
        with self._lock:
            self._orders.append((call, fault, times))

    def take(self, call: str, kind: type[F]) -> F | None:
        """Return what was ordered next for a call, and count it as done; the service asks this."""
        if not self._orders:
            return None
        with self._lock:
            for place, (wanted, fault, times) in enumerate(self._orders):
                if wanted in (None, call) and isinstance(fault, kind):
                    if times > 1:
                        self._orders[place] = (wanted, fault, times - 1)
                    else:
                        del self._orders[place]
                    return fault
        return None
