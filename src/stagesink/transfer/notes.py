"""Notes that writers leave for each other: small objects in the folder ``.stagesink`` of a run.

No upload may go there, so no note stands in the way of one, and none has a manifest's name, so nothing is listed,
verified or restored as an upload because of it. What a note says stands in its name, so that one listing reads them
all. An empty note counts as none: that is what is left of one in a store that cannot remove.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from stagesink.artifacts import NOTES_FOLDER, ArtifactKey, MemorySource, StoredArtifact
from stagesink.errors import DeleteNotSupported, SinkAuthError
from stagesink.sinks.protocol import ArtifactSink, LastingSink, NotingSink

ALONE = "-"
"""The group of one who writes with nobody else."""

_MAX_DEPTH = 12  # folders told apart; below that, paths count as one
_MANIFEST_SUFFIXES = (".manifest.json", "_manifest.json", ".tar.gz")

Place = tuple[str, ...]
"""A path as a chain of digests, one for each folder on the way: those of a folder begin those of what it holds."""


@dataclass(frozen=True, slots=True)
class Note:
    """What the name of a note says.

    Parameters
    ----------
    kind : {"turn", "part"}
    place : tuple of str
    group : str
        Those of one group write at one place together.
    rest : tuple of str
        What the kind makes of it.
    size : int
        Bytes, in a listing.
    """

    kind: Literal["turn", "part"]
    place: Place
    group: str
    rest: tuple[str, ...]
    size: int = field(default=0, compare=False)

    @property
    def path(self) -> str:
        """Where the note lies in the run."""
        return f"{NOTES_FOLDER}/{'.'.join((self.kind, '-'.join(self.place) or '-', self.group, *self.rest))}"

    def meets(self, place: Place) -> bool:
        """Whether it is about that place, one inside, or one around it."""
        return all(mine == other for mine, other in zip(self.place, place, strict=False))


def place_of(paths: Sequence[str]) -> Place:
    """Return the place of one path; of several, the whole run."""
    if len(paths) != 1:
        return ()
    names = [_without_suffix(name) for name in paths[0].split("/")[:_MAX_DEPTH]]
    return tuple(_digest("/".join(names[: depth + 1]), 8) for depth in range(len(names)))


def group_of(*what: object) -> str:
    """Return the name of the group that agrees on all of this."""
    return _digest(repr(what), 16)


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _without_suffix(name: str) -> str:
    """Give a manifest the name of what it describes, whose place is the same."""
    return next((name.removesuffix(suffix) for suffix in _MANIFEST_SUFFIXES if name.endswith(suffix)), name)


class Notes:
    """The notes of one run.

    Parameters
    ----------
    sink : ArtifactSink
    run_id : str
    """

    def __init__(self, sink: ArtifactSink, run_id: str) -> None:
        self._sink = sink
        self._quick = sink.notes() if isinstance(sink, NotingSink) else sink
        self._run_id = run_id

    def can_remove(self) -> bool:
        """Whether a note can be taken away again, as far as the sink knows."""
        return not isinstance(self._sink, LastingSink) or self._sink.removes(self._run_id)

    def key(self, note: Note) -> ArtifactKey:
        return ArtifactKey(self._run_id, note.path)

    def put(self, note: Note, data: bytes) -> None:
        """Leave a note. One of the kind "turn" need not outlive a power cut."""
        (self._quick if note.kind == "turn" else self._sink).put(self.key(note), MemorySource(data))

    def read(self, note: Note) -> bytes:
        with self._sink.open(self.key(note)) as stream:
            return stream.read()

    def list(self) -> list[Note]:
        found = (_parse(stored) for stored in self._quick.list(self._run_id, NOTES_FOLDER))
        return [note for note in found if note is not None]

    def remove(self, note: Note) -> None:
        """Remove a note, or leave it empty where that is not possible or not allowed."""
        sink = self._quick if note.kind == "turn" else self._sink
        try:
            sink.delete(self.key(note))
        except (DeleteNotSupported, SinkAuthError):
            sink.put(self.key(note), MemorySource(b""))


def _parse(stored: StoredArtifact) -> Note | None:
    kind, *fields = stored.key.path.removeprefix(f"{NOTES_FOLDER}/").split(".")
    if not stored.size or len(fields) < 3:
        return None
    place = () if fields[0] == "-" else tuple(fields[0].split("-"))
    if kind == "turn" and len(fields) == 5:
        return Note("turn", place, fields[1], tuple(fields[2:]), stored.size)
    if kind == "part" and len(fields) == 3:
        return Note("part", place, fields[1], tuple(fields[2:]), stored.size)
    return None  # left by a later version, or by somebody else
