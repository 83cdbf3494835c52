"""One plan on its way: every object through a sink, then the manifest that makes the whole of them one upload."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TypeVar, cast

from stagesink.artifacts import NOTES_FOLDER, ArtifactKey, MemorySource, Proof, Receipt, StoredArtifact, lies_under
from stagesink.errors import (
    ArtifactNotFound,
    DeleteNotSupported,
    ManifestError,
    NameRefused,
    SinkConflict,
    StagesinkError,
    TransferCancelled,
    TransferError,
    VerificationError,
)
from stagesink.interrupts import interrupts_whole
from stagesink.manifest import Manifest, ManifestEntry, is_manifest_path, manifest_key
from stagesink.sinks.protocol import ArtifactSink, BatchingSink, ExpectingSink
from stagesink.transfer.landing import Landing, strongest
from stagesink.transfer.notes import ALONE, Note, group_of, place_of
from stagesink.transfer.options import TransferOptions
from stagesink.transfer.plan import Plan, PlannedObject
from stagesink.transfer.pool import run_jobs
from stagesink.transfer.progress import ProgressCallback, ProgressCounter
from stagesink.transfer.read import hash_object, read_manifest
from stagesink.transfer.retry import RetryPolicy
from stagesink.transfer.turns import Turn

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ELSEWHERE = "Choose another artifact path, or upload the whole of that anew."
_STAT_UP_TO = 2  # objects; for more one listing costs fewer round trips
_BEFORE, _BESIDE = "before", "beside"
_LASTING = ((_BEFORE,), (_BESIDE,))
_MARK = ("landing",)


class Effort:
    """What the plans of one call share: sink and options, the time for retries, the display of progress, and Ctrl-C."""

    def __init__(
        self,
        sink: ArtifactSink,
        options: TransferOptions,
        reported: dict[str, int],
        plans: Sequence[Plan],
        label: str,
        progress: ProgressCallback | None,
        landed: Callable[[Receipt], None] | None,
    ) -> None:
        sizes = [plan.size for plan in plans]
        size = None if None in sizes else sum(size for size in sizes if size is not None)
        self.sink = sink
        self.options = options
        self.reported = reported
        self.landed = landed
        self.cancel = threading.Event()
        self.retry = RetryPolicy(options, self.cancel)
        self.counter = ProgressCounter(label, sum(len(plan.objects) for plan in plans), size, progress)

    def __enter__(self) -> Effort:
        return self

    def __exit__(self, *_: object) -> None:
        self.counter.finish()

    def turn(self, run_id: str, paths: Sequence[str], group: str = ALONE) -> Turn:
        """Return a turn to write there."""
        return Turn(self.sink, run_id, paths, self.retry, self.cancel, self.options.budget, group)


class Run:
    """One plan on its way.

    Parameters
    ----------
    effort : Effort
    plan : Plan
    turn : Turn, optional
        One that covers this plan and others; without it the plan takes one of its own.
    sink : ArtifactSink, optional
        Stands for the effort's, and knows more.
    """

    _commits = True
    """Whether it is this run that puts the manifest, and no other one."""

    def __init__(
        self, effort: Effort, plan: Plan, *, turn: Turn | None = None, sink: ArtifactSink | None = None
    ) -> None:
        self.plan = self._planned = plan
        self.effort = effort
        self.options = effort.options
        self.sink = self.target = sink if sink is not None else effort.sink
        self.reported = effort.reported
        self.cancel = effort.cancel
        self.retry = effort.retry
        self.counter = effort.counter
        self._group_turn = turn
        self._uncommit_lock = threading.Lock()
        self._start_anew()

    def _start_anew(self) -> None:
        self.plan = self._planned
        self.turn = self._group_turn or self.effort.turn(self.plan.run_id, [self.plan.path])
        self.receipts: dict[ArtifactKey, Receipt] = {}
        self.failures: dict[ArtifactKey, StagesinkError] = {}
        self.taken: dict[ArtifactKey, dict[str, str]] = {}
        self.previous: Manifest | None = None
        self.there: dict[ArtifactKey, tuple[ManifestEntry, StoredArtifact]] = {}
        self.committed = False
        self.marked = self.settled = False
        self.parts: list[Note] = []
        """What ranks have left here: it says of objects what will not be true any more after the first change."""
        self.untouched: list[Note] = []
        """Of uploads that took the manifest away and did not come to their commit: what they left as it was."""
        self.abandoned: list[Manifest] = []
        """What those notes say, where no manifest does."""

    def run(self) -> tuple[Receipt, ...]:
        for tries_left in reversed(range(self.options.reads)):
            try:
                return self._once()
            except TransferError as error:
                if not tries_left or not any(isinstance(each, _Lost) for each in error.failures.values()):
                    raise
            self.counter.add_bytes(-sum(receipt.size for receipt in self.receipts.values()))
            self._start_anew()
        raise AssertionError("unreachable")

    def _once(self) -> tuple[Receipt, ...]:
        try:
            with interrupts_whole():
                try:
                    self._begin()
                except StagesinkError as error:
                    raise self._nothing_sent(error) from error
                with self._expecting():
                    return self._land_and_commit()
        except BaseException as error:
            if not isinstance(error, Exception):
                self.cancel.set()  # Ctrl-C ends what is called beside this thread, too
            raise
        finally:
            if self.turn is not self._group_turn:
                self.turn.end()

    def _land_and_commit(self) -> tuple[Receipt, ...]:
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

    def _expecting(self) -> AbstractContextManager[None]:
        sink = self.effort.sink  # what stands for it answers questions only
        if not isinstance(sink, ExpectingSink):
            return nullcontext()
        new = [item.key for item in self.plan.objects if item.key not in self.there]
        # The manifest first: it comes last, and by itself would cost a round trip then.
        return sink.expecting([self.plan.manifest_key, *new] if self._commits and not self.committed else new)

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

    def _begin(self) -> None:
        """Take a turn, and look at what is there."""
        if lies_under(self.plan.path, NOTES_FOLDER):
            raise NameRefused(
                f"Nothing can be uploaded to {self.plan.path}: there writers leave notes for each other.",
                hint="Choose another artifact path.",
            )
        if self.turn is self._group_turn:
            self._look_back()
        else:
            self._take_turn()
        place = place_of([self.plan.path])
        left = [note for note in self.turn.seen if note.kind == "part" and note.meets(place)]
        own = (self._lasting(_BEFORE), self._lasting(_BESIDE))
        left = [note for note in left if note.rest not in _LASTING or self.retry.call(partial(self._concerns, note))]
        self.untouched = [note for note in left if note in own]
        self.parts = [note for note in left if note not in self.untouched]
        if self.previous is None:
            self.retry.call(self._take_up)
        if self._is_journaled and self._mark() in left:
            self.parts.remove(self._mark())
            self.marked = True
            if self.plan.landed:
                named = () if self.previous is None else self.previous.objects()
                self._see_what_is_there((*self.plan.landed, *named))

    def _concerns(self, note: Note) -> bool:
        """Tell whether what a killed upload left is this one's to go on from, or says what it is about to change.

        Else it is another upload's, in a folder above or below, or an archive's of the same name: that one needs it.
        """
        try:
            manifest = Manifest.from_bytes(self.turn.notes.read(note))
        except (ArtifactNotFound, ManifestError):
            return True
        own = {item.key.path for item in self.plan.objects}
        return manifest.path == self.plan.path or not own.isdisjoint(entry.path for entry in manifest.objects())

    def _take_turn(self) -> None:
        while True:
            self.turn.announce()
            self.turn.wait()
            # Only now: what was asked before may be what another changed and committed just before its turn ended.
            self._look_back()
            place = place_of([self.plan.path])
            if place[: len(self.turn.place)] == self.turn.place:
                return
            # It adds to a tree that is larger than what was planned.
            self.turn.end()
            self.turn = self.effort.turn(self.plan.run_id, [self.plan.path])
            self.plan = self._planned

    def _look_back(self) -> None:
        """Find what the previous manifest names and the store still holds with the right size."""
        self.retry.call(self._check_place)
        self.there = {}
        self.previous = self.retry.call(self._previous)
        self.committed = self.previous is not None
        if self.previous is not None:
            self._see_what_is_there(self.previous.objects())

    def _see_what_is_there(self, named: Iterable[ManifestEntry]) -> None:
        entries = {ArtifactKey(self.plan.run_id, entry.path): entry for entry in named}
        found = self.retry.call(lambda: look(self.sink, self.plan, entries))
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
        self.drop_parts()
        if not self.committed and self._is_settled:
            return
        with self._uncommit_lock:
            if self.committed or not self._is_settled:
                self._leave_note()
                self.settled = True
            if self.committed:
                self._delete_manifest()
                self.committed = False

    @property
    def _is_settled(self) -> bool:
        """Whether no note of a killed addition vouches for what this upload changes."""
        return self.settled or not self.untouched or self._lasting(_BESIDE) not in self.untouched

    def _lasting(self, what: str) -> Note:
        return Note("part", place_of([self.plan.path]), ALONE, (what,))

    def _leave_note(self) -> None:
        """Say what of the old manifest this upload does not touch: whoever comes after a kill must know of it.

        An upload that replaces has that to remove, one that adds to a folder has it to vouch for.
        """
        own = {item.key.path for item in self.plan.objects}
        olds = [old for old in ([self.previous] if self.previous is not None else self.abandoned) if old.kind == "tree"]
        files = {entry.path: entry for old in olds for entry in old.files}
        rest = tuple(entry for path, entry in files.items() if f"{self.plan.path}/{path}" not in own)
        note, beside = self._lasting(_BESIDE if self.plan.adds else _BEFORE), self._lasting(_BESIDE)
        # Where nothing can be removed it would stay for good.
        if len(rest) > 0 and self.retry.call(self.turn.notes.can_remove):
            self.turn.notes.put(note, replace(olds[0], files=rest).to_bytes())
            if note not in self.untouched:
                self.untouched.append(note)
        if beside in self.untouched and not (rest and note == beside):
            self.turn.notes.remove(beside)  # it vouches for what is about to change
            self.untouched.remove(beside)

    def _take_up(self) -> None:
        """Go on where an upload that was killed has left the place without a manifest."""
        for note in self.untouched:
            try:
                manifest = Manifest.from_bytes(self.turn.notes.read(note))
            except (ArtifactNotFound, ManifestError):
                continue  # somebody else's, or damaged: then it is as if nothing had been here
            if manifest.path != self.plan.path:
                continue
            self.abandoned.append(manifest)
            if self.plan.adds and note == self._lasting(_BESIDE):
                self.previous = manifest
                self._see_what_is_there(manifest.objects())

    def drop_parts(self) -> None:
        """Take away what ranks have left here, since it will not be true any more."""
        if not self.parts:
            return
        with self._uncommit_lock:
            while self.parts:
                self.turn.notes.remove(self.parts[-1])
                self.parts.pop()

    @property
    def _is_journaled(self) -> bool:
        """Whether somebody notes what has landed, to go on from there; one object leaves nothing to go on from."""
        return self.effort.landed is not None and len(self.plan.objects) > 1

    def _mark(self) -> Note:
        """Name this very upload. Whoever else writes here takes its mark away before the first change."""
        sources = sorted((item.key.path, str(item.source.fingerprint())) for item in self.plan.objects)
        return Note("part", place_of([self.plan.path]), group_of(self.plan.path, sources), _MARK)

    def mark(self) -> None:
        """Say before the first change that what this upload brings over is nobody else's: see :meth:`_mark`.

        A journal alone cannot know of another who wrote here meanwhile and came to no end either.
        """
        if self.marked or not self._is_journaled or not self.turn.notes.can_remove():
            return
        with self._uncommit_lock:
            if not self.marked:
                self.turn.notes.put(self._mark(), b"{}")
                self.marked = True

    def _delete_manifest(self) -> None:
        try:
            self.sink.delete(self.plan.manifest_key)
        except DeleteNotSupported:
            self.sink.put(self.plan.manifest_key, MemorySource(b""))  # an empty manifest is none

    def _remove_stale(self) -> None:
        """Remove what the previous manifest named and the new one will not: the tree holds what the trainer wrote."""
        if self.plan.adds:
            return
        olds = self.abandoned if self.previous is None else [self.previous]
        named = {ArtifactKey(self.plan.run_id, entry.path) for old in olds for entry in old.objects()}
        for key in named - self.receipts.keys():
            self.retry.call(lambda key=key: self._remove(key, self.uncommit))  # type: ignore[misc]

    def _remove(self, key: ArtifactKey, before: Callable[[], None]) -> None:
        if self.sink.stat(manifest_key(key.run_id, key.path, "file")) is not None:
            return  # it was uploaded by itself as well
        before()
        try:
            self.sink.delete(key)
        except DeleteNotSupported as error:
            logger.warning("%s It stays beside what was uploaded; a restore leaves it out.", error.message)

    # -- one object --------------------------------------------------------------------------------------------------

    def _land_all(self, objects: Iterable[PlannedObject]) -> None:
        jobs = [(item.size or 0, lambda item=item: self._land(item)) for item in objects]
        run_jobs(
            jobs,
            workers=self.options.workers,
            cancel=self.cancel,
            tick=self.counter.tick,
            moved=self.counter.moved,
            answer=self.turn.answer,
        )

    def _land(self, item: PlannedObject) -> None:
        earlier = self.receipts.get(item.key)  # put before, and lost by the store
        landing = Landing(self, item, earlier.attempts if earlier is not None else 0)
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
        if receipt.status == "uploaded" and self.effort.landed is not None:
            self.effort.landed(receipt)

    def read_back(self, key: ArtifactKey) -> str | None:
        """Return the sha256 of what the store gives back, None when it holds nothing there."""
        try:
            return hash_object(self.sink, key, self.cancel, self.retry.moved)[1]
        except ArtifactNotFound:
            return None

    # -- proof -------------------------------------------------------------------------------------------------------

    def _confirm(self) -> None:
        """See that what was put is there, and put again what is not: some stores accept an object and lose it.

        What the store answered with its own digest of is proven already; of the rest it may tell one now.
        """
        if self.options.verify not in ("auto", "size"):
            return
        for reads_left in reversed(range(self.options.reads)):
            receipts = self.receipts.items()
            sent = {key: r for key, r in receipts if (r.status, r.verified_by) == ("uploaded", "none")}
            if not sent:
                return
            try:
                there = self.retry.call(lambda sent=sent: look(self.sink, self.plan, sent))  # type: ignore[misc]
            except TransferCancelled:
                raise
            except StagesinkError as error:
                for key in sent:
                    self._fail(key, error)
                return
            lost: dict[ArtifactKey, str] = {}
            for key, receipt in sent.items():
                proof, wrong = self._proof_of(receipt, there.get(key))
                if wrong is not None:
                    lost[key] = wrong
                else:
                    self.receipts[key] = _proven(receipt, proof)
            if not lost:
                return
            if reads_left:
                self.counter.add_bytes(-sum(sent[key].size for key in lost))
                self._land_all([item for item in self.plan.objects if item.key in lost])
                continue
            for key, found in lost.items():
                sentence = f"{self.sink.uri} accepted {sent[key].size} bytes for {key} and {found}."
                self._fail(key, VerificationError(sentence))

    def _proof_of(self, receipt: Receipt, stored: StoredArtifact | None) -> tuple[Proof, str | None]:
        """Return what the store's own word proves of an object, and what is wrong with it, if anything."""
        ours = {"sha256": receipt.sha256, **self.taken.pop(receipt.key, {})}
        if stored is None:
            return "none", "does not hold it"
        if stored.size != receipt.size:
            return "none", f"holds {stored.size} bytes of it"
        name = strongest(stored) if self.options.verify == "auto" else None
        if name is None:
            return "size", None
        if name not in ours:
            self.reported[name] = max(receipt.size, self.reported.get(name, 0))  # taken from now on
            return "size", None
        return name, None if ours[name] == stored.digests[name] else f"reports another {name}"

    def _fail(self, key: ArtifactKey, error: StagesinkError) -> None:
        self.failures[key] = error
        self.receipts[key] = replace(self.receipts[key], status="failed", verified_by="none", error=error.message)

    # -- commit ------------------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        manifest = self._manifest()
        if self.previous is None or not self.committed or not manifest.same_content(self.previous):
            last = self.turn is not self._group_turn and not self.untouched and not self.marked
            self._put_manifest(manifest, self.turn, last=last)
        # Marks of others too: of what they had brought over nothing is theirs any more.
        marks = [note for note in self.parts if note.rest == _MARK]
        for note in (*self.untouched, *marks, *([self._mark()] if self.marked else [])):
            self.retry.call(lambda note=note: self.turn.notes.remove(note))  # type: ignore[misc]

    def _put_manifest(self, manifest: Manifest, turn: Turn, *, last: bool) -> None:
        """Commit. Where that is the last change, the turn ends while the store is asked whether it has the manifest."""
        source = MemorySource(manifest.to_bytes())

        def put() -> StoredArtifact:
            turn.check()
            return self.sink.put(manifest.key, source)

        def is_there(stored: StoredArtifact) -> bool:
            there = self.sink.stat(manifest.key)
            return there is not None and there.size == stored.size

        def put_and_look() -> None:
            if not is_there(put()):
                raise VerificationError(f"{self.sink.uri} accepted the manifest {manifest.key} and lost it.")
            if self.options.verify != "full":
                return
            if self.read_back(manifest.key) != hashlib.sha256(source.data).hexdigest():
                raise VerificationError(f"{self.sink.uri} gives back other bytes for {manifest.key} than were sent.")

        if self.options.verify == "none":
            self.retry.call(put)
        elif self.options.verify == "full" or not last:
            self.retry.call(put_and_look)
        else:
            stored = self.retry.call(put)
            ending = start_call(turn.end)
            landed = self.retry.call(lambda: is_there(stored))
            ending.result()
            if not landed:
                raise _Lost(f"{self.sink.uri} accepted the manifest {manifest.key} and lost it.")

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


class _Lost(VerificationError):
    """The store lost a manifest, and others may have written here since: everything is looked at anew."""


def start_call(call: Callable[[], T]) -> Future[T]:
    """Call something beside this thread. Ctrl-C does not wait for it."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="stagesink-beside", daemon=True).start()
    return future


def _proven(r: Receipt, proof: Proof) -> Receipt:
    # Not dataclasses.replace: with thousands of small files its bookkeeping shows.
    return Receipt(r.key, r.uri, r.size, r.sha256, r.seconds, r.attempts, r.status, proof, r.error)


def _manifest_at(sink: ArtifactSink, key: ArtifactKey) -> Manifest | None:
    try:
        return read_manifest(sink, key)
    except ManifestError:
        return None


def _folders_above(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def look(sink: ArtifactSink, plan: Plan, keys: Iterable[ArtifactKey]) -> dict[ArtifactKey, StoredArtifact]:
    """Ask the store for some objects of a plan, in as few round trips as it takes."""
    wanted = set(keys)
    if len(wanted) > _STAT_UP_TO:
        return {stored.key: stored for stored in sink.list(plan.run_id, plan.path) if stored.key in wanted}
    found = (sink.stat(key) for key in wanted)
    return {stored.key: stored for stored in found if stored is not None}
