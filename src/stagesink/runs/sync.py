"""Local runs become runs of a server: made once, told everything once, ended when their artifacts are there.

Whoever does it may be killed at any moment, and somebody starts again. So before each step that cannot be taken twice
the journal says what is about to happen, and whoever finds that line looks at the server first:

1.  The experiment is written down, then the run is looked for by its tag, then made, then its id is written down.
2.  A batch goes out after its end is written down as ``sending``, and is over when that is written down as ``sent``.
    In between nobody knows. The next to come sends that same batch again, without the points the server has already;
    parameters and tags may be set as often as one likes.
3.  The end may be set as often as one likes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

from stagesink.errors import OutboxError, RunNotFound, StagesinkError
from stagesink.outbox.entry import Entry
from stagesink.outbox.index import Row
from stagesink.outbox.local_runs import Event, LocalRun
from stagesink.outbox.store import Outbox
from stagesink.outbox.sync import Outcome, Sync
from stagesink.redaction import bare_uri
from stagesink.runs.server import run_server
from stagesink.sinks import ArtifactSink
from stagesink.sinks.protocol import TrackedSink
from stagesink.sinks.runs import MOST_OTHERS, MOST_POINTS, Logged, LogRefused, NewRun, Point, RunServer

_log = logging.getLogger("stagesink")

_SHOWN = 5
_NAMES_A_RUN = "_run_id"


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """What came of telling a server about one run.

    Parameters
    ----------
    run_id : str
        The local one.
    sink : str
    status : {"told", "failed"}
        ``told``: the server knows everything that is known here.
    server_run_id : str or None
    error : StagesinkError or None
        Why it failed. The run waits on.
    """

    run_id: str
    sink: str
    status: Literal["told", "failed"]
    server_run_id: str | None = None
    error: StagesinkError | None = None


@dataclass(slots=True)
class _Batch:
    """Neighbouring lines of a journal, as much as one request takes."""

    params: dict[tuple[str, str], None] = field(default_factory=dict)
    points: dict[Point, None] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    added_tags: dict[str, str] = field(default_factory=dict)
    end: int = 0

    def has_room(self) -> bool:
        tags = len(self.tags) + len(self.added_tags)
        return len(self.points) < MOST_POINTS and max(len(self.params), tags) < MOST_OTHERS

    def add(self, event: Event) -> None:
        kind = event.get("event")
        if kind == "params":
            self.params.update(dict.fromkeys((name, value) for name, value in event["params"].items()))
        elif kind == "tags" and event.get("adds"):
            self.added_tags = {**event["tags"], **self.added_tags}
        elif kind == "tags":
            self.tags.update(event["tags"])
        elif kind == "metrics":
            step, time = int(event["step"]), int(event["time"])
            points = (Point(name, float(value), time, step) for name, value in event["metrics"].items())
            self.points.update(dict.fromkeys(points))

    def logged(self, known: set[Point], tags: Mapping[str, str], renamed: Mapping[str, str]) -> Logged:
        """Return what the server does not have, with its own ids of runs that tags name."""
        points = tuple(each for each in self.points if each.shown not in known)
        added = {name: value for name, value in self.added_tags.items() if name not in tags}
        told = _with_servers_ids({**added, **self.tags}, renamed)
        return Logged(tuple(self.params), points, tuple(told.items()))


class RunSync:
    """Tells servers about the runs of one outbox.

    Parameters
    ----------
    outbox : Outbox
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._servers: dict[str, RunServer] = {}
        self._here: dict[tuple[str, str], str] = {}
        self._failed: dict[tuple[str, str], StagesinkError] = {}

    def run_of(self, entry: Entry, sink: ArtifactSink) -> str:
        """Return the run to land an entry in; it is made, and told what is known of it, when it is not there yet."""
        return self.bring(entry.run_id, sink)

    def everything(
        self,
        sync: Sync,
        wanted: Callable[[Row], bool] = lambda row: True,
        wanted_run: Callable[[str, str], bool] = lambda sink, run_id: True,
        *,
        urgent: bool = False,
    ) -> Iterator[Outcome | RunOutcome]:
        """Make the runs that wait, land what waits, and end the runs that have all that waited for them.

        Parameters
        ----------
        sync : Sync
            With :meth:`run_of`.
        wanted : callable
            Which entries; all by default.
        wanted_run : callable
            Which runs, by sink and local id; all by default.
        urgent : bool
            The small and valuable uploads first, and runs without any last: there may not be time for all.
        """
        waiting = [(run, uri) for run, uri in self._outbox.runs.waiting() if wanted_run(uri, run.run_id)]
        if urgent:
            yield from sync.run(wanted, urgent=True)
        for run, uri in waiting:
            try:
                self.bring(run.run_id, sync.sink(uri))
            except StagesinkError as error:
                self._failed[run.run_id, uri] = error
        if not urgent:
            yield from sync.run(wanted)
        for run_id, uri in dict.fromkeys([*((run.run_id, uri) for run, uri in waiting), *self._here]):
            yield self._finished(run_id, uri)

    def bring(self, run_id: str, sink: ArtifactSink) -> str:
        """Return what a run is called on a sink's server. It is made there first, and told what is known of it.

        Raises
        ------
        SinkError
            The server cannot be reached, or refuses.
        OutboxError
            Another process has been at it for minutes.
        """
        run = self._outbox.runs.get(run_id)
        if run is None or not (isinstance(sink, TrackedSink) and sink.tracks_runs):
            return run_id
        uri = bare_uri(sink.uri)
        if run.start.joined and uri != run.start.sink:
            return run_id
        if (run_id, uri) in self._failed:
            raise self._failed[run_id, uri]
        if (run_id, uri) not in self._here:
            try:
                self._here[run_id, uri] = self._brought(run, sink)
            except StagesinkError as error:
                self._failed[run_id, uri] = error
                raise
        return self._here[run_id, uri]

    def _brought(self, run: LocalRun, sink: TrackedSink) -> str:
        uri = bare_uri(sink.uri)
        if uri not in self._servers:
            self._servers[uri] = run_server(sink)
        server = self._servers[uri]
        parent, tags = self._relations(run, sink)  # before the turn: each run's turn is taken alone
        with run.turn():
            run_id, is_new = run.told(uri).run_id, False
            if run_id is None:
                run_id, is_new = self._made(run, uri, server, parent, tags)
            else:
                server.check(run_id)
        # From here on it is there for runs that name it, as those may which its own later tags name.
        self._here[run.run_id, uri] = run_id
        try:
            named = self._brought_by(_named_later(run, uri), sink)
            with run.turn():
                self._tell(run, uri, server, run_id, named, is_new=is_new)
        except StagesinkError:
            del self._here[run.run_id, uri]
            raise
        return run_id

    def _relations(self, run: LocalRun, sink: TrackedSink) -> tuple[str | None, dict[str, str]]:
        """Return the parent and the tags, with servers' ids for local ones; the runs they name come first."""
        parent = run.start.parent_run_id
        named = {value for name, value in run.start.tags.items() if name.endswith(_NAMES_A_RUN)}
        runs = self._outbox.runs
        earlier = {
            local_id
            for local_id in {*named, *([parent] if parent is not None else [])}
            if (other := runs.get(local_id)) is not None and other != run and other.start.time <= run.start.time
        }
        there = self._brought_by(earlier, sink)
        return (None if parent is None else there.get(parent, parent)), _with_servers_ids(run.start.tags, there)

    def _brought_by(self, local_ids: set[str], sink: TrackedSink) -> dict[str, str]:
        """Bring those that are runs of this outbox, and return what the server calls them."""
        found = {local_id: self._outbox.runs.get(local_id) for local_id in local_ids}
        return {
            local_id: self.bring(local_id, sink)
            for local_id, run in found.items()
            if run is not None and not run.start.joined
        }

    def _made(
        self, run: LocalRun, uri: str, server: RunServer, parent: str | None, tags: dict[str, str]
    ) -> tuple[str, bool]:
        start = run.start
        by_id = start.experiment_id if uri == start.sink else None  # elsewhere it is another experiment
        new = NewRun(run.run_id, start.time, start.experiment, start.name, parent, tags, by_id)
        experiment = run.told(uri).experiment
        if experiment is None:
            try:
                experiment = server.experiment_of(new)
            except RunNotFound:
                if new.experiment is not None or parent is None:
                    raise
                experiment = server.experiment_of(replace(new, parent_run_id=None))  # the parent is another server's
            run.note(uri, experiment=experiment)
        # Also for the first time: another outbox with a copy of the journal may have been here.
        found = server.find(new, experiment)
        if found is not None:
            server.check(found)
        run_id = found or server.make(new, experiment)
        run.note(uri, run_id=run_id)
        return run_id, found is None

    def _tell(
        self, run: LocalRun, uri: str, server: RunServer, run_id: str, there: Mapping[str, str], *, is_new: bool
    ) -> None:
        told = run.told(uri)
        # What was kept because its server did not answer may have arrived all the same.
        doubtful = run.start.joined or not (is_new or told.sent)
        for batch in _batches(run, told.sent, told.sending):
            uncertain = doubtful or batch.end <= told.sending
            known: set[Point] = set()
            if uncertain:
                for key in {point.key for point in batch.points}:
                    known |= server.history(run_id, key)
            logged = batch.logged(known, server.tags(run_id) if batch.added_tags else {}, there)
            if logged:
                run.note(uri, sending=batch.end)
                for request in logged.requests():
                    try:
                        server.log(run_id, request)
                    except LogRefused as error:
                        _log_one_by_one(run_id, request, server, error)
            run.note(uri, sent=batch.end)

    def _finished(self, run_id: str, uri: str) -> RunOutcome:
        """Set the run's end, if it has one and nothing waits for it any more."""
        error = self._failed.get((run_id, uri))
        run = self._outbox.runs.get(run_id)
        there = self._here.get((run_id, uri))
        if error is not None or run is None or there is None:
            return self._gave_up(run, RunOutcome(run_id, uri, "failed", there, error))
        try:
            end = run.end()
            waits = any((row.sink, row.run_id) == (uri, run_id) for row in self._outbox.rows())
            if end is not None and not waits and run.told(uri).ended < end[0]:
                place, event = end
                with run.turn():
                    self._servers[uri].end(there, str(event["status"]), int(event["time"]))
                    run.note(uri, ended=place)
            if run.told(uri).error is not None:
                run.note(uri, error=None)
        except StagesinkError as failure:
            return self._gave_up(run, RunOutcome(run_id, uri, "failed", there, failure))
        return RunOutcome(run_id, uri, "told", there)

    def _gave_up(self, run: LocalRun | None, outcome: RunOutcome) -> RunOutcome:
        if run is not None and outcome.error is not None:
            with suppress(OutboxError):  # it is what is told just now, too
                run.note(outcome.sink, error=outcome.error.message)
        return outcome


def _with_servers_ids(tags: Mapping[str, str], there: Mapping[str, str]) -> dict[str, str]:
    """Return tags that name runs by what the server calls those."""
    return {name: there.get(value, value) if name.endswith(_NAMES_A_RUN) else value for name, value in tags.items()}


def _named_later(run: LocalRun, uri: str) -> set[str]:
    """Return the ids of runs that stand in tags which the server does not know yet."""
    tags = [event.get("tags") for _, event in run.events(run.told(uri).sent) if event.get("event") == "tags"]
    return {
        value
        for each in tags
        for name, value in (each.items() if isinstance(each, Mapping) else ())  # a line may be damaged
        if name.endswith(_NAMES_A_RUN) and isinstance(value, str)
    }


def _batches(run: LocalRun, start: int, sending: int) -> Iterator[_Batch]:
    """Cut what was not sent for certain into batches; the first ends where one was being sent."""
    batch = _Batch(end=start)
    for place, event in run.events(start):
        if batch.end > start and (not batch.has_room() or batch.end == sending):
            yield batch
            batch = _Batch()
        try:
            batch.add(event)
        except (KeyError, TypeError, ValueError, AttributeError):
            _log.warning("%s is damaged before byte %d: that line is left out.", run.path, place)
        batch.end = place
    if batch.end > start:
        yield batch


def _log_one_by_one(run_id: str, logged: Logged, server: RunServer, error: LogRefused) -> None:
    """Log what can be; what the server never takes must not keep the rest from it."""
    refused: list[str] = []
    for piece in logged.pieces():
        known = server.history(run_id, piece.points[0].key) if piece.points else set()
        if piece.points and piece.points[0].shown in known:
            continue
        try:
            server.log(run_id, piece)
        except LogRefused as again:
            error = again
            refused += [*(name for name, _ in (*piece.params, *piece.tags)), *(each.key for each in piece.points)]
    if refused:
        names = list(dict.fromkeys(refused))
        shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        _log.warning("Run %s: the server does not take %s, which is left out there: %s", run_id, shown, error)
