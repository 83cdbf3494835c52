"""The ranks of a distributed job, which upload the shards of one checkpoint together and never talk to each other.

Each rank uploads its shards and leaves its part of the manifest, a :class:`.Note`. Whoever finds the parts of all
ranks there puts the one manifest, whose bytes are the same whoever does it, and removes the parts. Until then, and
for everybody who lists, verifies or restores, there is nothing.

**Who may do what when.** While it changes objects a rank holds a :class:`.Turn` that it shares with the ranks of its
own group (one destination, session and number of ranks) and with nobody else. The one who commits takes a turn alone:
so no rank of the group, and no other job, changes anything between its look at the parts and its manifest. A turn
that a dead process left does not let a commit through either: before its first change a rank marks its part as being
written, and only the same rank, once it has finished, puts that right.

Two processes that both say they are the same rank wait for each other: one may be an earlier life that still hangs.

**A rank, before its first change**, in this order:

1. removes the parts of all others at this place: other sessions, another number of ranks;
2. copies the manifest that lies there into a note, ``base`` when it is one of its own group's, else ``before``. No
   other can be put while it holds its turn, so all ranks that do this write the same bytes;
3. marks its own part as being written;
4. removes the manifest: from here on what was there is gone.

**The commit** takes each rank's part; where a rank has none, its files out of ``base``. So one rank may start again
after all have finished, with other bytes, and the others need not. With a part that is being written, or none at all,
there is no commit, unless the manifest of the group is there itself. It looks that each file is there, removes what
``base`` or ``before`` names and the new manifest does not, puts the manifest, and then removes the notes. Killed before
the manifest, whichever rank uploads again commits; killed after it, what it left says the same as the manifest: the
next rank to upload again, or the next upload of anything else, removes it.

**What may be merged** is a question of the session alone, which is in the name of each part. Two starts of a job, or
two checkpoints of one start, must differ in it; :mod:`stagesink.runs.session` says where it comes from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from stagesink.artifacts import ArtifactKey
from stagesink.errors import ArtifactNotFound, ManifestError, ShardConflict, SinkError, VerificationError
from stagesink.manifest import Manifest
from stagesink.transfer.notes import ALONE, Note
from stagesink.transfer.parts import files_of, merged, part_of, read_part, whole_of
from stagesink.transfer.plan import Plan
from stagesink.transfer.run import Effort, Run, look
from stagesink.transfer.share import Share
from stagesink.transfer.turns import Turn

logger = logging.getLogger(__name__)

T = TypeVar("T")

_BASE, _BEFORE = "base", "before"
_WRITING = b"w"  # what stands for a part while its rank writes: a part is longer than this
_AT_ONCE = 16  # parts read or removed


class RankRun(Run):
    """One rank's share on its way.

    Parameters
    ----------
    effort : Effort
    plan : Plan
    share : Share
    """

    _commits = False

    def __init__(self, effort: Effort, plan: Plan, share: Share) -> None:
        self.share = share
        super().__init__(effort, plan)

    def _start_anew(self) -> None:
        super()._start_anew()
        self.group = self.share.group(self.plan.path)
        self.turn = self.effort.turn(self.plan.run_id, [self.plan.path], f"{self.group}+{_name(self.share.rank)}")
        self.own: Manifest | None = None
        """The part that this rank left the last time, if it is still true."""
        self.writing = False

    # -- before the first change -------------------------------------------------------------------------------------

    def _begin(self) -> None:
        super()._begin()
        mine = next((note for note in self.turn.seen if note == self._note(self.share.rank)), None)
        self.parts = [note for note in self.parts if note.group != self.group]
        if mine is None or mine.size == len(_WRITING):
            return
        self.own = self.retry.call(self._own_part)
        if self.own is not None:
            entries = {ArtifactKey(self.plan.run_id, entry.path): entry for entry in self.own.objects()}
            found = self.retry.call(lambda: look(self.sink, self.plan, entries))
            for key, stored in found.items():
                if stored.size == entries[key].size:
                    self.there[key] = (entries[key], stored)

    def _own_part(self) -> Manifest | None:
        try:
            return self._read(self.share.rank)
        except ManifestError:
            return None  # damaged: it is written anew

    def uncommit(self) -> None:
        """Say that this rank writes, and take the manifest away: see the module's docstring."""
        if self.writing:
            return
        self.drop_parts()
        with self._uncommit_lock:
            self._say_that_it_writes()

    def _say_that_it_writes(self) -> None:
        if not self.writing:
            if not self._is_settled:
                self._leave_note()
                self.settled = True
            if self.previous is not None and self.committed:
                self.turn.notes.put(self._note(self._kept_as(self.previous)), self.previous.to_bytes())
            self.turn.notes.put(self._note(self.share.rank), _WRITING)
            if self.committed:
                self._delete_manifest()
            self.committed = False
            self.writing = True

    def _kept_as(self, manifest: Manifest) -> str:
        whole = whole_of(manifest)
        return _BASE if whole is not None and whole.is_of(self.share) else _BEFORE

    # -- afterwards --------------------------------------------------------------------------------------------------

    def _remove_stale(self) -> None:
        """Remove what this rank had uploaded and has no more. What it cannot know of, whoever commits removes.

        If another rank names such a file as its own, this makes its part untrue in a way that the commit notices.
        """
        if self.own is not None:
            old = {ArtifactKey(self.plan.run_id, entry.path) for entry in self.own.objects()}
            for key in old - self.receipts.keys():
                self.retry.call(lambda key=key: self._remove(key, self.uncommit))  # type: ignore[misc]

    def _commit(self) -> None:
        part = part_of(self._manifest(), self.share)
        if not self.writing:
            if self._is_in_the_whole(part):
                logger.info("%s: what rank %d uploaded is in the whole already.", self.plan.path, self.share.rank)
                if not any(note.kind == "part" and note.group == self.group for note in self.turn.seen):
                    return
            elif self.own is None or not part.same_content(self.own):
                self.retry.call(self.uncommit)
        if self.writing:
            self.turn.check()
            self.retry.call(lambda: self._put_part(part))
        self.turn.end()
        self._commit_if_all_are_there()

    def _is_in_the_whole(self, part: Manifest) -> bool:
        if self.previous is None or self.own is not None or self._kept_as(self.previous) != _BASE:
            return False
        return frozenset(files_of(self.previous, self.share.rank)) == frozenset(part.files)

    @property
    def _stands(self) -> bool:
        """Whether the whole that lies there is this group's: what is left of its notes was to be removed."""
        return self.previous is not None and self.committed and self._kept_as(self.previous) == _BASE

    def _put_part(self, part: Manifest) -> None:
        note, data = self._note(self.share.rank), part.to_bytes()
        self.turn.notes.put(note, data)
        if self.options.verify == "none":
            return
        stored = self.sink.stat(self.turn.notes.key(note))
        if stored is None or stored.size != len(data):
            raise VerificationError(f"{self.sink.uri} accepted the part of rank {self.share.rank} and lost it.")

    def _commit_if_all_are_there(self) -> None:
        rank, ranks = self.share.rank, self.share.world_size
        if not self._are_all_there(self.retry.call(self.turn.notes.list)):
            logger.info("%s: rank %d is there; the whole is once all %d are.", self.plan.path, rank, ranks)
            return
        alone = self.effort.turn(self.plan.run_id, [self.plan.path], ALONE)
        try:
            alone.announce()
            alone.wait(until=lambda seen: not self._are_all_there(seen))
            if alone.is_mine:
                self._commit_all(alone)
                logger.info("%s: the parts of all %d ranks were there; it is whole.", self.plan.path, ranks)
        finally:
            alone.end()

    def _are_all_there(self, seen: Sequence[Note]) -> bool:
        sizes = {note.rest[0]: note.size for note in seen if note.kind == "part" and note.group == self.group}
        for rank in range(self.share.world_size):
            size = sizes.get(_name(rank))
            if size == len(_WRITING) or (size is None and sizes.get(_BASE, 0) <= len(_WRITING) and not self._stands):
                return False
        return True

    # -- the whole, with nobody else writing --------------------------------------------------------------------------

    def _commit_all(self, turn: Turn) -> None:
        names = {note.rest[0] for note in turn.seen if note.kind == "part" and note.group == self.group}
        there = self.retry.call(self._previous)
        base = self.retry.call(lambda: self._read_manifest(_BASE)) if _BASE in names else None
        if base is None and there is not None and self._kept_as(there) == _BASE:
            base = there
        if base is None and not names.issuperset(map(_name, range(self.share.world_size))):
            return  # another upload has come to this place meanwhile
        before = self.retry.call(lambda: self._read_manifest(_BEFORE)) if _BEFORE in names else None
        parts = self._at_once(
            lambda rank: self.retry.call(lambda: self._part_of_rank(rank, names, base)), range(self.share.world_size)
        )
        try:
            whole = merged(parts, self.share.session)
        except ShardConflict as error:
            # One's bytes lie under the other's name: neither part is true, and each of these ranks has to upload again.
            self._at_once(turn.notes.remove, [self._note(rank) for rank in error.ranks])
            raise
        # What is the same was committed by one that was killed over its clean-up: that goes on.
        if there is None or not whole.same_content(there):
            self.retry.call(lambda: self._see_all(whole))
            self._remove_older(whole, [old for old in (there, base, before, *self.abandoned) if old is not None])
            self._put_manifest(whole, turn, last=False)
        self._clean_up(turn)

    def _part_of_rank(self, rank: int, names: set[str], base: Manifest | None) -> Manifest:
        if _name(rank) in names:
            return self._read(rank)
        assert base is not None
        first = base if rank == 0 else None  # the whole tells rank 0's story
        return Manifest(
            base.run_id,
            base.path,
            base.kind,
            files_of(base, rank),
            None,
            () if first is None else first.skipped,
            {} if first is None else first.details,
            {} if first is None else first.provenance,
        )

    def _see_all(self, whole: Manifest) -> None:
        if self.options.verify == "none":
            return
        sizes = {ArtifactKey(self.plan.run_id, entry.path): entry.size for entry in whole.objects()}
        found = look(self.sink, self.plan, sizes)
        for key, size in sizes.items():
            if key not in found or found[key].size != size:
                raise VerificationError(
                    f"{self.sink.uri} does not hold {key} as a rank uploaded it.", hint="Let that rank upload again."
                )

    def _remove_older(self, whole: Manifest, olds: Sequence[Manifest]) -> None:
        kept = {entry.path for entry in whole.objects()}
        for path in sorted({entry.path for old in olds for entry in old.objects()} - kept):
            key = ArtifactKey(self.plan.run_id, path)
            self.retry.call(lambda key=key: self._remove(key, self._delete_manifest))  # type: ignore[misc]

    def _clean_up(self, turn: Turn) -> None:
        notes = [note for note in turn.seen if note.kind == "part" and note.meets(turn.place)]
        try:
            self._at_once(lambda note: self.retry.call(lambda: turn.notes.remove(note)), notes)
        except SinkError as error:
            # They say what the manifest says, and the next upload removes them.
            logger.warning("%s What the ranks left for each other stays there until the next upload.", error.message)

    def _at_once(self, call: Callable[..., T], items: Sequence[object]) -> list[T]:
        with ThreadPoolExecutor(min(max(len(items), 1), _AT_ONCE), "stagesink-parts") as pool:
            return list(pool.map(call, items))

    # -- notes -------------------------------------------------------------------------------------------------------

    def _note(self, what: int | str) -> Note:
        name = what if isinstance(what, str) else _name(what)
        return Note("part", self.turn.place, self.group, (name,))

    def _read(self, rank: int) -> Manifest:
        return read_part(self.turn.notes.read(self._note(rank)), self.plan.path, self.share, rank)

    def _read_manifest(self, name: str) -> Manifest | None:
        try:
            return Manifest.from_bytes(self.turn.notes.read(self._note(name)))
        except (ArtifactNotFound, ManifestError):
            return None


def _name(rank: int) -> str:
    return f"{rank:06d}"
