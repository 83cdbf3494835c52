"""Landing what waits, with the same engine as any upload.

Any number of processes may do it at once: each entry is landed by whoever holds its claim. It is removed once its
manifest is there; killed before that, the next one finds the manifest and sends nothing again. So each lands once.

Order is kept where it matters: of several uploads to one place only the newest is sent, or the one before it where that
is lost or damaged here, and whoever lands it holds the older ones too; what touches some of the same objects waits for
what was there before it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from stagesink.artifacts import Receipt
from stagesink.errors import (
    OutboxError,
    SinkAuthError,
    SourceError,
    StagesinkError,
    TransferCancelled,
    TransferError,
    TransientSinkError,
)
from stagesink.manifest import ManifestEntry
from stagesink.outbox.entry import Entry, overlap
from stagesink.outbox.index import Row
from stagesink.outbox.store import Outbox
from stagesink.sinks._backend_errors import translating
from stagesink.sinks.protocol import ArtifactSink, host_of_sink
from stagesink.transfer import Plan, ProgressCallback, Transfer, TransferOptions

_NOTED_BYTES = 32 << 20  # bytes that may have to be sent again
_NOTED_SECONDS = 2.0
_TOGETHER = 1000  # uploads of one object that share their questions to the store

OpenSink = Callable[[str], ArtifactSink]
RunOf = Callable[[Entry, ArtifactSink], str]
Place = tuple[tuple[str, str], str, str]
"""Store, run and path."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one entry.

    Parameters
    ----------
    row : Row
    status : {"landed", "superseded", "held", "failed"}
        ``superseded``: a newer upload to the same place has landed. ``held``: another process is at it.
    receipts : tuple of Receipt
    error : StagesinkError or None
        Why it failed. The entry waits on.
    """

    row: Row
    status: Literal["landed", "superseded", "held", "failed"]
    receipts: tuple[Receipt, ...] = ()
    error: StagesinkError | None = None


class _Held(NamedTuple):
    row: Row
    entry: Entry
    older: list[Row]


class Sync:
    """Lands entries of one outbox.

    Parameters
    ----------
    outbox : Outbox
    open_sink : callable
        Opens the sink of an entry's URI, with whatever credentials there are. Each is opened once, and closed at the
        end of the ``with`` block.
    options : TransferOptions
    progress : callable, optional
    run_of : callable, optional
        Returns the run to land in, for entries whose run was made without a server.
    moved : bool
        A store that answers at another address than the one it was kept for is the same.
    """

    def __init__(
        self,
        outbox: Outbox,
        open_sink: OpenSink,
        options: TransferOptions,
        *,
        progress: ProgressCallback | None = None,
        run_of: RunOf | None = None,
        moved: bool = False,
    ) -> None:
        self._outbox = outbox
        self._moved = moved
        self._open_sink = open_sink
        self._options = options
        self._progress = progress
        self._run_of = run_of or (lambda entry, sink: entry.run_id)
        self._sinks: dict[str, ArtifactSink] = {}
        self._gone: dict[str, StagesinkError] = {}

    def __enter__(self) -> Sync:
        return self

    def __exit__(self, *_: object) -> None:
        for sink in self._sinks.values():
            sink.close()

    def run(self, wanted: Callable[[Row], bool] = lambda row: True, *, urgent: bool = False) -> Iterator[Outcome]:
        """Land what waits, oldest first, and yield what came of each.

        A sink that cannot be reached, or does not let us, is not asked for its other entries.

        Parameters
        ----------
        wanted : callable
            Which entries; all by default.
        urgent : bool
            The small and valuable first instead: there may not be time for all.
        """
        waiting = [row for row in self._outbox.rows() if wanted(row)]
        rows = _newest(waiting)
        if urgent:
            late = _later(rows)
            rows.sort(key=lambda row: (row.id in late, *(() if row.id in late else (row.priority, row.bytes))))
        stuck = _Places()
        for group in _groups(rows):
            ready = []
            for row in group:
                if stuck.meet(row):
                    stuck.add(row)  # it goes after what is not there yet
                    self._own(row)
                else:
                    ready.append(row)
            waits = []
            for outcome in self.land(ready):
                if outcome.status in ("failed", "held"):
                    stuck.add(outcome.row)
                    waits.append(outcome)
                yield outcome
            for outcome in waits:
                self._own(outcome.row)
                yield from self._land_older(outcome, [row for row in waiting if row not in rows])

    def _land_older(self, outcome: Outcome, left_out: Sequence[Row]) -> Iterator[Outcome]:
        """Land what one that is lost or damaged here was to replace: it is the newest that there is."""
        before = [row for row in left_out if _place(row) == _place(outcome.row) and _age(row) < _age(outcome.row)]
        outcomes = [outcome]
        while before and outcomes and outcomes[0].status == "failed" and _is_lost(outcomes[0].error):
            outcomes = list(self.land([before.pop()]))
            yield from outcomes

    def land(self, rows: Sequence[Row], *, wait: float = 0.0) -> Iterator[Outcome]:
        """Land some entries of one sink and run that touch different objects, and yield what came of each.

        Parameters
        ----------
        rows : sequence of Row
        wait : float
            Seconds, for other processes that hold one.
        """
        with ExitStack() as claims:
            held: dict[str, _Held] = {}
            for row, older in self._with_older(rows):
                taken: list[tuple[Row, Entry]] = []
                for each in (*older, row):  # the older ones too: nobody may land one of them after this
                    entry = claims.enter_context(self._outbox.claim(each.id, timeout=wait))
                    if entry is not None:
                        taken.append((each, entry))
                    elif self._outbox.entry(each.id) is not None:
                        yield Outcome(row, "held")
                        break
                else:
                    if taken and taken[-1][0] is row:
                        try:
                            _check(*taken[-1])
                        except (SourceError, OutboxError) as error:
                            yield self._failed(row, error)
                        else:
                            held[row.id] = _Held(*taken[-1], [old for old, _ in taken[:-1]])
                    elif (damage := self._outbox.damage_of(row.id)) is not None:
                        yield self._failed(row, damage)
            if held:
                yield from self._land(list(held.values()))

    def _with_older(self, rows: Sequence[Row]) -> Iterator[tuple[Row, list[Row]]]:
        """Yield each with what waits for the same place and is older: what goes when it has landed."""
        names = self._outbox.runs.names_of(rows[0].run_id, rows[0].sink) if rows else set()
        places: dict[str, list[Row]] = {}
        for each in self._outbox.rows() if rows else ():
            if each.store == rows[0].store and each.run_id in names:
                places.setdefault(each.path, []).append(each)
        for row in rows:
            same = () if row.adds else places.get(row.path, ())
            yield row, [old for old in same if _age(old) < _age(row)]

    def _land(self, held: list[_Held]) -> Iterator[Outcome]:
        try:
            sink = self.sink(held[0].row.sink)
            self._must_be_its_own(sink, held[0].row)
            plans = {
                each.row.id: replace(
                    each.entry.plan(self._run_of(each.entry, sink)), landed=self._outbox.landed(each.row.id)
                )
                for each in held
            }
        except StagesinkError as error:
            yield from (self._failed(each.row, error) for each in held)
            return
        journal = _Journal(self._outbox, plans)
        transfer = Transfer(sink, self._options, progress=self._progress, on_landed=journal.note)
        receipts: tuple[Receipt, ...] = ()
        failure: TransferError | None = None
        what = held[0].row.path if len(held) == 1 else f"{len(held)} kept uploads"
        try:
            with translating(f"{what} could not be uploaded"):  # a defect of somebody's sink must not stop the others
                if len(held) == 1:
                    receipts = transfer.run(plans[held[0].row.id])
                else:
                    receipts = transfer.run_all(list(plans.values()), what)
        except TransferCancelled:
            raise
        except StagesinkError as error:
            failure = error if isinstance(error, TransferError) else TransferError((), {what: error})
            receipts = failure.receipts
            journal.write()
        for each in held:
            row = each.row
            plan = plans[row.id]
            keys = {plan.manifest_key.path, plan.path, *(item.key.path for item in plan.objects)}
            own = tuple(receipt for receipt in receipts if receipt.key.path in keys)
            why = None if failure is None else {path: e for path, e in failure.failures.items() if path in keys}
            if failure is not None and (why or len(held) == 1):
                its_own = TransferError(own, why or failure.failures)
                first = next(iter(its_own.failures.values()))
                if isinstance(first, TransientSinkError | SinkAuthError) and not any(r.attempts for r in own):
                    self._gone[row.sink] = first
                yield self._failed(row, its_own)
                continue
            yield Outcome(row, "landed", own)
            for old in each.older:
                self._outbox.remove(old.id)
                yield Outcome(old, "superseded")
            self._outbox.remove(row.id, landed=True)

    def sink(self, uri: str) -> ArtifactSink:
        """Return the sink of a URI, opened once. One that could not be opened, or is gone, raises again what it did."""
        if uri in self._gone:
            raise self._gone[uri]
        if uri not in self._sinks:
            try:
                self._sinks[uri] = self._open_sink(uri)
            except StagesinkError as error:
                self._gone[uri] = error
                raise
        return self._sinks[uri]

    def _must_be_its_own(self, sink: ArtifactSink, row: Row) -> None:
        host = host_of_sink(sink)
        if row.host and host and row.host != host and not self._moved:
            raise OutboxError(
                f"It was kept for {row.sink} at {row.host}, and here that is at {host}.",
                hint="Set the endpoint or account to that one; `stagesink sync --moved` takes them for the same store.",
            )

    def _own(self, row: Row) -> None:
        """Make copies of its links: it waits, and their owner may come back and write into them."""
        with suppress(StagesinkError):
            self._outbox.secure(row.id)

    def _failed(self, row: Row, error: StagesinkError) -> Outcome:
        self._outbox.note_failed(row.id, error.message)
        return Outcome(row, "failed", error.receipts if isinstance(error, TransferError) else (), error)


class _Journal:
    """Notes what has landed of entries whose manifest is not there yet: killed before that, it is not sent again."""

    def __init__(self, outbox: Outbox, plans: Mapping[str, Plan]) -> None:
        self._outbox = outbox
        self._entry_of = {item.key: entry_id for entry_id, plan in plans.items() for item in plan.objects}
        self._lock = threading.Lock()
        self._waiting: list[Receipt] = []
        self._bytes = 0
        self._written = time.monotonic()

    def note(self, receipt: Receipt) -> None:
        """Note one object; in the index soon, since each writing of it waits for the disk."""
        with self._lock:
            self._waiting.append(receipt)
            self._bytes += receipt.size
            due = self._bytes >= _NOTED_BYTES or time.monotonic() - self._written >= _NOTED_SECONDS
        if due:
            self.write()

    def write(self) -> None:
        """Bring what was noted into the index."""
        with self._lock:
            receipts, self._waiting, self._bytes = self._waiting, [], 0
            self._written = time.monotonic()
        entries: dict[str, list[ManifestEntry]] = {}
        for receipt in receipts:
            if receipt.sha256 is not None and receipt.key in self._entry_of:
                noted = ManifestEntry(receipt.key.path, receipt.size, receipt.sha256)
                entries.setdefault(self._entry_of[receipt.key], []).append(noted)
        for entry_id, objects in entries.items():
            self._outbox.note_landed(entry_id, objects)


def _check(row: Row, entry: Entry) -> None:
    """See, before anything changes in the store, that an entry is what the index says, and its files what was kept."""
    true = Row.of(entry)
    if (row.store, row.run_id, row.path, row.adds) != (true.store, true.run_id, true.path, true.adds):
        raise OutboxError(
            f"The index takes the entry {row.id} for another upload.",
            hint="Remove index.db from the outbox: it is made anew from the entries.",
        )
    entry.check()


def _place(row: Row) -> Place:
    return row.store, row.run_id, row.path


def _age(row: Row) -> tuple[float, str]:
    return row.created, row.id


def _is_lost(error: StagesinkError | None) -> bool:
    """Tell whether an entry failed because of what lies here, not because of the store."""
    why = error.failures.values() if isinstance(error, TransferError) else [error]
    return all(isinstance(each, SourceError | OutboxError) for each in why)


def _newest(rows: list[Row]) -> list[Row]:
    """Leave out what a newer upload to the same place replaces as a whole."""
    found: list[Row] = []
    replaced: set[Place] = set()
    for row in reversed(rows):
        place = _place(row)
        if place not in replaced:
            found.append(row)
        if not row.adds:
            replaced.add(place)
    return found[::-1]


def _groups(rows: list[Row]) -> Iterator[list[Row]]:
    """Put together what the engine can land as one: neighbours of one object each, of one run."""
    group: list[Row] = []
    for row in rows:
        fits = (
            group
            and len(group) < _TOGETHER
            and row.files == 1
            and not row.adds
            and (row.store, row.run_id) == (group[0].store, group[0].run_id)
            and not any(overlap(row.path, other.path) for other in group)
        )
        if group and not fits:
            yield group
            group = []
        group.append(row)
        if row.files != 1 or row.adds:
            yield group
            group = []
    if group:
        yield group


class _Places:
    """Places of uploads, quick to ask whether another one touches the same objects."""

    def __init__(self) -> None:
        self._places: set[Place] = set()
        self._folders: set[Place] = set()

    def add(self, row: Row) -> None:
        self._places.add((row.store, row.run_id, row.path))
        self._folders.update(_above(row))

    def meet(self, row: Row) -> bool:
        return (row.store, row.run_id, row.path) in self._folders or not self._places.isdisjoint(_above(row))


def _above(row: Row) -> list[Place]:
    """Return the place of an upload, and those that it lies in."""
    parts = row.path.split("/")
    return [(row.store, row.run_id, "/".join(parts[:depth])) for depth in range(1, len(parts) + 1)]


def _later(rows: list[Row]) -> set[str]:
    """Name what goes after others, whatever the hurry: it touches the same objects, or adds to what may be there."""
    places, found = _Places(), set()
    for row in rows:
        if row.adds or places.meet(row):
            found.add(row.id)
        places.add(row)
    return found
