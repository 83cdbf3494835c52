"""A rank's part of a manifest, and how parts become one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stagesink.errors import EmptyTree, ManifestError, ShardConflict
from stagesink.manifest import Manifest, ManifestEntry
from stagesink.transfer.share import Share

_RANKS = "ranks"  # what both kinds of manifest say of the ranks stands there


@dataclass(frozen=True, slots=True)
class Whole:
    """What a manifest that ranks made together says of them: how many of its files are whose, in order."""

    session: str
    counts: tuple[int, ...]

    def is_of(self, share: Share) -> bool:
        return (self.session, len(self.counts)) == (share.session, share.world_size)


def part_of(manifest: Manifest, share: Share) -> Manifest:
    """Return a rank's own manifest as its part of the whole."""
    return replace(manifest, details={**manifest.details, _RANKS: {**_of(share), "rank": share.rank}})


def read_part(data: bytes, path: str, share: Share, rank: int) -> Manifest:
    """Read what a rank has left, distrusting it.

    Raises
    ------
    ManifestError
        It is not what belongs there.
    """
    part = Manifest.from_bytes(data)
    said = part.details.get(_RANKS)
    if (part.path, part.kind) != (path, "tree") or said != {**_of(share), "rank": rank}:
        raise ManifestError(f"What lies where the part of rank {rank} of {path} belongs is none.")
    return part


def whole_of(manifest: Manifest) -> Whole | None:
    """Return what a manifest says of the ranks that made it; None when none did."""
    said = manifest.details.get(_RANKS)
    if not isinstance(said, Mapping) or manifest.kind != "tree":
        return None
    session, counts = said.get("session"), said.get("files")
    if (
        not isinstance(session, str)
        or not isinstance(counts, list)
        or not all(type(n) is int and n >= 0 for n in counts)
    ):
        return None
    return Whole(session, tuple(counts)) if counts and sum(counts) == len(manifest.files) else None


def files_of(manifest: Manifest, rank: int) -> tuple[ManifestEntry, ...]:
    """Return one rank's files in a whole."""
    whole = whole_of(manifest)
    assert whole is not None
    start = sum(whole.counts[:rank])
    return manifest.files[start : start + whole.counts[rank]]


def merged(parts: Sequence[Manifest], session: str) -> Manifest:
    """Make one manifest of the parts of all ranks, in their order: the same bytes, whoever does it.

    Raises
    ------
    ShardConflict
        Two ranks uploaded a file of one name.
    EmptyTree
        None of them uploaded any.
    """
    whose: dict[str, int] = {}
    conflicts: dict[str, tuple[int, int]] = {}
    for rank, part in enumerate(parts):
        for entry in part.files:
            if entry.path in whose:
                conflicts[entry.path] = (whose[entry.path], rank)
            whose.setdefault(entry.path, rank)
    if conflicts:
        path, (one, other) = next(iter(conflicts.items()))
        raise ShardConflict(
            f"{parts[0].path}/{path} was uploaded by rank {one} and by rank {other}.",
            ranks=sorted({rank for pair in conflicts.values() for rank in pair}),
            hint="Give each rank a folder of its own with the files that it alone wrote, and upload them again.",
        )
    first = parts[0]
    if not whose:
        raise EmptyTree(f"None of the {len(parts)} ranks uploaded a file to {first.path}.")
    details: dict[str, Any] = {name: value for name, value in first.details.items() if name != _RANKS}
    counts = [len(part.files) for part in parts]
    skipped = {name for part in parts for name in part.skipped}
    return replace(
        first,
        files=tuple(entry for part in parts for entry in part.files),
        skipped=tuple(sorted(skipped)),
        details={**details, _RANKS: {"session": session, "world_size": len(parts), "files": counts}},
    )


def _of(share: Share) -> dict[str, Any]:
    return {"session": share.session, "world_size": share.world_size}
