"""Runs that are made on a server after the fact: what it is told, and in which words."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from stagesink.errors import SinkError

LOCAL_RUN_TAG = "stagesink.local_run_id"
"""Tag of a run that was begun without its server: the id that it had there."""

MOST_POINTS, MOST_OTHERS = 800, 100
"""Of points, and of parameters and of tags, what every server takes in one request: together no more than 1,000."""


class Point(NamedTuple):
    """One value of a metric. ``time`` in milliseconds since 1970."""

    key: str
    value: float
    time: int
    step: int

    @property
    def shown(self) -> Point:
        """The point as servers give it back: databases have no infinities, and NaN equals nothing."""
        value = self.value
        if math.isinf(value):
            value = math.copysign(sys.float_info.max, value)
        return Point(self.key, repr(float(value)), self.time, self.step)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to be made.

    Parameters
    ----------
    local_id : str
        What it was called until now; one run is made for it, however often that is asked for.
    time : int
        When it began: milliseconds since 1970.
    experiment, name, parent_run_id : str or None
    tags : mapping of str to str
    experiment_id : str or None
        What this server may call its experiment, where it has no name.
    """

    local_id: str
    time: int
    experiment: str | None = None
    name: str | None = None
    parent_run_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    experiment_id: str | None = None


@dataclass(frozen=True, slots=True)
class Logged:
    """What was logged to a run."""

    params: tuple[tuple[str, str], ...] = ()
    points: tuple[Point, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.params or self.points or self.tags)

    def requests(self) -> Iterator[Logged]:
        """Yield it in portions that every server takes in one request."""
        points, params, tags = self.points, self.params, self.tags
        while points or params or tags:
            yield Logged(params[:MOST_OTHERS], points[:MOST_POINTS], tags[:MOST_OTHERS])
            points, params, tags = points[MOST_POINTS:], params[MOST_OTHERS:], tags[MOST_OTHERS:]

    def pieces(self) -> list[Logged]:
        """Return the same, one by one."""
        return [
            *(Logged(params=(each,)) for each in self.params),
            *(Logged(points=(each,)) for each in self.points),
            *(Logged(tags=(each,)) for each in self.tags),
        ]


class LogRefused(SinkError):
    """The server does not take such a name or value, now or later."""


class RunServer(Protocol):
    """Makes runs that began without it. Every failure is a :class:`~stagesink.errors.SinkError`."""

    def experiment_of(self, run: NewRun) -> str:
        """Return the experiment that a run goes into, made where it is not there, in the server's terms."""
        ...

    def find(self, run: NewRun, experiment: str) -> str | None:
        """Return the run that an earlier call has made; None where none has."""
        ...

    def make(self, run: NewRun, experiment: str) -> str:
        """Make the run, once asked, and return its id. When it fails, the run may be there all the same."""
        ...

    def check(self, run_id: str) -> None:
        """See that the run is there, or raise :class:`~stagesink.errors.RunNotFound`."""
        ...

    def tags(self, run_id: str) -> Mapping[str, str]:
        """Return the tags that the run has."""
        ...

    def history(self, run_id: str, key: str) -> set[Point]:
        """Return the points of one metric that the run has, as :attr:`Point.shown` shows them."""
        ...

    def log(self, run_id: str, logged: Logged) -> None:
        """Log parameters, points and tags, asked once.

        Raises
        ------
        LogRefused
            Something in it can never be logged. The rest of it may be.
        """
        ...

    def end(self, run_id: str, status: str, time: int) -> None:
        """Set the run's end."""
        ...


@runtime_checkable
class RunMakingSink(Protocol):
    """A sink that makes runs in its own way; others have it done by MLflow's client. A capability."""

    def run_server(self) -> RunServer:
        """Return what makes runs for this sink."""
        ...
