"""Uploading behind the trainer's back: one thread per outbox and process lands what was kept for it.

What it does not get to, or cannot land, stays in the outbox: nothing depends on this thread.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from stagesink.artifacts import Receipt
from stagesink.errors import OutboxError, StagesinkError
from stagesink.outbox.entry import Entry
from stagesink.outbox.index import Row
from stagesink.outbox.store import Outbox
from stagesink.outbox.sync import Outcome, Sync
from stagesink.sinks.protocol import ArtifactSink
from stagesink.transfer import TransferOptions

_log = logging.getLogger("stagesink")

_FIRST_WAIT = 5.0  # seconds until what failed is tried again, doubled each time
_LONGEST_WAIT = 300.0
_EXIT_SECONDS = 600.0  # how long a process that ends waits for what was never tried

Receipts = tuple[Receipt, ...]


class Superseded(OutboxError):
    """A newer upload to the same place has landed instead."""

    default_hint = ""


@dataclass(slots=True)
class _Job:
    entry: Entry
    open_sink: Callable[[], ArtifactSink]
    options: TransferOptions
    closes: bool
    future: Future[Receipts] = field(default_factory=Future)
    attempts: int = 0
    not_before: float = 0.0


class BackgroundUploader:
    """Lands the entries that this process has kept, one after the other, in a thread of its own.

    Parameters
    ----------
    outbox : Outbox
    """

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self._jobs: list[_Job] = []
        self._busy: _Job | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def submit(
        self, entry: Entry, open_sink: Callable[[], ArtifactSink], options: TransferOptions, *, closes: bool = True
    ) -> Future[tuple[Receipt, ...]]:
        """Land an entry soon.

        Parameters
        ----------
        entry : Entry
            Kept a moment ago; it may be a quick one.
        open_sink : callable
            Opens its sink.
        options : TransferOptions
        closes : bool
            Close the sink afterwards; False for one that somebody else uses too.

        Returns
        -------
        Future of tuple of Receipt
            Done with the first attempt: what landed, or why it did not. The entry then waits, and is tried again.
        """
        job = _Job(entry, open_sink, options, closes)
        with self._changed:
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="stagesink-outbox", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return job.future

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything was tried, and tell whether all of it has landed.

        What failed before is tried again now.

        Parameters
        ----------
        timeout : float, optional
            Seconds; None waits as long as it takes.
        """
        with self._changed:
            for job in self._jobs:
                job.not_before = 0.0
            pending = {id(job): job.attempts for job in self._all()}
            self._changed.notify_all()

            def tried() -> bool:
                return all(job.attempts > pending.get(id(job), -1) for job in self._all())

            return self._changed.wait_for(tried, timeout) and not self._all()

    def finish(self, timeout: float | None = _EXIT_SECONDS) -> None:
        """Wait for what was never tried, at the end of the process, and say what is left."""
        with self._changed:
            self._changed.wait_for(lambda: all(job.attempts for job in self._all()), timeout)
            left = len(self._all())
        if left:
            _log.warning("%d uploads wait in %s. `stagesink sync` uploads them.", left, self.outbox.path)

    def _all(self) -> list[_Job]:
        return [*self._jobs, *([] if self._busy is None else [self._busy])]

    def _work(self) -> None:
        while True:
            with self._changed:
                while (job := self._next()) is None:
                    self._changed.wait(self._idle())
                self._jobs.remove(job)
                self._busy = job
            outcomes: list[Outcome] = []
            try:
                outcomes = self._land(job)
                landed = outcomes[0].status == "landed"
            except StagesinkError as error:
                landed = False
                self._settle_future(job, error)
            else:
                self._settle_future(job, outcomes[0])
            with self._changed:
                self._busy = None
                job.attempts += 1
                if not landed and self.outbox.entry(job.entry.id) is not None:
                    job.not_before = time.monotonic() + min(_FIRST_WAIT * 2 ** (job.attempts - 1), _LONGEST_WAIT)
                    self._jobs.append(job)
                for outcome in outcomes[1:]:
                    self._drop(outcome.row)
                self._changed.notify_all()

    def _next(self) -> _Job | None:
        """Return the job whose turn it is; one that a newer job replaces waits for that one's outcome."""
        now = time.monotonic()
        for job in self._jobs:
            newer = any(
                other.entry.created > job.entry.created and not other.entry.upload.adds and _same_place(job, other)
                for other in self._jobs
            )
            if job.not_before <= now and not newer:
                return job
        return None

    def _idle(self) -> float | None:
        due = [job.not_before for job in self._jobs]
        return max(0.05, min(due) - time.monotonic()) if due else None

    def _land(self, job: _Job) -> list[Outcome]:
        self.outbox.settle(job.entry)
        if job.entry.packed is not None:  # packing reads the files in its own way
            job.entry = self.outbox.own(job.entry)
        entry = job.entry
        row = Row.of(entry)
        sync = Sync(self.outbox, lambda uri: job.open_sink(), job.options)
        with sync if job.closes else nullcontext():
            outcomes = list(sync.land([row]))
        if not outcomes:  # it is gone: another process has landed it, or somebody removed it
            return [Outcome(row, "superseded")]
        failed = outcomes[0].error
        if failed is not None:
            _log.warning(
                "%s was not uploaded: %s It waits in %s and is tried again.", entry.path, failed, self.outbox.path
            )
            with suppress(OutboxError):  # no room for a copy: the links stay
                job.entry = self.outbox.own(entry)  # it may wait long now
        return outcomes

    def _drop(self, row: Row) -> None:
        for job in [job for job in self._jobs if job.entry.id == row.id]:
            self._jobs.remove(job)
            job.attempts += 1
            self._settle_future(job, Outcome(row, "superseded"))

    def _settle_future(self, job: _Job, came: Outcome | StagesinkError) -> None:
        if job.future.done():
            return
        if isinstance(came, StagesinkError):
            job.future.set_exception(came)
        elif came.error is not None:
            job.future.set_exception(came.error)
        elif came.status == "landed":
            job.future.set_result(came.receipts)
        else:
            job.future.set_exception(
                Superseded(f"{job.entry.path} was not uploaded from here: a newer one, or another process, was first.")
            )


def _same_place(job: _Job, other: _Job) -> bool:
    one, two = job.entry, other.entry
    return (one.sink, one.run_id, one.path) == (two.sink, two.run_id, two.path)


_lock = threading.Lock()
_uploaders: dict[tuple[int, Path], BackgroundUploader] = {}


def background_uploader(outbox: Outbox) -> BackgroundUploader:
    """Return this process's uploader for an outbox. At the end of the process it is waited for."""
    here = (os.getpid(), outbox.path)
    with _lock:
        if here not in _uploaders:
            if not any(pid == here[0] for pid, _ in _uploaders):
                _at_exit(_finish_all)
            _uploaders[here] = BackgroundUploader(outbox)
        return _uploaders[here]


def uploaders_here() -> Iterator[BackgroundUploader]:
    """Yield the uploaders of this process."""
    pid = os.getpid()
    with _lock:
        yield from [uploader for (owner, _), uploader in _uploaders.items() if owner == pid]


def _finish_all() -> None:
    for uploader in uploaders_here():
        uploader.finish()


def _at_exit(call: Callable[[], None]) -> None:
    # Before the executors of the standard library shut down, which `atexit` would be too late for: sinks use them.
    register: Callable[[Callable[[], None]], None] = threading._register_atexit  # type: ignore[attr-defined]
    register(call)


if hasattr(os, "register_at_fork"):

    def _new_lock_after_fork() -> None:
        global _lock
        _lock = threading.Lock()

    os.register_at_fork(after_in_child=_new_lock_after_fork)
