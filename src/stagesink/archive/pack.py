"""A folder becomes one archive, made while it is read: no temporary copy, and no more memory than a few blocks.

The same files give the same bytes while the compressing library stays the same: members are sorted, owners and clocks
leave no trace.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import stat
import tarfile
import tempfile
from collections.abc import Generator, Hashable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from stagesink.archive.formats import (
    CHUNK_BYTES,
    DEFAULT_LEVEL,
    TOP_FOLDER,
    ArchiveFormat,
    PullStream,
    archive_format_of,
    compressor,
    write_all,
)
from stagesink.artifacts import ArtifactKey, Fingerprint, must_be_what_was_kept, source_error
from stagesink.errors import (
    ArchiveError,
    EmptyTree,
    SourceChanged,
)
from stagesink.tree import Tree, TreeFile, scan_tree

_TEMP_PREFIX = ".packing-"  # other than LocalSink's, which it sweeps
_END_OF_ARCHIVE = bytes(2 * tarfile.BLOCKSIZE)
_HASH_ASIDE_BYTES = 64 << 10  # below this, handing a chunk to the other thread costs more than hashing it


class ArchivedFile(NamedTuple):
    """One file as it went into an archive: relative path, size in bytes, sha256 in hex."""

    path: str
    size: int
    sha256: str


class ArchiveSource:
    """The archive of a folder, as a :class:`~stagesink.artifacts.Source`: made anew each time it is read.

    Parameters
    ----------
    tree : Tree or path
        The folder; a path is scanned at once.
    archive_format : {"tar.gz", "tar.zst"}
    level : int, optional
        1 (fast, the default) to 9 for gz, to 19 for zst. igzip knows three: more than 3 counts as 3 there.
    prefix : str
        The folder that all members lie in; empty for none.

    Raises
    ------
    ArchiveError
        An unknown format or level.
    InvalidKey
        ``prefix`` is no folder's name.
    MissingExtra
        ``tar.zst`` without the package for it.
    SourceError
        ``tree`` is a path that cannot be archived; see :func:`stagesink.tree.scan_tree`.
    """

    def __init__(
        self,
        tree: Tree | os.PathLike[str] | str,
        archive_format: ArchiveFormat = "tar.gz",
        level: int | None = None,
        prefix: str = TOP_FOLDER,
    ) -> None:
        self.tree = tree if isinstance(tree, Tree) else scan_tree(tree)
        self.archive_format: ArchiveFormat = archive_format
        self.level = DEFAULT_LEVEL if level is None else level
        self.prefix = prefix
        self._contents: tuple[ArchivedFile, ...] | None = None
        if not self.tree.files:
            raise EmptyTree(f"{self.tree.root} has no file to archive.")
        # Refuse now, not at the first read, what could only fail then: a bad level, a missing package, too long a name.
        compressor(archive_format, self.level)
        longest = max((file.path for file in self.tree.files), key=lambda path: len(path.encode()))
        ArtifactKey("archive", _member_name(prefix, longest))

    def __repr__(self) -> str:
        return f"ArchiveSource({str(self.tree.root)!r}, {self.archive_format!r}, level={self.level})"

    @property
    def size(self) -> None:
        """Unknown before it has been made."""
        return None

    @property
    def contents(self) -> tuple[ArchivedFile, ...]:
        """The files in the archive, hashed while their bytes passed the last time it was read to its end.

        Raises
        ------
        ArchiveError
            It was never read to its end.
        """
        if self._contents is None:
            raise ArchiveError(f"The archive of {self.tree.root} was not made yet.", hint="Read it to its end first.")
        return self._contents

    def fingerprint(self) -> Hashable:
        """The fingerprints of all files, looked at anew."""
        return tuple((file.path, file.source.fingerprint()) for file in self.tree.files)

    def open(self) -> BinaryIO:
        """Open the archive for reading, from its first byte.

        The stream's ``read`` raises :class:`~stagesink.errors.SourceChanged` or another ``SourceError`` when a file
        changes, vanishes or cannot be read meanwhile.
        """
        return cast("BinaryIO", PullStream(self._compressed()))

    def _compressed(self) -> Generator[bytes, None, None]:
        packer = compressor(self.archive_format, self.level)
        contents: list[ArchivedFile] = []
        with ThreadPoolExecutor(1, thread_name_prefix="stagesink-hash") as helper:
            for piece in _tar_pieces(self.tree.files, self.prefix, helper, contents):
                yield packer.compress(piece)
        yield packer.flush()
        self._contents = tuple(contents)


def create_checkpoint_archive(
    checkpoint_dir: os.PathLike[str] | str,
    trial_number: int,
    output_path: os.PathLike[str] | str | None = None,
    *,
    level: int | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Archive a checkpoint folder into a file.

    Parameters
    ----------
    checkpoint_dir : path
        The folder.
    trial_number : int
        Goes into the manifest.
    output_path : path, optional
        Ends in ``.tar.gz``, ``.tgz`` or ``.tar.zst``, which decides the format. An existing file is replaced once the
        new one is whole. Without it, a temporary ``checkpoint_*.tar.gz``, which is the caller's to remove.
    level : int, optional
        See :class:`ArchiveSource`.

    Returns
    -------
    Path
        The archive.
    dict
        Its manifest, plain JSON: ``trial_number``, ``archive_format``, ``extracted_path`` (the members' top folder),
        ``file_count``, ``total_size`` (bytes of the files), ``files`` (``path``, ``size``, ``sha256`` of each),
        ``skipped``, ``created_at`` (ISO, UTC), ``archive`` (the archive's file name as ``path``, ``size``, ``sha256``).

    Raises
    ------
    SourceError
        The folder cannot be archived, or changed meanwhile.
    ArchiveError
        The archive cannot be written there. Nothing is left behind.
    """
    archive_format = archive_format_of(output_path) if output_path is not None else "tar.gz"
    source = ArchiveSource(checkpoint_dir, archive_format, level)
    if output_path is None:  # in a folder that others read, so for this user's eyes only
        output, mode = Path(tempfile.gettempdir(), f"checkpoint_{secrets.token_hex(8)}.tar.gz").absolute(), 0o600
    else:
        output, mode = Path(output_path).absolute(), 0o666
    _check_output(output, source.tree.root)
    size, sha256 = _write_whole(source, output, mode)
    manifest = {
        "trial_number": trial_number,
        "archive_format": archive_format,
        "extracted_path": source.prefix,
        "file_count": len(source.contents),
        "total_size": sum(file.size for file in source.contents),
        "files": [file._asdict() for file in source.contents],
        "skipped": list(source.tree.skipped),
        "created_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "archive": {"path": output.name, "size": size, "sha256": sha256},
    }
    return output, manifest


def _check_output(output: Path, root: Path) -> None:
    if Path(os.path.realpath(output)).is_relative_to(os.path.realpath(root)):
        raise ArchiveError(
            f"{output} lies inside the folder that it should archive.", hint="Write the archive to another folder."
        )
    if os.path.isdir(output):
        raise ArchiveError(f"{output} is a folder.", hint="Name the archive's file.")
    if not os.path.isdir(output.parent):
        raise ArchiveError(f"The folder {output.parent} does not exist.", hint="Make it first, or name another one.")


def _write_whole(source: ArchiveSource, output: Path, mode: int) -> tuple[int, str]:
    """Write the archive under another name and rename it, so that ``output`` is never a part of one."""
    unfinished = output.parent / f"{_TEMP_PREFIX}{secrets.token_hex(8)}.tmp"
    size, digest = 0, hashlib.sha256()
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(descriptor, "wb", buffering=0) as file, source.open() as archive:
            while chunk := archive.read(CHUNK_BYTES):
                digest.update(chunk)
                write_all(file, chunk)
                size += len(chunk)
            os.fsync(file.fileno())
        os.replace(unfinished, output)
    except OSError as error:
        raise ArchiveError(
            f"{output} cannot be written: {error.strerror or error}.",
            hint="Free some space or write it elsewhere; nothing half-written was left behind.",
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return size, digest.hexdigest()


def _tar_pieces(
    files: Iterable[TreeFile], prefix: str, helper: Executor, contents: list[ArchivedFile]
) -> Iterator[bytes | memoryview]:
    """Yield the tar stream. A piece is good until the next is asked for: all share one buffer."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    for file in files:
        digest, source = hashlib.sha256(), file.source
        with source.open() as stream:
            status = os.fstat(stream.fileno())
            yield _header(_member_name(prefix, file.path), status)
            rest = status.st_size
            while rest:
                chunk = buffer[: _read_full(file.location, stream, buffer[: min(rest, CHUNK_BYTES)])]
                if not chunk:
                    raise _changed(file)
                if len(chunk) < _HASH_ASIDE_BYTES:
                    digest.update(chunk)
                    yield chunk
                else:  # hashed there while it is compressed here: both let go of the GIL
                    hashing = helper.submit(digest.update, chunk)
                    yield chunk
                    hashing.result()
                rest -= len(chunk)
        if source.fingerprint() != Fingerprint.of(status):
            raise _changed(file)
        must_be_what_was_kept(source, digest, file.location)
        yield bytes(-status.st_size % tarfile.BLOCKSIZE)
        contents.append(ArchivedFile(file.path, status.st_size, digest.hexdigest()))
    yield _END_OF_ARCHIVE


def _member_name(prefix: str, path: str) -> str:
    return f"{prefix}/{path}" if prefix else path


def _header(name: str, status: os.stat_result) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = status.st_size
    member.mtime = status.st_mtime_ns // 1_000_000_000
    member.mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _read_full(path: str, stream: BinaryIO, target: memoryview) -> int:
    """Fill ``target`` as far as the file goes: a short read would move the compressor's chunks and change its bytes."""
    filled = 0
    try:
        while filled < len(target) and (count := cast("io.RawIOBase", stream).readinto(target[filled:])):
            filled += count
    except OSError as error:
        raise source_error(path, error) from error
    return filled


def _changed(file: TreeFile) -> SourceChanged:
    return SourceChanged(f"{file.location} changed while it was archived.")
