"""The engine: takes a plan, lands every object through a sink, and commits the whole with its manifest."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import cast

from stagesink.artifacts import ArtifactKey, MemorySource, Proof, Receipt, StoredArtifact
from stagesink.errors import (
    ArtifactNotFound,
    DeleteNotSupported,
    ManifestError,
    SinkConflict,
    SinkError,
    SourceChanged,
    StagesinkError,
    TransferCancelled,
    TransferError,
    TransientSinkError,
    VerificationError,
)
from stagesink.manifest import Manifest, ManifestEntry, is_manifest_path, manifest_key
from stagesink.sinks.protocol import ArtifactSink, BatchingSink
from stagesink.streams import chunks
from stagesink.transfer.listed import ListedSink
from stagesink.transfer.options import TransferOptions
from stagesink.transfer.plan import Plan, PlannedObject
from stagesink.transfer.pool import run_jobs
from stagesink.transfer.progress import ProgressCallback, ProgressCounter
from stagesink.transfer.read import hash_object, read_manifest
from stagesink.transfer.reader import DIGESTS, ReadOnce
from stagesink.transfer.retry import RetryPolicy

logger = logging.getLogger(__name__)

_STRONGEST: tuple[Proof, ...] = ("sha256", "crc64nvme", "crc32c", "md5")
_BUFFERED_BYTES = 64 << 20  # more than any client keeps to itself: from here on the backend has taken some
_ELSEWHERE = "Choose another artifact path, or upload the whole of that anew."
_ASK_UP_TO = 8  # plans of one object; for more, two listings of the run spare each its questions
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
        # Digests this backend was seen to report, besides sha256, each with the largest object of which it did: these
        # are taken while the bytes pass from the second object on. Of what goes in parts many report none.
        self._reported: dict[str, int] = {}

    def run(self, plan: Plan) -> tuple[Receipt, ...]:
        """Land every object of ``plan``, then its manifest.

        What lies there already with the same bytes is not sent again. While objects change the old manifest is gone: a
        tree without its manifest is not there. One failing object does not stop the others.

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
        with _Effort(self, plan.path, [plan]) as effort:
            return _Run(self, plan, effort).run()

    def run_all(self, plans: Sequence[Plan], label: str) -> tuple[Receipt, ...]:
        """Land several plans as :meth:`run` does, each committed by itself.

        Those of one object go side by side, and the store is asked about all of them at once. They share the time for
        retries and one display of progress. One failing plan does not stop the others.

        Parameters
        ----------
        plans : sequence of Plan
            Of one run, with a path of its own each, none inside another's.
        label : str
            Names them all where progress is shown.

        Returns
        -------
        tuple of Receipt
            One per object, in the order of the plans.

        Raises
        ------
        TransferError
            Some plans failed; it carries all receipts and every failure.
        """
        receipts: dict[str, tuple[Receipt, ...]] = {}
        failures: dict[str, StagesinkError] = {}

        def land(plan: Plan, sink: ArtifactSink) -> None:
            try:
                receipts[plan.path] = _Run(self, plan, effort, sink).run()
            except TransferError as error:
                receipts[plan.path] = error.receipts
                failures.update(error.failures)

        with _Effort(self, label, plans) as effort:
            single = [plan for plan in plans if len(plan.objects) == 1]
            lost: set[ArtifactKey] = set()
            try:
                sink = self.sink
                if len(single) > _ASK_UP_TO:
                    sink = effort.retry.call(lambda: ListedSink(self.sink, plans[0].run_id))
                jobs = [(plan.size or 0, partial(land, plan, sink)) for plan in single]
                run_jobs(
                    jobs,
                    workers=self.options.workers,
                    cancel=effort.cancel,
                    tick=effort.counter.tick,
                    moved=effort.counter.moved,
                )
                if isinstance(sink, ListedSink) and self.options.verify != "none":
                    lost = effort.retry.call(sink.lost)
            except SinkError:
                lost = {key for plan in single for key in _keys_of(plan)}  # not known: each is asked by itself
            for plan in plans:
                if plan.path not in receipts or (plan.path not in failures and not lost.isdisjoint(_keys_of(plan))):
                    land(plan, self.sink)
        everything = tuple(receipt for plan in plans for receipt in receipts[plan.path])
        if failures:
            raise TransferError(everything, dict(sorted(failures.items())))
        return everything


def _keys_of(plan: Plan) -> set[ArtifactKey]:
    return {plan.manifest_key, *(item.key for item in plan.objects)}


class _Effort:
    """What the plans of one call share: the time for retries, the display of progress, and Ctrl-C."""

    def __init__(self, transfer: Transfer, label: str, plans: Sequence[Plan]) -> None:
        sizes = [plan.size for plan in plans]
        size = None if None in sizes else sum(size for size in sizes if size is not None)
        self.cancel = threading.Event()
        self.retry = RetryPolicy(transfer.options, self.cancel)
        self.counter = ProgressCounter(label, sum(len(plan.objects) for plan in plans), size, transfer.progress)

    def __enter__(self) -> _Effort:
        return self

    def __exit__(self, *_: object) -> None:
        self.counter.finish()


class _Run:
    """One plan on its way."""

    def __init__(self, transfer: Transfer, plan: Plan, effort: _Effort, sink: ArtifactSink | None = None) -> None:
        self.plan = plan
        self.options = transfer.options
        self.sink = self.target = sink if sink is not None else transfer.sink
        self.reported = transfer._reported
        self.cancel = effort.cancel
        self.retry = effort.retry
        self.counter = effort.counter
        self.receipts: dict[ArtifactKey, Receipt] = {}
        self.failures: dict[ArtifactKey, StagesinkError] = {}
        self.previous: Manifest | None = None
        self.there: dict[ArtifactKey, tuple[ManifestEntry, StoredArtifact]] = {}
        self.committed = False
        self._uncommit_lock = threading.Lock()

    def run(self) -> tuple[Receipt, ...]:
        try:
            self._look_back()
        except StagesinkError as error:
            raise self._nothing_sent(error) from error
        try:
            with self._batch() as self.target:
                self._land_all(self.plan.objects)
                self._confirm()
        except TransferCancelled:
            raise
        except StagesinkError as error:
            raise self._not_durable(error) from error
        receipts = tuple(self.receipts[item.key] for item in self.plan.objects)
        if self.failures:
            raise TransferError(receipts, {key.path: error for key, error in sorted(self.failures.items())})
        try:
            self._remove_stale()
            self._commit()
        except StagesinkError as error:
            raise TransferError(receipts, {self.plan.manifest_key.path: error}) from error
        return receipts

    def _batch(self) -> AbstractContextManager[ArtifactSink]:
        if len(self.plan.objects) > 1 and isinstance(self.sink, BatchingSink):
            return self.sink.batch()
        return nullcontext(self.sink)

    def _nothing_sent(self, error: StagesinkError) -> TransferError:
        receipts = [
            Receipt(item.key, self.sink.uri, item.size or 0, None, 0.0, 0, "failed", "none", error.message)
            for item in self.plan.objects
        ]
        return TransferError(receipts, {self.plan.path: error})

    def _not_durable(self, error: StagesinkError) -> TransferError:
        """What was put is there, but the batch could not make it stay: the disk is full or broken."""
        failures = {key.path: failure for key, failure in sorted(self.failures.items())}
        for key, receipt in self.receipts.items():
            if receipt.status == "uploaded":
                self._fail(key, error)
        receipts = [self.receipts[item.key] for item in self.plan.objects if item.key in self.receipts]
        return TransferError(receipts, {**failures, self.plan.path: error})

    # -- what is there already ---------------------------------------------------------------------------------------

    def _look_back(self) -> None:
        """Find what the previous manifest names and the store still holds with the right size."""
        self.retry.call(self._check_place)
        self.previous = self.retry.call(self._previous)
        if self.previous is None:
            return
        self.committed = True
        entries = {ArtifactKey(self.plan.run_id, entry.path): entry for entry in self.previous.objects()}
        found = self.retry.call(lambda: _look(self.sink, self.plan, entries))
        self.there = {key: (entries[key], stored) for key, stored in found.items() if stored.size == entries[key].size}

    def _check_place(self) -> None:
        """Refuse to overwrite what another upload vouches for: its manifest would speak of other bytes."""
        plan = self.plan
        here = ArtifactKey(plan.run_id, plan.path)
        if is_manifest_path(plan.path) and _manifest_at(self.sink, here) is not None:
            raise SinkConflict(f"{plan.path} is the manifest of another upload.", hint=_ELSEWHERE)
        keys = {item.key.path for item in plan.objects}
        for folder in _folders_above(plan.path):
            above = _manifest_at(self.sink, manifest_key(plan.run_id, folder, "tree"))
            if above is not None and not keys.isdisjoint(entry.path for entry in above.objects()):
                if plan.adds:
                    self.plan = replace(plan, path=folder, kind="tree")  # its manifest is the one that names the file
                    return
                raise SinkConflict(f"{plan.path} is a part of the upload {folder}.", hint=_ELSEWHERE)

    def _previous(self) -> Manifest | None:
        key = self.plan.manifest_key
        try:
            return read_manifest(self.sink, key)
        except ManifestError:
            # Not one of ours. An older program's is replaced, since the name is the manifest's; an upload is not.
            if self.sink.stat(manifest_key(key.run_id, key.path, "file")) is None:
                return None
        raise SinkConflict(f"{key.path} was uploaded, and is where the manifest would go.", hint=_ELSEWHERE)

    def uncommit(self) -> None:
        """Take the old manifest away before the first change: from here on the tree is not there.

        Part of the attempt that makes this change, and tried again with it.
        """
        if not self.committed:
            return
        with self._uncommit_lock:
            if self.committed:
                try:
                    self.sink.delete(self.plan.manifest_key)
                except DeleteNotSupported:
                    self.sink.put(self.plan.manifest_key, MemorySource(b""))  # an empty manifest is none
                self.committed = False

    def _remove_stale(self) -> None:
        """Remove what the previous manifest named and the new one will not: the tree holds what the trainer wrote."""
        if self.previous is None or self.plan.adds:
            return
        named = {ArtifactKey(self.plan.run_id, entry.path) for entry in self.previous.objects()}
        for key in named - self.receipts.keys():
            self.retry.call(lambda key=key: self._remove(key))  # type: ignore[misc]

    def _remove(self, key: ArtifactKey) -> None:
        if self.sink.stat(manifest_key(key.run_id, key.path, "file")) is not None:
            return  # it was uploaded by itself as well
        self.uncommit()
        try:
            self.sink.delete(key)
        except DeleteNotSupported as error:
            logger.warning("%s It stays beside what was uploaded; a restore leaves it out.", error.message)

    # -- one object --------------------------------------------------------------------------------------------------

    def _land_all(self, objects: Iterable[PlannedObject]) -> None:
        jobs = [(item.size or 0, lambda item=item: self._land(item)) for item in objects]
        run_jobs(
            jobs, workers=self.options.workers, cancel=self.cancel, tick=self.counter.tick, moved=self.counter.moved
        )

    def _land(self, item: PlannedObject) -> None:
        earlier = self.receipts.get(item.key)  # put before, and lost by the store
        landing = _Landing(self, item, earlier.attempts if earlier is not None else 0)
        try:
            receipt = landing.unchanged() or self.retry.call(landing.put)
        except TransferCancelled:
            raise
        except StagesinkError as error:
            self.failures[item.key] = error
            receipt = landing.failed(error)
        if earlier is None:
            self.counter.add_file()
        self.receipts[item.key] = receipt

    def read_back(self, key: ArtifactKey) -> str | None:
        """Return the sha256 of what the store gives back, None when it holds nothing there."""
        try:
            return hash_object(self.sink, key, self.cancel, self.retry.moved)[1]
        except ArtifactNotFound:
            return None

    # -- proof -------------------------------------------------------------------------------------------------------

    def _confirm(self) -> None:
        """See that what was put is there, and put again what is not: some stores accept an object and lose it."""
        if self.options.verify not in ("auto", "size"):
            return
        for reads_left in reversed(range(self.options.reads)):
            sent = {key: receipt for key, receipt in self.receipts.items() if receipt.status == "uploaded"}
            if not sent:
                return
            try:
                there = self.retry.call(lambda sent=sent: _look(self.sink, self.plan, sent))  # type: ignore[misc]
            except TransferCancelled:
                raise
            except StagesinkError as error:
                for key in sent:
                    self._fail(key, error)
                return
            lost = {key for key, receipt in sent.items() if key not in there or there[key].size != receipt.size}
            for key, receipt in sent.items():
                if key not in lost and receipt.verified_by == "none":
                    self.receipts[key] = _proven_by_size(receipt)
            if not lost:
                return
            if reads_left:
                self.counter.add_bytes(-sum(sent[key].size for key in lost))
                self._land_all([item for item in self.plan.objects if item.key in lost])
                continue
            for key in lost:
                found = "does not hold it" if key not in there else f"holds {there[key].size} bytes of it"
                sentence = f"{self.sink.uri} accepted {sent[key].size} bytes for {key} and {found}."
                self._fail(key, VerificationError(sentence))

    def _fail(self, key: ArtifactKey, error: StagesinkError) -> None:
        self.failures[key] = error
        self.receipts[key] = replace(self.receipts[key], status="failed", verified_by="none", error=error.message)

    # -- commit ------------------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        manifest = self._manifest()
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
            if self.options.verify != "full":
                return
            if self.read_back(manifest.key) != hashlib.sha256(source.data).hexdigest():
                raise VerificationError(f"{self.sink.uri} gives back other bytes for {manifest.key} than were sent.")

        self.retry.call(put)

    def _manifest(self) -> Manifest:
        manifest = self.plan.manifest({key: (r.size, cast("str", r.sha256)) for key, r in self.receipts.items()})
        before = self.previous
        if not self.plan.adds or before is None or (before.kind, manifest.kind) != ("tree", "tree"):
            return manifest
        files = {entry.path: entry for entry in before.files if self._key_of(entry) in self.there}
        files.update((entry.path, entry) for entry in manifest.files)
        skipped = {*before.skipped, *manifest.skipped}
        return replace(manifest, files=tuple(files[path] for path in sorted(files)), skipped=tuple(sorted(skipped)))

    def _key_of(self, entry: ManifestEntry) -> ArtifactKey:
        return ArtifactKey(self.plan.run_id, f"{self.plan.path}/{entry.path}")


class _Landing:
    """One object on its way: its attempts, and what came of them."""

    __slots__ = ("attempts", "item", "run", "sent", "start", "unanswered")

    def __init__(self, run: _Run, item: PlannedObject, attempts: int) -> None:
        self.run = run
        self.item = item
        self.attempts = attempts
        self.sent = 0
        self.start = time.monotonic()
        self.unanswered: ReadOnce | None = None

    def unchanged(self) -> Receipt | None:
        """Return a receipt when the store holds these very bytes by its manifest, else None."""
        if self.attempts or self.item.key not in self.run.there:
            return None
        entry, stored = self.run.there[self.item.key]
        if self.item.size not in (None, entry.size):
            return None
        reported = self._reported(stored)
        try:
            ours = self._read_through(reported or "sha256")
        except SourceChanged:
            return None  # being written just now: put() reads it anew, up to its limit
        sha256 = ours["sha256"]
        if sha256 != entry.sha256:
            return None
        proof: Proof = "size"
        if self.run.options.verify == "full":
            if self.run.retry.call(lambda: self.run.read_back(self.item.key)) != sha256:
                return None  # damaged or lost since: put() mends it
            proof = "readback"
        elif reported is not None:
            if ours[reported] != stored.digests[reported]:
                return None
            proof = reported
        self.run.counter.add_bytes(entry.size)
        return Receipt(self.item.key, stored.uri, entry.size, sha256, self._seconds(), 0, "unchanged", proof)

    def put(self) -> Receipt:
        """Put the object once and check what the backend says of it."""
        run = self.run
        if self.unanswered is not None and (receipt := self._arrived(self.unanswered)) is not None:
            return receipt
        reader = ReadOnce(self.item.source, run.cancel, self._expected())
        if not run.plan.adds or self.item.key in run.there:  # a new file beside the old ones leaves their manifest true
            run.uncommit()  # only now: a file that is gone by now costs the old upload nothing
        self.attempts += 1
        try:
            stored = run.target.put(self.item.key, reader, on_bytes=self._on_bytes)
            digests = reader.digests()
            proof = self._prove(reader, digests, stored)
        except BaseException as error:
            run.counter.add_bytes(-self.sent)
            self.sent = 0
            self.unanswered = reader if reader.whole and isinstance(error, TransientSinkError) else None
            raise
        return self._uploaded(stored, digests["sha256"], proof)

    def _arrived(self, reader: ReadOnce) -> Receipt | None:
        """Look whether the last attempt, which sent everything and got no good answer, has landed after all.

        A gateway that gives up before its server does would let every further attempt end alike. The right size is no
        proof here, since what lay there before may have it too.
        """
        key, run = self.item.key, self.run
        stored = run.target.stat(key)
        if stored is None or stored.size != reader.count or self.item.source.fingerprint() != reader.fingerprint():
            return None
        sha256 = reader.digests()["sha256"]
        proof: Proof = "readback"
        name = self._reported(stored)
        if name is not None:
            if self._read_through(name)[name] != stored.digests[name]:
                return None
            proof = name
        elif run.read_back(key) != sha256:
            return None
        run.counter.add_bytes(stored.size)
        return self._uploaded(stored, sha256, proof)

    def _uploaded(self, stored: StoredArtifact, sha256: str, proof: Proof) -> Receipt:
        return Receipt(
            self.item.key, stored.uri, stored.size, sha256, self._seconds(), self.attempts, "uploaded", proof
        )

    def failed(self, error: StagesinkError) -> Receipt:
        """Return the receipt of an object that did not land."""
        size = self.item.size or 0
        return Receipt(
            self.item.key,
            self.run.sink.uri,
            size,
            None,
            self._seconds(),
            self.attempts,
            "failed",
            "none",
            error.message,
        )

    def _seconds(self) -> float:
        return time.monotonic() - self.start

    def _on_bytes(self, count: int) -> None:
        self.sent += count
        self.run.counter.add_bytes(count)
        if self.sent > _BUFFERED_BYTES:
            self.run.retry.moved()

    def _prove(self, reader: ReadOnce, ours: dict[str, str], stored: StoredArtifact) -> Proof:
        uri, key, verify = self.run.sink.uri, self.item.key, self.run.options.verify
        if not reader.whole:
            raise VerificationError(f"{uri} said that it has {key}, having read {reader.count} bytes of it.")
        if verify == "none":
            return "none"
        if stored.size != reader.count:
            raise VerificationError(f"{uri} holds {stored.size} bytes of {key}; {reader.count} were sent.")
        if verify == "full":
            found = self.run.read_back(key)
            if found is None:
                raise VerificationError(f"{uri} accepted {reader.count} bytes for {key} and does not hold it.")
            if found != ours["sha256"]:
                raise VerificationError(f"{uri} gives back other bytes for {key} than were sent.")
            return "readback"
        name = self._reported(stored)
        return self._compare(name, ours, stored) if name is not None else "none"  # until its size is confirmed

    def _reported(self, stored: StoredArtifact) -> Proof | None:
        """Name the strongest digest that the backend reports and that is worth comparing, if any."""
        if self.run.options.verify != "auto":
            return None
        return next((name for name in _STRONGEST if name in stored.digests and name in DIGESTS), None)

    def _expected(self) -> list[str]:
        """Name the digests that the backend will report of this object, as far as that is known."""
        size = self.item.size or 0
        return [name for name, largest in list(self.run.reported.items()) if size <= largest]

    def _compare(self, name: Proof, ours: dict[str, str], stored: StoredArtifact) -> Proof:
        """Hold our digest against the one the backend reports."""
        self.run.reported[name] = max(stored.size, self.run.reported.get(name, 0))
        # Read again only for the first objects, before it was known which digest this backend reports.
        mine = ours[name] if name in ours else self._read_through(name)[name]
        if mine != stored.digests[name]:
            raise VerificationError(f"{self.run.sink.uri} reports another {name} for {stored.key} than was sent.")
        return name

    def _read_through(self, name: str) -> dict[str, str]:
        reader = ReadOnce(self.item.source, self.run.cancel, [name])
        with reader.open() as stream:
            for _ in chunks(stream):
                pass
        return reader.digests()


def _proven_by_size(r: Receipt) -> Receipt:
    # Not dataclasses.replace: with thousands of small files its bookkeeping shows.
    return Receipt(r.key, r.uri, r.size, r.sha256, r.seconds, r.attempts, r.status, "size", r.error)


def _manifest_at(sink: ArtifactSink, key: ArtifactKey) -> Manifest | None:
    try:
        return read_manifest(sink, key)
    except ManifestError:
        return None


def _folders_above(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def _look(sink: ArtifactSink, plan: Plan, keys: Iterable[ArtifactKey]) -> dict[ArtifactKey, StoredArtifact]:
    """Ask the store for some objects of a plan, in as few round trips as it takes."""
    wanted = set(keys)
    if len(wanted) > _STAT_UP_TO:
        return {stored.key: stored for stored in sink.list(plan.run_id, plan.path) if stored.key in wanted}
    found = (sink.stat(key) for key in wanted)
    return {stored.key: stored for stored in found if stored is not None}
