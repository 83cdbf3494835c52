"""Uploading behind the trainer's back: a thread per outbox and process lands what was kept for it.

What it does not get to, or cannot land, stays in the outbox: nothing depends on this thread. It ends with its process,
however that ends; one that ends in order waits for it (:func:`flush` does so at any time).
"""

from __future__ import annotations

import logging
import math
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from stagesink.artifacts import Receipt
from stagesink.errors import OutboxError, StagesinkError, release_frames
from stagesink.interrupts import interrupts_whole
from stagesink.outbox.entry import Entry
from stagesink.outbox.index import Row
from stagesink.outbox.store import Outbox
from stagesink.outbox.sync import Outcome, Sync
from stagesink.sinks._backend_errors import translating
from stagesink.sinks.protocol import ArtifactSink
from stagesink.transfer import TransferOptions

_log = logging.getLogger("stagesink")

_FIRST_WAIT = 5.0  # seconds until what failed is tried again, doubled each time
_LONGEST_WAIT = 300.0
_OUTLIVED_SECONDS = 60.0  # behind a deadline: a process that is still there was not taken away
_HELD_WAIT = 1.0  # seconds until what another process is at is looked at again
_EXIT_SECONDS = 600.0  # how long a process that ends waits for what was never tried
_LOOK_SECONDS = 0.2
_SILENT_SECONDS = 2.0  # from then on it says what it waits for
_LANES_IN_A_HURRY = 3  # so that what is small need not wait for the large one that is on its way
_BUDGET_IN_A_HURRY = 5.0  # seconds: a store that is gone must not take the time of one that is there
_OPEN_SINKS = 4

# There a process that ends can start no thread any more, and nothing uploads without: python/cpython#113964.
_NO_THREADS_AT_THE_END = sys.version_info[:3] in ((3, 12, 0), (3, 12, 1))

Receipts = tuple[Receipt, ...]
OpenSink = Callable[[], ArtifactSink]


class Superseded(OutboxError):
    """A newer upload to the same place goes instead, or it was taken out of the outbox."""

    default_hint = ""


@dataclass(slots=True, eq=False)
class _Job:
    entry: Entry
    open_sink: OpenSink
    options: TransferOptions
    closes: bool
    size: int
    future: Future[Receipts] = field(default_factory=Future)
    attempts: int = 0
    failures: int = 0
    not_before: float = 0.0
    settled: bool = False
    held: bool = False
    """Another process was at it, or at what goes before it, at the last attempt."""

    @property
    def age(self) -> tuple[float, str]:
        return self.entry.created, self.entry.id

    def waits_for(self, other: _Job) -> bool:
        """Tell whether the other, which waits too, must be tried before: it is older and touches the same objects.

        What adds to a folder waits until that one has landed.
        """
        return (
            other.age < self.age
            and (self.entry.upload.adds or not other.attempts)
            and other.entry.goes_where(self.entry)
        )


class BackgroundUploader:
    """Lands the entries that this process has kept, in a thread of its own: by their slots' priority, then by age.

    Parameters
    ----------
    outbox : Outbox
    """

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self._jobs: list[_Job] = []
        self._busy: list[_Job] = []
        self._changed = threading.Condition()
        self._lanes = 0
        self._settling = False
        self._sinks = _Sinks()
        self._over = False

    def submit(
        self, entry: Entry, open_sink: OpenSink, options: TransferOptions, *, closes: bool = True
    ) -> Future[tuple[Receipt, ...]]:
        """Land an entry soon. What waits here for the same place gives way to it.

        Parameters
        ----------
        entry : Entry
            Kept a moment ago; it may be a quick one.
        open_sink : callable
            Opens its sink. One that compares equal to another's opens the same: the sink is used again.
        options : TransferOptions
        closes : bool
            Close the sink at some time afterwards; False for one that somebody else uses too.

        Returns
        -------
        Future of tuple of Receipt
            Done with the first attempt: what landed, or why it did not. The entry then waits, and is tried again.
        """
        job = _Job(entry, open_sink, options, closes, entry.size)
        with self._changed:
            replaced = [] if entry.upload.adds else [each for each in self._jobs if _same_place(each, job)]
            self._jobs = [*(each for each in self._jobs if each not in replaced), job]
            self._staff()
            if self._busy and not self._settling:
                self._settling = _started(self._settle_waiting, "stagesink-settle")
            self._changed.notify_all()
        for each in replaced:
            _answer(each, Superseded(f"{each.entry.path} was not uploaded: a newer one goes instead."))
        if _ended or not self._lanes:
            _log.warning(
                "This process ends, and %s may not be uploaded any more. It waits in %s: `stagesink sync` uploads it.",
                *(entry.path, self.outbox.path),
            )
        if not self._lanes:  # nobody would ever answer; a thread that can be started later still lands it
            why = f"No thread could be started to upload {entry.path}."
            _answer(job, OutboxError(why, hint="`stagesink sync` uploads it."))
        return job.future

    def flush(self, timeout: float | None = None, *, waits_for_others: bool = True) -> bool:
        """Wait until everything was tried, and tell whether all of it has landed.

        What failed before is tried again now, and what another process is at is waited for. What is handed over
        meanwhile is not.

        Parameters
        ----------
        timeout : float, optional
            Seconds; None waits as long as it takes, other processes too.
        waits_for_others : bool
            False leaves what another process is at to that one.
        """
        with interrupts_whole(), self._changed:
            before = [(job, job.attempts) for job in self._all()]
            self._wake()
            self._changed.wait_for(
                lambda: (
                    all(
                        (job.attempts > attempts and not (job.held and waits_for_others)) or job not in self._all()
                        for job, attempts in before
                    )
                    or not self._lanes
                ),
                timeout,
            )
            left = self._all()
            return not any(job in left for job, _ in before)

    def hurry(self) -> None:
        """Try all that waits now, several at once, the small and valuable first, until the process's hurry is over."""
        with self._changed:
            self._wake()

    def secure(self, until: float) -> int:
        """Make what waits here safe from a power cut and from the files' owner, and return how many those are.

        Parameters
        ----------
        until : float
            Monotonic time at which it is left as it is: safe from a kill of this process.
        """
        with self._changed:
            waiting = sorted(self._jobs, key=self._turn)
        for job in waiting:
            if time.monotonic() >= until:
                break
            self._secure(job)
        with self._changed:
            return len(self._all())

    def finish(self, timeout: float = _EXIT_SECONDS) -> None:
        """Wait for what was never tried, at the end of the process, and say what is left."""
        start = time.monotonic()
        said = False
        with interrupts_whole(), self._changed:
            if _NO_THREADS_AT_THE_END and self._all():
                self._over = True  # what is under way may still come to its end
                _log.warning("Python %s starts no thread when it ends: call flush() before.", platform.python_version())
            while self._lanes and not all(job.attempts for job in (self._busy if self._over else self._all())):
                now = time.monotonic()
                if now >= min(start + timeout, _until()):
                    break
                if now >= start + _SILENT_SECONDS and not said:
                    said = True
                    many = len(self._all())
                    _log.warning("This process waits for %d uploads. Ctrl-C leaves them in %s.", many, self.outbox.path)
                self._changed.wait(_LOOK_SECONDS)  # a signal may shorten the time at any moment
        left = self.secure(_until())
        self._sinks.close()
        if left:
            _log.warning("%d uploads wait in %s: `stagesink sync` uploads them.", left, self.outbox.path)

    # -- the queue ---------------------------------------------------------------------------------------------------

    def _all(self) -> list[_Job]:
        return [*self._jobs, *self._busy]

    def _wake(self) -> None:
        for job in self._jobs:
            job.not_before = 0.0
        self._staff()
        self._changed.notify_all()

    def _settle_waiting(self) -> None:
        """Make what waits behind others safe from a power cut meanwhile."""
        while True:
            with self._changed:
                job = next((each for each in self._jobs if not each.settled), None)
                if job is None:
                    self._settling = False
                    return
                job.settled = True
            with suppress(StagesinkError):  # whoever uploads it finds that too, and says so
                self.outbox.settle(job.entry)

    def _staff(self) -> None:
        """See that there are threads for what waits."""
        wanted = min(_LANES_IN_A_HURRY, len(self._all())) if _in_a_hurry() else 1
        while self._jobs and self._lanes < wanted:
            if not _started(partial(self._work, self._lanes == 0), "stagesink-outbox"):
                return  # it waits on the disk
            self._lanes += 1

    def _work(self, stays: bool) -> None:
        while (job := self._take(stays)) is not None:
            outcomes = self._attempt(job)
            landed = outcomes[0].status == "landed"
            waits = not landed and self.outbox.is_there(job.entry.id)
            if not landed and not waits:
                outcomes = [self._gone(job), *outcomes[1:]]
            if outcomes[0].status != "held" or not waits:
                _answer(job, outcomes[0])
            with self._changed:
                self._busy.remove(job)
                job.attempts += 1
                job.held = outcomes[0].status == "held"
                if waits:
                    self._put_back(job, outcomes[0])
                gone = {outcome.row.id for outcome in outcomes[1:]}
                dropped = [each for each in self._jobs if each.entry.id in gone]
                self._jobs = [each for each in self._jobs if each.entry.id not in gone]
                self._changed.notify_all()
            for each in dropped:
                _answer(each, Superseded(f"{each.entry.path} was not uploaded: a newer one has landed."))

    def _take(self, stays: bool) -> _Job | None:
        with self._changed:
            while (job := self._next()) is None or self._over:
                if not stays:
                    self._lanes -= 1
                    return None
                self._changed.wait(self._idle())
            self._jobs.remove(job)
            self._busy.append(job)
            return job

    def _next(self) -> _Job | None:
        now = time.monotonic()
        for job in sorted(self._jobs, key=self._turn):
            if job.not_before > now or any(each.entry.goes_where(job.entry) for each in self._busy):
                continue
            if not any(job.waits_for(each) for each in self._jobs):
                return job
        return None

    def _turn(self, job: _Job) -> tuple[float, ...]:
        size = job.size if _in_a_hurry() else 0
        return job.entry.priority, size, job.entry.created

    def _idle(self) -> float | None:
        due = [job.not_before for job in self._jobs]
        return max(0.05, min(due) - time.monotonic()) if due else None

    def _put_back(self, job: _Job, outcome: Outcome) -> None:
        job.failures += not job.held
        wait = _HELD_WAIT if job.held else min(_FIRST_WAIT * 2 ** min(job.failures - 1, 10), _LONGEST_WAIT)
        job.not_before = time.monotonic() + wait
        self._jobs.append(job)
        for other in self._jobs:
            if other.entry.upload.adds and other.waits_for(job):  # it is not tried before this one has landed
                other.attempts += 1
                other.held = job.held
                other.not_before = job.not_before
                if outcome.error is not None:
                    _answer(other, outcome)

    # -- one upload --------------------------------------------------------------------------------------------------

    def _attempt(self, job: _Job) -> Sequence[Outcome]:
        row = Row.of(job.entry)
        try:
            with translating(f"{job.entry.path} was not uploaded"):  # a defect must not end the thread
                return self._land(job, row) or [Outcome(row, "superseded")]
        except StagesinkError as error:
            _log.warning("%s: %s It waits in %s.", job.entry.path, error, self.outbox.path)
            return [Outcome(row, "failed", error=error)]

    def _land(self, job: _Job, row: Row) -> Sequence[Outcome]:
        if job.entry.packed is not None:  # packing reads the files in its own way
            self._make_last(job)
        else:
            # Another process may have made copies of its links.
            job.entry = self.outbox.entry(job.entry.id) or job.entry
            self.outbox.settle(job.entry)
        options = job.options
        if _in_a_hurry():
            options = replace(options, budget=min(options.budget, _BUDGET_IN_A_HURRY))
        opened: list[ArtifactSink] = []

        def open_sink(uri: str) -> ArtifactSink:
            opened.append(self._sinks.take(job.open_sink) if job.closes else job.open_sink())
            return opened[0]

        outcomes: Sequence[Outcome] = ()
        try:
            outcomes = list(Sync(self.outbox, open_sink, options).land([row]))
        finally:
            if job.closes and opened:
                self._sinks.give_back(job.open_sink, opened[0], worn=not outcomes or outcomes[0].status == "failed")
        if outcomes and outcomes[0].error is not None:
            _log.warning(
                "%s was not uploaded: %s It waits in %s and is tried again.",
                *(job.entry.path, outcomes[0].error, self.outbox.path),
            )
            with suppress(OutboxError):  # no room for a copy: the links stay
                self._make_last(job)  # it may wait long now
        return outcomes

    def _gone(self, job: _Job) -> Outcome:
        """Tell what has become of an entry that another process has taken away."""
        row = Row.of(job.entry)
        try:
            landed = self.outbox.has_landed(row.id)
        except OutboxError:
            landed = False
        if not landed:
            return Outcome(row, "superseded")
        # By whom, and proven how, is the other's to tell: `stagesink sync` shows it.
        objects = job.entry.plan().objects
        receipts = [
            Receipt(item.key, f"{row.sink}/{item.key}", item.size or 0, None, 0.0, 0, "unchanged", "none")
            for item in objects
        ]
        return Outcome(row, "landed", tuple(receipts))

    def _make_last(self, job: _Job) -> None:
        job.entry = self.outbox.secure(job.entry.id) or job.entry

    def _secure(self, job: _Job) -> None:
        try:
            self._make_last(job)
        except StagesinkError as error:
            if self.outbox.is_there(job.entry.id):  # else it landed meanwhile
                _log.warning("%s: %s", job.entry.path, error)


class _Sinks:
    """Sinks that stay open from one upload to the next: the few that were used last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[tuple[OpenSink, ArtifactSink]] = []

    def take(self, open_sink: OpenSink) -> ArtifactSink:
        with self._lock:
            for index, (opened_by, _) in enumerate(self._free):
                if opened_by == open_sink:
                    return self._free.pop(index)[1]
        return open_sink()

    def give_back(self, open_sink: OpenSink, sink: ArtifactSink, *, worn: bool) -> None:
        """Take back a sink. One that failed is not used again: a new one asks for credentials anew."""
        with self._lock:
            if not worn:
                self._free.append((open_sink, sink))
            unused = [sink] if worn else [each for _, each in self._free[:-_OPEN_SINKS]]
            del self._free[:-_OPEN_SINKS]
        _close(unused)

    def close(self) -> None:
        with self._lock:
            unused = [sink for _, sink in self._free]
            self._free.clear()
        _close(unused)


def _close(sinks: Sequence[ArtifactSink]) -> None:
    for sink in sinks:
        with suppress(StagesinkError), translating(f"{sink.uri} was not closed"):  # all has landed by then
            sink.close()


def _started(work: Callable[[], None], name: str) -> bool:
    """Start a thread; False when the interpreter shuts down, or the system has none left."""
    try:
        with interrupts_whole():
            threading.Thread(target=work, name=name, daemon=True).start()
    except RuntimeError:
        return False
    return True


def _same_place(job: _Job, other: _Job) -> bool:
    one, two = job.entry, other.entry
    return (one.store, one.run_id, one.path) == (two.store, two.run_id, two.path)


def _answer(job: _Job, came: Outcome | StagesinkError) -> None:
    if job.future.done():
        return
    if isinstance(came, Outcome) and came.status == "landed":
        job.future.set_result(came.receipts)
        return
    error = came.error if isinstance(came, Outcome) else came
    if error is None:
        error = Superseded(
            f"{job.entry.path} was not uploaded: a newer one has landed, or it was removed from the outbox."
        )
    release_frames(error)  # whoever has the handle keeps it
    job.future.set_exception(error)


# -- all uploaders of this process -------------------------------------------------------------------------------------

_lock = threading.Lock()
_uploaders: dict[Path, BackgroundUploader] = {}
_waited_for = False
_ended = False
_hurry_until: float | None = None


def background_uploader(outbox: Outbox) -> BackgroundUploader:
    """Return this process's uploader for an outbox. At the end of the process it is waited for."""
    global _waited_for, _ended
    with _lock:
        if not _waited_for:
            _waited_for = True
            _ended = not before_threads_end(_finish_all)
        if outbox.path not in _uploaders:
            _uploaders[outbox.path] = BackgroundUploader(outbox)
        return _uploaders[outbox.path]


def uploaders_here() -> list[BackgroundUploader]:
    """Return the uploaders of this process."""
    with _lock:
        return list(_uploaders.values())


def flush(timeout: float | None = None) -> bool:
    """Wait for all that this process uploads in the background, and tell whether it has landed.

    What failed before is tried again now, and what another process is at is waited for. What has not landed then is
    still kept, and still on its way.

    Parameters
    ----------
    timeout : float, optional
        Seconds; None waits as long as it takes.

    Examples
    --------
    >>> stagesink.flush(timeout=60)
    True
    """
    until = None if timeout is None else time.monotonic() + timeout
    landed = [each.flush(None if until is None else max(0.0, until - time.monotonic())) for each in uploaders_here()]
    return all(landed)


def hurry(until: float) -> None:
    """Have this process's uploaders land what they can until then: the small and valuable first, several at once.

    Parameters
    ----------
    until : float
        Monotonic time. A process that ends does not wait for uploads any longer than that.
    """
    global _hurry_until
    _hurry_until = until
    for each in uploaders_here():
        each.hurry()


def give_up() -> None:
    """End the hurry: a process that ends waits for nothing any more. For signal handlers: it takes no lock."""
    global _hurry_until
    _hurry_until = time.monotonic()


def before_threads_end(call: Callable[[], None]) -> bool:
    """Call this when the process ends in order, before the executors of the standard library shut down: sinks use them.

    ``atexit`` would be too late for that. False: the process ends already.
    """
    register: Callable[[Callable[[], None]], None] = threading._register_atexit  # type: ignore[attr-defined]
    try:
        register(call)
    except RuntimeError:
        return False
    return True


def _until() -> float:
    """Return how long a process that ends may wait; a notice that it has outlived counts no more."""
    until = _hurry_until
    return math.inf if until is None or time.monotonic() > until + _OUTLIVED_SECONDS else until


def _in_a_hurry() -> bool:
    return time.monotonic() < _until() < math.inf


def _finish_all() -> None:
    global _ended
    _ended = True
    for uploader in uploaders_here():
        try:
            uploader.finish()
        except KeyboardInterrupt:
            _log.warning("Stopped. What was not uploaded waits in %s: `stagesink sync`.", uploader.outbox.path)
            return


def _begin_anew_after_fork() -> None:
    # The parent's threads are not here, nor is whoever held the lock. Its uploads stay its own.
    global _lock, _uploaders, _ended, _hurry_until
    _lock, _uploaders, _ended, _hurry_until = threading.Lock(), {}, False, None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew_after_fork)
