"""How many jobs run at once: more while that gets more done, fewer when the backend asks for it."""

from __future__ import annotations

from collections.abc import Callable

_WINDOW_SECONDS = 0.25
_STEP = 1.5
_GAIN = 1.08  # what a step up has to bring, or it is taken back
_LOSS = 0.97  # what a step down may cost
_HELD = 8  # windows between two probes of a level that was found good

_NEAR = 0.7  # of the level that was refused: from there on it is approached slowly
_SLOWLY = 1.1
_CALM = 3  # windows without a refusal, after which the backend is taken for a better one


class Level:
    """The number of jobs at once, sought while they run.

    A backend that refuses is the best guide: each refusal takes one place away, so that those which were not refused
    are left, and the level climbs again, slowly near the one that was refused. Where nothing is refused, what was done
    in a window of a quarter second is compared with what was done before: a step up that brings nothing is taken back,
    and where fewer do as well there are fewer.

    Parameters
    ----------
    start, cap : int
        The first number, and the largest.
    moved : callable
        Returns how much was done so far: bytes, and something for each object.
    now : float
        Seconds of a monotonic clock.
    """

    def __init__(self, start: int, cap: int, moved: Callable[[], float], now: float) -> None:
        self.limit = start
        self._cap = cap
        self._count = moved
        self._since = now
        self._moved = moved()
        self._refused: int | None = None  # the level at the last refusal
        self._calm = 0  # windows since then
        self._before: tuple[int, float] | None = None  # the level that a probe left, and what it got done
        self._held = 0
        self._up = True

    def refused(self) -> None:
        """Note that the backend failed one job in a way that may pass: 429, 503, a timeout."""
        if self._refused is None or self._calm:
            self._refused = self.limit
        self._calm, self._before = 0, None
        self.limit = max(1, self.limit - 1)

    def observe(self, now: float) -> None:
        """Look at what was done since the last time, once a window is over, and choose the next level."""
        seconds = now - self._since
        if seconds < _WINDOW_SECONDS:
            return
        moved = self._count()
        rate = (moved - self._moved) / seconds
        self._since, self._moved = now, moved
        if self._refused is not None:
            self._calm += 1
            if self._calm > 1:
                near = self.limit >= self._refused * _NEAR and self._calm <= _CALM
                self.limit = self._stepped(_SLOWLY if near else _STEP)
        elif self._before is not None:
            self._judge(rate)
        elif self._held:
            self._held -= 1
        else:
            self._probe(rate)

    def _stepped(self, factor: float) -> int:
        return min(self._cap, max(self.limit + 1, int(self.limit * factor)))

    def _probe(self, rate: float) -> None:
        level = self._stepped(_STEP) if self._up else max(1, int(self.limit / _STEP))
        if level == self.limit:
            self._up, self._held = not self._up, _HELD
            return
        self._before = self.limit, rate
        self.limit = level

    def _judge(self, rate: float) -> None:
        assert self._before is not None
        level, before = self._before
        self._before = None
        if rate >= before * (_GAIN if self._up else _LOSS):
            return  # it was worth it: go on in this direction
        self.limit = level
        self._up, self._held = not self._up, _HELD
