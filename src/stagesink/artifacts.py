"""The nouns: what is moved, where it lives, and what came of it."""

from __future__ import annotations

import io
import os
import re
import stat as stat_module
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Literal, NamedTuple, Protocol, cast, runtime_checkable

from stagesink.errors import InvalidKey, SourceKindError, SourceNotFound, SourceUnreadable

MAX_SEGMENT_BYTES = 255
"""Longest name of one path segment in bytes: what ext4, xfs, APFS and NTFS can hold."""

MAX_PATH_BYTES = 1024
"""Longest run id plus path in bytes: the limit of S3, GCS and Azure Blob object names."""

NOTES_FOLDER = ".stagesink"
"""Folder of a run that nothing can be uploaded into: there writers leave notes for each other."""

_FORBIDDEN = re.compile(r"[\\\x00-\x1f\x7f\ud800-\udfff]")
_PLAIN = re.compile(r"[0-9A-Za-z_=@+-][0-9A-Za-z_=@+.-]*(?:/[0-9A-Za-z_=@+-][0-9A-Za-z_=@+.-]*)*")
_FORBIDDEN_NAMES = {"\\": "a backslash", "\x00": "a NUL byte"}

Status = Literal["uploaded", "unchanged", "kept", "skipped", "failed"]
Proof = Literal["sha256", "md5", "crc64nvme", "crc32c", "readback", "size", "none"]


def _check_segment(segment: str, whole: str, what: str) -> None:
    shown = whole if len(whole) <= 80 else whole[:77] + "..."
    if whole.startswith("/"):
        raise InvalidKey(f"{what} {shown!r} is absolute.", hint="Use a relative path such as 'metrics.json'.")
    if segment == "":
        hint = "Leave out the '/' at its end." if whole.endswith("/") else "Use a relative path such as 'metrics.json'."
        raise InvalidKey(f"{what} {shown!r} has an empty segment.", hint=hint)
    if segment in (".", ".."):
        raise InvalidKey(f"{what} {shown!r} contains {segment!r}.", hint="Use a path that stays inside the run.")
    if (bad := _FORBIDDEN.search(segment)) is not None:
        name = _FORBIDDEN_NAMES.get(bad.group(), f"the character {bad.group()!r}")
        raise InvalidKey(f"{what} {shown!r} contains {name}.", hint="Use '/' between folders, and printable names.")
    if len(segment.encode()) > MAX_SEGMENT_BYTES:
        raise InvalidKey(
            f"{what} {shown!r} has a segment of {len(segment.encode())} bytes; {MAX_SEGMENT_BYTES} is the most.",
            hint="Use a shorter name.",
        )


@dataclass(frozen=True, slots=True, order=True)
class ArtifactKey:
    """Where an object lives. Everything is addressed by keys, so no other code checks paths.

    Parameters
    ----------
    run_id : str
        One path segment.
    path : str
        POSIX, relative, normalised: no empty segment, ``.``, ``..``, backslash, control character or lone surrogate.

    Raises
    ------
    InvalidKey
        When one of the two breaks a rule; the message says which.
    """

    run_id: str
    path: str

    def __post_init__(self) -> None:
        if (
            len(self.path) + len(self.run_id) < MAX_SEGMENT_BYTES
            and _PLAIN.fullmatch(self.path)
            and "/" not in self.run_id
        ):
            # The way nearly every name goes: nothing in it that any rule below could mind.
            _check_segment(self.run_id, self.run_id, "Run id")
            return
        if "/" in self.run_id:
            raise InvalidKey(f"Run id {self.run_id!r} contains '/'.", hint="A run id is one name, not a path.")
        _check_segment(self.run_id, self.run_id, "Run id")
        for segment in self.path.split("/"):
            _check_segment(segment, self.path, "Artifact path")
        length = len(self.run_id.encode()) + 1 + len(self.path.encode())
        if length > MAX_PATH_BYTES:
            raise InvalidKey(
                f"Artifact path {self.path[:77]!r}... makes a name of {length} bytes; {MAX_PATH_BYTES} is the most.",
                hint="Use shorter names or fewer folders.",
            )

    def __hash__(self) -> int:
        return hash(self.path)  # keys are compared within one run, thousands at a time

    def __str__(self) -> str:
        return f"{self.run_id}/{self.path}"


def lies_under(path: str, prefix: str) -> bool:
    """Tell whether ``prefix`` names this path or a folder above it; the empty one stands for the whole run."""
    return not prefix or path == prefix or path.startswith(f"{prefix}/")


class Fingerprint(NamedTuple):
    """What tells that a file is still the one that was opened. Sizes in bytes, times in nanoseconds."""

    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Fingerprint:
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


class Digest(Protocol):
    """One of hashlib's."""

    def hexdigest(self) -> str: ...


@runtime_checkable
class Source(Protocol):
    """Bytes that can be opened again, as often as a retry needs."""

    @property
    def size(self) -> int | None:
        """Bytes it holds now, or None when that is known only after reading (an archive made on the fly)."""
        ...

    def open(self) -> BinaryIO:
        """Open for reading from the first byte."""
        ...

    def fingerprint(self) -> Hashable:
        """A value that differs when the bytes may have changed since."""
        ...


@dataclass(frozen=True, slots=True)
class FileSource:
    """One regular file. ``size`` and ``fingerprint()`` look at the file anew at each call."""

    path: str | os.PathLike[str]

    @property
    def size(self) -> int:
        return self.fingerprint().size

    def open(self) -> BinaryIO:
        try:
            stream = io.FileIO(self.path)  # what open() makes of it unbuffered, in half the time
        except (OSError, ValueError) as error:
            raise source_error(self.path, error) from error
        return cast("BinaryIO", stream)

    def fingerprint(self) -> Fingerprint:
        try:
            status = os.stat(self.path)
        except (OSError, ValueError) as error:
            raise source_error(self.path, error) from error
        if not stat_module.S_ISREG(status.st_mode):
            # Asked before open(): opening a named pipe would wait for its writer for ever.
            raise SourceUnreadable(f"{self.path} is not a regular file.", hint="Only files with bytes can be uploaded.")
        return Fingerprint.of(status)


@dataclass(frozen=True, slots=True)
class MemorySource:
    """A piece of memory."""

    data: bytes = field(repr=False)

    @property
    def size(self) -> int:
        return len(self.data)

    def open(self) -> BinaryIO:
        return io.BytesIO(self.data)

    def fingerprint(self) -> Hashable:
        return id(self.data), len(self.data)


def link_to(source: Source, path: str) -> bool:
    """Give a source's file a second name, if the source gives it away: whoever would copy it on one disk may have it.

    A source that does so has a method ``link_to(path)``. It is still to be read: that tells whether it is what it was.

    Returns
    -------
    bool
        False where it is to be copied: the source gives nothing away, somebody may still write into the file, or it
        lies on another disk.
    """
    gives: Callable[[str], bool] | None = getattr(source, "link_to", None)
    return gives is not None and gives(path)


def must_be_what_was_kept(source: Source, digest: Digest, path: os.PathLike[str] | str) -> None:
    """Hold the sha256 of all that was read against the one that the source knows its bytes by, if it does.

    Raises
    ------
    SourceUnreadable
        They are others.
    """
    kept: str | None = getattr(source, "sha256", None)
    if kept is not None and digest.hexdigest() != kept:
        raise SourceUnreadable(
            f"{path} does not hold the bytes any more that were kept.",
            hint="Check the disk it lies on, and its memory.",
        )


def source_error(
    path: os.PathLike[str] | str, error: OSError | ValueError
) -> SourceNotFound | SourceUnreadable | SourceKindError:
    """Translate what the operating system said about a local file into our terms."""
    if isinstance(error, ValueError):  # Python refuses to even ask: a NUL byte, or what no file name can be made of
        return SourceNotFound(f"{os.fspath(path)!r} is no path that a file can have.", hint="Check the path.")
    if isinstance(error, FileNotFoundError):
        return SourceNotFound(f"{path} does not exist.", hint="Check the path.")
    if isinstance(error, IsADirectoryError):
        return SourceKindError(f"{path} is a folder where a file belongs.", hint="Name a file, or upload it as a tree.")
    if isinstance(error, NotADirectoryError):
        return SourceKindError(f"{path} goes through a file as if it were a folder.", hint="Check the path.")
    if isinstance(error, PermissionError):
        return SourceUnreadable(f"No permission to read {path}.", hint="Make it readable for this user.")
    return SourceUnreadable(f"{path} cannot be read: {error.strerror or error}.", hint="Check the disk it lies on.")


@dataclass(frozen=True, slots=True)
class StoredArtifact:
    """What a backend says it holds.

    Parameters
    ----------
    key : ArtifactKey
    uri : str
        Printable address; never a secret in it.
    size : int
        Bytes.
    digests : mapping of str to str
        Hex digests by algorithm (``md5``, ``sha256``, ``crc32c``, ``crc64nvme``) that the BACKEND computed or stored;
        empty when it computes none.
    """

    key: ArtifactKey
    uri: str
    size: int
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What happened to one object. It never claims more than was checked.

    Parameters
    ----------
    key : ArtifactKey
    uri : str
    size : int
        Bytes.
    sha256 : str or None
        Hex digest of the bytes that were sent; None when none were read.
    seconds : float
        Wall time from the first attempt to the last.
    attempts : int
        Times the object was put; 0 when it was not necessary.
    status : {"uploaded", "unchanged", "kept", "skipped", "failed"}
    verified_by : {"sha256", "md5", "crc64nvme", "crc32c", "readback", "size", "none"}
        The proof that truly took place.
    error : str or None
        Why it failed or was skipped.
    """

    key: ArtifactKey
    uri: str
    size: int
    sha256: str | None
    seconds: float
    attempts: int
    status: Status
    verified_by: Proof
    error: str | None = None
