"""One upload that waits: what is to land where, and where its bytes lie meanwhile.

``plan.json`` in the entry's folder says it all but for the bytes, and no secret: credentials are the business of
whoever lands it.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, cast, get_args

from stagesink.archive import ArchiveFormat, ArchiveSource
from stagesink.artifacts import ArtifactKey, FileSource, Fingerprint, lies_under, source_error
from stagesink.errors import OutboxError, StagesinkError
from stagesink.manifest import Kind, ManifestEntry
from stagesink.outbox.snapshot import How, rewritten
from stagesink.transfer.plan import Plan, PlannedObject
from stagesink.transfer.share import Share
from stagesink.tree import Tree, TreeFile

FORMAT = "stagesink.outbox/1"
PLAN_FILE = "plan.json"
FILES = "files"


@dataclass(frozen=True, slots=True)
class KeptFile:
    """One file of an entry.

    Parameters
    ----------
    path : str
        Path inside the run; of a file that goes into an archive, path inside the archived folder.
    name : str
        File name in the entry's folder of files.
    size : int
        Bytes.
    how : {"reflink", "link", "copy"}
    fingerprint : Fingerprint
        Of the kept file. Of a hard link it tells whether its owner has written into it since.
    sha256 : str or None
        None where the bytes were not read when they were taken.
    """

    path: str
    name: str
    size: int
    how: How
    fingerprint: Fingerprint
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class KeptSource(FileSource):
    """A kept file's bytes, as long as they are what was kept: a link shows what its owner writes into it."""

    kept: Fingerprint
    how: How = "link"
    sha256: str | None = None
    """Of what was kept, where it is known: whoever reads it all is to find the same."""

    def is_untouched(self) -> bool:
        """Tell whether it is still what was kept. A symbolic link never is: none is ever made in an outbox.

        The inode is not asked for, which is another one once an outbox was moved to another disk. Nor is the time of
        what is the outbox's alone.
        """
        try:
            now = os.lstat(self.path)
        except OSError as error:
            raise source_error(self.path, error) from error
        if not stat.S_ISREG(now.st_mode):
            return False
        return now.st_size == self.kept.size and (self.how != "link" or now.st_mtime_ns == self.kept.mtime_ns)

    def open(self) -> BinaryIO:
        stream = FileSource.open(self)
        if self.is_untouched():
            return stream
        stream.close()
        raise rewritten(self.path)

    def link_to(self, path: str) -> bool:
        """Give the file a second name: once it has landed, the outbox lets go of its own.

        Only what was copied here: of what was linked the owner may have the file open still. And only where its sha256
        is known, since what is written into it under its new name while it waits on must be noticed.
        """
        if self.how != "copy" or self.sha256 is None:
            return False
        try:
            if os.lstat(self.path).st_nlink > 1:
                return False
            os.link(self.path, path, follow_symlinks=False)
        except OSError:  # another disk, or one without links; where it is the folder, copying into it tells
            return False
        with suppress(OSError):
            if os.lstat(path).st_nlink == 2:
                return True
            os.unlink(path)  # this file system does not count names, so nobody knows who else has one
        return False


class _KeptTreeFile(TreeFile):
    """A kept file on its way into an archive."""

    kept: Fingerprint
    how: How
    sha256: str | None

    @property
    def source(self) -> KeptSource:
        return KeptSource(self.location, self.kept, self.how, self.sha256)


@dataclass(frozen=True, slots=True)
class Packed:
    """How the files of an entry become one archive."""

    archive_format: ArchiveFormat
    level: int
    prefix: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One upload that waits.

    Parameters
    ----------
    id : str
        Sortable by time.
    created : float
        Seconds since 1970.
    sink : str
        URI, without secrets.
    stage, slot : str or None
    priority : int
        Of the slot: the smaller goes first when time is short.
    upload : Plan
        Without its objects.
    files : tuple of KeptFile
    packed : Packed or None
        The files land as one archive.
    folder : Path
        Where it lies. Not written into it.
    host : str
        Of the store, where the URI does not say it.
    """

    id: str
    created: float
    sink: str
    stage: str | None
    slot: str | None
    priority: int
    upload: Plan
    files: tuple[KeptFile, ...]
    packed: Packed | None = None
    folder: Path = field(default_factory=Path, compare=False)
    host: str = ""

    @property
    def store(self) -> tuple[str, str]:
        """The store that it goes to, to be told from others."""
        return self.sink, self.host

    @property
    def run_id(self) -> str:
        return self.upload.run_id

    @property
    def path(self) -> str:
        """Destination inside the run; of a rank's share, a name of its own below it."""
        return self.upload.place

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def place(self, file: KeptFile) -> str:
        """Return where a file's bytes lie."""
        return f"{self.folder}/{FILES}/{file.name}"

    def source(self, file: KeptFile) -> KeptSource:
        """Return a file's bytes."""
        return KeptSource(self.place(file), file.fingerprint, file.how, file.sha256)

    def goes_where(self, other: Entry) -> bool:
        """Tell whether both touch the same objects."""
        return (self.store, self.run_id) == (other.store, other.run_id) and overlap(self.path, other.path)

    def check(self) -> None:
        """See that every file is still what was kept.

        Raises
        ------
        SourceError
            One is not, or is gone.
        """
        for file in self.files:
            if not self.source(file).is_untouched():
                raise rewritten(self.place(file))

    def plan(self, run_id: str | None = None) -> Plan:
        """Return the engine's plan, with the kept files as its sources.

        Parameters
        ----------
        run_id : str, optional
            The run that the server made for the local one.
        """
        run = self.run_id if run_id is None else run_id
        if self.packed is None:
            objects = tuple(
                PlannedObject(ArtifactKey(run, file.path), self.source(file), file.size) for file in self.files
            )
        else:
            files = tuple(map(self._tree_file, self.files))
            source = ArchiveSource(
                Tree(self.folder / FILES, files), self.packed.archive_format, self.packed.level, self.packed.prefix
            )
            objects = (PlannedObject(ArtifactKey(run, self.upload.path), source, None),)
        return replace(self.upload, run_id=run, objects=objects)

    def _tree_file(self, file: KeptFile) -> TreeFile:
        found = _KeptTreeFile(file.path, self.place(file), file.size)
        found.kept, found.how, found.sha256 = file.fingerprint, file.how, file.sha256
        return found

    def to_bytes(self) -> bytes:
        """Return ``plan.json``."""
        upload = self.upload
        packed = self.packed and {
            "archive_format": self.packed.archive_format,
            "level": self.packed.level,
            "prefix": self.packed.prefix,
        }
        document = {
            "format": FORMAT,
            "id": self.id,
            "created": self.created,
            "sink": self.sink,
            "host": self.host,
            "stage": self.stage,
            "slot": self.slot,
            "priority": self.priority,
            "run_id": upload.run_id,
            "path": upload.path,
            "kind": upload.kind,
            "adds": upload.adds,
            "share": upload.share and [upload.share.rank, upload.share.world_size, upload.share.session],
            "skipped": list(upload.skipped),
            "details": dict(upload.details),
            "provenance": dict(upload.provenance),
            "contents": upload.contents and [[each.path, each.size, each.sha256] for each in upload.contents],
            "archive_sha256": upload.archive_sha256,
            "packed": packed,
            "files": [
                [each.path, each.name, each.size, each.how, each.fingerprint, each.sha256] for each in self.files
            ],
        }
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes, folder: Path) -> Entry:
        """Read ``plan.json``, distrusting it.

        Raises
        ------
        OutboxError
            It is not one of ours, or damaged.
        """
        try:
            document = json.loads(data)
            if document["format"] != FORMAT or document["id"] != folder.name:
                raise ValueError("it is another one's")
            return _from_document(document, folder)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, StagesinkError) as error:
            raise OutboxError(
                f"{folder} is damaged: {error}", hint="Its bytes are untouched: look at them, then remove the folder."
            ) from error

    @classmethod
    def read(cls, folder: Path) -> Entry:
        """Read the entry that lies in a folder.

        Raises
        ------
        OutboxError
            There is none, or it is damaged.
        """
        plan = folder / PLAN_FILE
        try:
            with open(os.open(plan, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                if os.fstat(file.fileno()).st_uid != os.geteuid():
                    # It names where to upload to, with our credentials.
                    raise OutboxError(f"{plan} is another user's.", hint="Remove its folder, and ask who wrote it.")
                data = file.read()
        except OSError as error:
            raise OutboxError(
                f"{plan} cannot be read: {error.strerror or error}.", hint="Check the disk it lies on."
            ) from error
        return cls.from_bytes(data, folder)


def overlap(path: str, other: str) -> bool:
    """Tell whether one path is the other, or lies in it."""
    return lies_under(path, other) or lies_under(other, path)


def _from_document(document: Mapping[str, Any], folder: Path) -> Entry:
    if document["kind"] not in get_args(Kind):
        raise ValueError("its kind is unknown")
    files = tuple(_file(each) for each in document["files"])
    contents = document["contents"]
    upload = Plan(
        document["run_id"],
        document["path"],
        cast("Kind", document["kind"]),
        (),
        tuple(document["skipped"]),
        details=dict(document["details"]),
        provenance=dict(document["provenance"]),
        contents=None if contents is None else tuple(ManifestEntry(*each) for each in contents),
        archive_sha256=document["archive_sha256"],
        adds=bool(document["adds"]),
        share=None if document.get("share") is None else Share(*document["share"]),
    )
    ArtifactKey(upload.run_id, upload.path)
    packed = document["packed"]
    return Entry(
        document["id"],
        float(document["created"]),
        document["sink"],
        document["stage"],
        document["slot"],
        int(document["priority"]),
        upload,
        files,
        None if packed is None else Packed(packed["archive_format"], packed["level"], packed["prefix"]),
        folder,
        str(document.get("host", "")),
    )


def _file(values: list[Any]) -> KeptFile:
    path, name, size, how, fingerprint, sha256 = values
    if not name.isdecimal() or how not in get_args(How):
        raise ValueError(f"the file {name!r} is none of an entry's")
    ArtifactKey("any", path)
    return KeptFile(path, name, int(size), how, Fingerprint(*fingerprint), sha256)
