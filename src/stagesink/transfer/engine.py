"""The engine: takes a plan, lands every object through a sink, and commits the whole with its manifest."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import cast

from stagesink.artifacts import ArtifactKey, MemorySource, Proof, Receipt, StoredArtifact
from stagesink.errors import ManifestError, SourceChanged, StagesinkError, TransferCancelled, TransferError, VerificationError
from stagesink.manifest import Manifest, ManifestEntry
from stagesink.sinks._chunks import chunks
from stagesink.sinks.protocol import ArtifactSink, BatchingSink
from stagesink.transfer.options import TransferOptions
from stagesink.transfer.plan import Plan, PlannedObject
from stagesink.transfer.pool import run_jobs
from stagesink.transfer.progress import ProgressCallback, ProgressCounter
from stagesink.transfer.read import hash_object, read_manifest
from stagesink.transfer.reader import ReadOnce
from stagesink.transfer.retry import RetryPolicy

_STRONGEST: tuple[Proof, ...] = ("sha256", "crc64nvme", "crc32c", "md5")
_COMPUTED_HERE = frozenset({"sha256", "md5"})  # what hashlib takes while the bytes pass
_STAT_UP_TO = 2  # objects; for more one listing costs fewer round trips


class Transfer:
    """Lands plans in one sink.

    Parameters
    ----------
    sink : ArtifactSink
    options : TransferOptions, optional
    progress : callable, optional
        Called with a :class:`~stagesink.transfer.Progress` about ten times a second, and once at the end.

    Examples
    --------
    >>> receipts = Transfer(open_sink("memory:")).run(plan_tree("run1", "checkpoint", "out/checkpoint"))
    """

    def __init__(
        self, sink: ArtifactSink, options: TransferOptions | None = None, *, progress: ProgressCallback | None = None
    ) -> None:
        self.sink = sink
        self.options = options or TransferOptions()
        self.progress = progress
        # Digests this backend was seen to report, besides sha256: taken while the bytes pass from the second object on.
        self._reported: set[str] = set()

    def run(self, plan: Plan) -> tuple[Receipt, ...]:
        """Land every object of ``plan``, then its manifest.

        What lies there already with the same bytes is not sent again. While objects change the old manifest is gone: a tree
        without its manifest is not there. One failing object does not stop the others.

        Returns
        -------
        tuple of Receipt
            One per object, in the plan's order.

        Raises
        ------
        TransferError
            Some objects failed; or the manifest could not be read or written; it carries all receipts and every
            failure. The upload is not committed.
        """
        return _Run(self, plan).run()


class _Run:
    """One plan on its way."""

    def __init__(self, transfer: Transfer, plan: Plan) -> None:
        self.plan = plan
        self.options = transfer.options
        self.sink = transfer.sink
        self.target = transfer.sink
        self.reported = transfer._reported
        self.cancel = threading.Event()
        self.retry = RetryPolicy(self.options, self.cancel)
        self.counter = ProgressCounter(plan.path, len(plan.objects), plan.size, transfer.progress)
        self.receipts: dict[ArtifactKey, Receipt] = {}
        self.failures: dict[ArtifactKey, StagesinkError] = {}
        self._uncommit_lock = threading.Lock()

    def run(self) -> tuple[Receipt, ...]:
        try:
            self.previous = self.retry.call(lambda: _previous(self.sink, self.plan))
            self.there = self._still_there()
        except StagesinkError as error:
            raise self._nothing_sent(error) from error
        self.committed = self.previous is not None
        with self._batch() as target:
            self.target = target
            try:
                self._put_all(self.plan.objects)
                self._confirm()
            finally:
                self.counter.finish()
        receipts = tuple(self.receipts[item.key] for item in self.plan.objects)
        if self.failures:
            raise TransferError(receipts, {key.path: error for key, error in sorted(self.failures.items())})
        try:
            self._remove_stale()
            self._commit()
        except StagesinkError as error:
            raise TransferError(receipts, {self.plan.manifest_key.path: error}) from error
        return receipts

    def _nothing_sent(self, error: StagesinkError) -> TransferError:
        receipts = [
            Receipt(item.key, self.sink.uri, item.size or 0, None, 0.0, 0, "failed", "none", error.message)
            for item in self.plan.objects
        ]
        return TransferError(receipts, {self.plan.path: error})

    def _batch(self) -> AbstractContextManager[ArtifactSink]:
        if len(self.plan.objects) > 1 and isinstance(self.sink, BatchingSink):
            return self.sink.batch()
        return nullcontext(self.sink)

    # -- what is there already ---------------------------------------------------------------------------------------

    def _still_there(self) -> dict[ArtifactKey, tuple[ManifestEntry, StoredArtifact]]:
        """What the previous manifest names and the store still holds with the right size."""
        if self.previous is None:
            return {}
        entries = {ArtifactKey(self.plan.run_id, entry.path): entry for entry in self.previous.objects()}
        found = self.retry.call(lambda: _look(self.sink, self.plan, entries))
        return {key: (entries[key], stored) for key, stored in found.items() if stored.size == entries[key].size}

    def _uncommit(self) -> None:
        """Take the old manifest away before the first change: from here on the tree is not there."""
        with self._uncommit_lock:
            if self.committed:
                self.retry.call(lambda: self.sink.delete(self.plan.manifest_key))
                self.committed = False

    def _remove_stale(self) -> None:
        """Remove what the previous manifest named and the new one will not: the tree holds what the trainer wrote."""
        if self.previous is None:
            return
        keys = {item.key for item in self.plan.objects}
        for entry in self.previous.objects():
            key = ArtifactKey(self.plan.run_id, entry.path)
            if key not in keys:
                self._uncommit()
                self.retry.call(lambda key=key: self.sink.delete(key))  # type: ignore[misc]

    # -- one object --------------------------------------------------------------------------------------------------

    def _put_all(self, objects: Iterable[PlannedObject]) -> None:
        jobs = [(item.size or 0, lambda item=item: self._land(item)) for item in objects]
        run_jobs(jobs, workers=self.options.workers, cancel=self.cancel, tick=self.counter.tick)

    def _land(self, item: PlannedObject) -> None:
        attempt = _Attempts(self, item)
        start = time.monotonic()
        try:
            receipt = attempt.unchanged() or self.retry.call(attempt.put)
        except TransferCancelled:
            raise
        except StagesinkError as error:
            self.failures[item.key] = error
            receipt = Receipt(
                item.key, self.sink.uri, item.size or 0, None, 0.0, attempt.count, "failed", "none", error.message
            )
        if item.key not in self.receipts:
            self.counter.add_file()
        self.receipts[item.key] = replace(receipt, seconds=time.monotonic() - start)

    # -- proof -------------------------------------------------------------------------------------------------------

    def _confirm(self) -> None:
        """See that what was put is there, and put again what is not: some stores accept an object and lose it."""
        if self.options.verify not in ("auto", "size"):
            return
        for last in (*(False,) * (self.options.reads - 1), True):
            sent = {key: r for key, r in self.receipts.items() if r.status == "uploaded"}
            if not sent:
                return
            there = self.retry.call(lambda sent=sent: _look(self.sink, self.plan, sent))  # type: ignore[misc]
            lost = {key for key, r in sent.items() if key not in there or there[key].size != r.size}
            for key in sent.keys() - lost:
                if self.receipts[key].verified_by == "none":
                    self.receipts[key] = replace(self.receipts[key], verified_by="size")
            if not lost:
                return
            if last:
                for key in lost:
                    self._fail_lost(key, there.get(key))
                return
            self._put_all([item for item in self.plan.objects if item.key in lost])

    def _fail_lost(self, key: ArtifactKey, there: StoredArtifact | None) -> None:
        receipt = self.receipts[key]
        found = "does not hold it" if there is None else f"holds {there.size} bytes of it"
        error = VerificationError(f"{self.sink.uri} accepted {receipt.size} bytes for {key} and {found}.")
        self.failures[key] = error
        self.receipts[key] = replace(receipt, status="failed", verified_by="none", error=error.message)

    # -- commit ------------------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        sent = {key: (r.size, cast("str", r.sha256)) for key, r in self.receipts.items()}
        manifest = self.plan.manifest(sent)
        if self.previous is not None and self.committed and manifest.same_content(self.previous):
            return
        source = MemorySource(manifest.to_bytes())

        def put() -> None:
            stored = self.sink.put(manifest.key, source)
            if self.options.verify == "none":
                return
            there = self.sink.stat(manifest.key)
            if there is None or there.size != stored.size:
                raise VerificationError(f"{self.sink.uri} accepted the manifest {manifest.key} and lost it.")

        self.retry.call(put)


class _Attempts:
    """The tries at one object."""

    def __init__(self, run: _Run, item: PlannedObject) -> None:
        self.run = run
        self.item = item
        before = run.receipts.get(item.key)  # put before, and lost by the store
        self.count = before.attempts if before is not None else 0

    def unchanged(self) -> Receipt | None:
        """Return a receipt when the store holds these very bytes by its manifest, else None."""
        entry, stored = self.run.there.get(self.item.key, (None, None))
        if entry is None or stored is None or self.count or self.item.size not in (None, entry.size):
            return None
        try:
            digests = self._read_through()
        except SourceChanged:
            return None  # being written just now: put() reads it anew, up to its limit
        if digests["sha256"] != entry.sha256:
            return None
        self.run.counter.add_bytes(entry.size)
        return Receipt(self.item.key, stored.uri, entry.size, entry.sha256, 0.0, 0, "unchanged", "size")

    def put(self) -> Receipt:
        """Put the object once and check what the backend says of it."""
        run, key = self.run, self.item.key
        run._uncommit()
        self.count += 1
        reader = ReadOnce(self.item.source, run.cancel, run.reported)
        sent = 0

        def on_bytes(count: int) -> None:
            nonlocal sent
            sent += count
            run.counter.add_bytes(count)
            run.retry.moved()

        try:
            stored = run.target.put(key, reader, on_bytes=on_bytes)
            proof = self._prove(reader, stored)
        except BaseException:
            run.counter.add_bytes(-sent)
            raise
        return Receipt(key, stored.uri, stored.size, reader.digests()["sha256"], 0.0, self.count, "uploaded", proof)

    def _prove(self, reader: ReadOnce, stored: StoredArtifact) -> Proof:
        run, key = self.run, self.item.key
        if not reader.whole:
            raise VerificationError(f"{run.sink.uri} said that it has {key}, having read {reader.count} bytes of it.")
        if run.options.verify == "none":
            return "none"
        if stored.size != reader.count:
            raise VerificationError(f"{run.sink.uri} holds {stored.size} bytes of {key}; {reader.count} were sent.")
        if run.options.verify == "size":
            return "none"  # until it is confirmed
        ours = reader.digests()
        if run.options.verify == "full":
            if hash_object(run.sink, key, run.cancel)[1] != ours["sha256"]:
                raise VerificationError(f"{run.sink.uri} gives back other bytes for {key} than were sent.")
            return "readback"
        return self._compare(ours, stored)

    def _compare(self, ours: dict[str, str], stored: StoredArtifact) -> Proof:
        """Hold our digest against the strongest one the backend reports and we can take."""
        for name in _STRONGEST:
            if name not in stored.digests or name not in _COMPUTED_HERE:
                continue
            self.run.reported.add(name)
            # Read again only for the first objects, before it was known which digest this backend reports.
            mine = ours[name] if name in ours else self._read_through(name)[name]
            if mine != stored.digests[name]:
                raise VerificationError(f"{self.run.sink.uri} reports another {name} for {stored.key} than was sent.")
            return name
        return "none"

    def _read_through(self, *algorithms: str) -> dict[str, str]:
        reader = ReadOnce(self.item.source, self.run.cancel, algorithms)
        with reader.open() as stream:
            for _ in chunks(stream):
                pass
        return reader.digests()


def _previous(sink: ArtifactSink, plan: Plan) -> Manifest | None:
    try:
        return read_manifest(sink, plan.manifest_key)
    except ManifestError:
        return None  # not one of ours, for example an older program's; the name is the manifest's, so it is replaced


def _look(sink: ArtifactSink, plan: Plan, keys: Iterable[ArtifactKey]) -> dict[ArtifactKey, StoredArtifact]:
    """Ask the store for some objects of a plan, in as few round trips as it takes."""
    wanted = set(keys)
    if len(wanted) > _STAT_UP_TO:
        return {stored.key: stored for stored in sink.list(plan.run_id, plan.path) if stored.key in wanted}
    found = (sink.stat(key) for key in wanted)
    return {stored.key: stored for stored in found if stored is not None}

