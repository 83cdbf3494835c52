"""Checkpoint archives, in and out.

Out: a folder becomes one ``.tar.gz`` or ``.tar.zst``, made while it is read, so that it needs neither a temporary copy
nor more memory than a few blocks. The same files give the same bytes while the compressing library stays the same:
members are sorted, owners and clocks leave no trace.

In: an archive, ours or another's, lands whole or not at all, and nothing in it can reach out of the target folder.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import shutil
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol, cast

from stagesink.artifacts import ArtifactKey, Fingerprint, source_error
from stagesink.errors import (
    ArchiveError,
    EmptyTree,
    InvalidKey,
    ManifestError,
    MissingExtra,
    RestoreError,
    SourceChanged,
    UnsafeArchive,
    VerificationError,
)
from stagesink.tree import Tree, TreeFile, scan_tree

ArchiveFormat = Literal["tar.gz", "tar.zst"]

TOP_FOLDER = "best_trial_checkpoint"
"""The folder that every member of a checkpoint archive lies in; older readers expect it."""

CHUNK_BYTES = 1 << 20
"""Bytes read, hashed and compressed at a time. igzip is a tenth slower with 64 KiB, a twentieth faster with 4 MiB."""

_LEVELS = {"tar.gz": range(1, 10), "tar.zst": range(1, 20)}
# Weights are noise: higher levels cost a multiple of the time and gain less than one percent of the size.
_DEFAULT_LEVEL = 1
_ISAL_LEVELS = 3

ARCHIVE_SUFFIXES: dict[str, ArchiveFormat] = {".tar.gz": "tar.gz", ".tgz": "tar.gz", ".tar.zst": "tar.zst"}
"""What an archive's name may end in, and the format that each asks for."""

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_READ_BYTES = 1 << 10  # its output cannot be bounded, but four bytes give 128 KiB at most, so these give 32 MiB
_GZIP_WBITS = 31  # zlib's way to ask for a gzip header and trailer; neither library writes a time into it

_END_OF_ARCHIVE = bytes(2 * tarfile.BLOCKSIZE)
_HEADERS_WITH_TEXT = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_MAX_HEADER_BYTES = 1 << 20  # tarfile reads such text in one piece, whatever size it claims
_HASH_ASIDE_BYTES = 64 << 10  # below this, handing a chunk to the other thread costs more than hashing it


class ArchivedFile(NamedTuple):
    """One file as it went into an archive: relative path, size in bytes, sha256 in hex."""

    path: str
    size: int
    sha256: str


# -- out ---------------------------------------------------------------------------------------------------------------


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
        self.level = _DEFAULT_LEVEL if level is None else level
        self.prefix = prefix
        self._contents: tuple[ArchivedFile, ...] | None = None
        if not self.tree.files:
            raise EmptyTree(f"{self.tree.root} has no file to archive.")
        # Refuse now, not at the first read, what could only fail then: a bad level, a missing package, too long a name.
        _compressor(archive_format, self.level)
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
        return cast("BinaryIO", _PullStream(self._compressed()))

    def _compressed(self) -> Generator[bytes, None, None]:
        compressor = _compressor(self.archive_format, self.level)
        contents: list[ArchivedFile] = []
        with ThreadPoolExecutor(1, thread_name_prefix="stagesink-hash") as helper:
            for piece in _tar_pieces(self.tree.files, self.prefix, helper, contents):
                yield compressor.compress(piece)
        yield compressor.flush()
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


def archive_format_of(output_path: os.PathLike[str] | str) -> ArchiveFormat:
    """Return the format that a name asks for by its suffix.

    Raises
    ------
    ArchiveError
        The suffix is none of ``.tar.gz``, ``.tgz`` and ``.tar.zst``.
    """
    name = Path(output_path).name.lower()
    for suffix, archive_format in ARCHIVE_SUFFIXES.items():
        if name.endswith(suffix):
            return archive_format
    raise ArchiveError(f"{output_path} names no archive format.", hint=f"End it in {', '.join(ARCHIVE_SUFFIXES)}.")


def _check_output(output: Path, root: Path) -> None:
    if Path(os.path.realpath(output)).is_relative_to(os.path.realpath(root)):
        raise ArchiveError(
            f"{output} lies inside the folder that it should archive.", hint="Write the archive to another folder."
        )
    if output.is_dir():
        raise ArchiveError(f"{output} is a folder.", hint="Name the archive's file.")
    if not output.parent.is_dir():
        raise ArchiveError(f"The folder {output.parent} does not exist.", hint="Make it first, or name another one.")


def _write_whole(source: ArchiveSource, output: Path, mode: int) -> tuple[int, str]:
    """Write the archive under another name and rename it, so that ``output`` is never a part of one."""
    unfinished = output.parent / f".stagesink-{secrets.token_hex(8)}.tmp"
    size, digest = 0, hashlib.sha256()
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(descriptor, "wb", buffering=0) as file, source.open() as archive:
            while chunk := archive.read(CHUNK_BYTES):
                digest.update(chunk)
                _write_all(file, chunk)
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


def _write_all(file: io.RawIOBase, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


class _Compressor(Protocol):
    def compress(self, data: Any, /) -> bytes: ...
    def flush(self) -> bytes: ...


def _compressor(archive_format: str, level: int) -> _Compressor:
    if archive_format not in _LEVELS:
        raise ArchiveError(f"There is no archive format {archive_format!r}.", hint=f"Use {' or '.join(_LEVELS)}.")
    levels = _LEVELS[archive_format]
    if level not in levels:
        raise ArchiveError(
            f"{archive_format} has no level {level!r}.", hint=f"Use {levels[0]} (fast) to {levels[-1]} (small)."
        )
    if archive_format == "tar.zst":
        return cast("_Compressor", _zstandard().ZstdCompressor(level=level, write_checksum=True).compressobj())
    library = _deflate_library()
    if library is not zlib:
        level = min(level, _ISAL_LEVELS)
    return cast("_Compressor", library.compressobj(level, zlib.DEFLATED, _GZIP_WBITS))


def _deflate_library() -> Any:
    """igzip where it is installed: the same interface as zlib, and more than ten times its speed."""
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib
    return isal_zlib


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtra(
            "A tar.zst archive needs the package zstandard.", hint="pip install 'stagesink[fast]'"
        ) from error
    return zstandard


def _tar_pieces(
    files: Iterable[TreeFile], prefix: str, helper: Executor, contents: list[ArchivedFile]
) -> Iterator[bytes | memoryview]:
    """Yield the tar stream. A piece is good until the next is asked for: all share one buffer."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    for file in files:
        digest = hashlib.sha256()
        with file.source.open() as stream:
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
        if file.source.fingerprint() != Fingerprint.of(status):
            raise _changed(file)
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


class _PullStream(io.RawIOBase):
    """A readable stream over pieces that are made as they are asked for."""

    def __init__(self, pieces: Generator[bytes, None, None]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")
        self._error: BaseException | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        self._checkClosed()
        view = memoryview(target).cast("B")
        filled = 0
        while filled < len(view) and self._fetch():
            count = min(len(self._rest), len(view) - filled)
            view[filled : filled + count] = self._rest[:count]
            self._rest = self._rest[count:]
            filled += count
        return filled

    def _fetch(self) -> bool:
        """Have bytes at hand; False at the end."""
        if self._error is not None:  # a generator that failed looks like one that ended: it must not pass for the end
            raise self._error
        try:
            while not self._rest:
                self._rest = memoryview(next(self._pieces))
        except StopIteration:
            return False
        except BaseException as error:
            self._error = error
            raise
        return True

    def close(self) -> None:
        if not self.closed:
            self._pieces.close()
        super().close()


# -- in ----------------------------------------------------------------------------------------------------------------


def extract_checkpoint_archive(
    archive_path: os.PathLike[str] | str,
    target_dir: os.PathLike[str] | str,
    *,
    manifest: Mapping[str, Any] | None = None,
    prefix: str = TOP_FOLDER,
) -> list[str]:
    """Unpack a checkpoint archive, whole or not at all: the inverse of :func:`create_checkpoint_archive`.

    Files get their contents, time (whole seconds) and execute bits back. They are unpacked beside their destination and
    renamed when all is well. A target that does not exist yet appears whole, in one step; in one that does, files of
    the same name are replaced and others stay.

    Parameters
    ----------
    archive_path : path
        A gzip or zstandard compressed tar; its first bytes tell which, not its name.
    target_dir : path
        The folder to unpack into; made when it does not exist.
    manifest : mapping, optional
        As :func:`create_checkpoint_archive` gives it: ``files`` are compared with what the archive holds, before
        anything lands, and ``extracted_path`` stands for ``prefix``.
    prefix : str
        The members' top folder, which is taken off when all of them lie in it.

    Returns
    -------
    list of str
        Relative paths of the files that were written, sorted.

    Raises
    ------
    SourceError
        The archive cannot be read.
    ArchiveError
        It is corrupt, cut short, empty, or no archive.
    UnsafeArchive
        A member has a path that leads elsewhere, comes twice, or is a link, pipe or device.
    VerificationError
        It holds other files than the manifest says.
    RestoreError
        The target cannot take it: no room, no permission, or a folder stands where a file goes.
    MissingExtra
        A ``tar.zst`` without the package for it.
    """
    archive, target = Path(archive_path), Path(target_dir).absolute()
    expected = _expected(manifest) if manifest is not None else None
    top = str(manifest.get("extracted_path", prefix)) if manifest is not None else prefix
    with _writing(target), _unpacked(archive) as tar_stream, _staging(target) as staging:
        unpacked = staging / "files"  # not the private staging folder itself: this one may become the target
        unpacked.mkdir()
        members = _unpack(archive, tar_stream, unpacked)
        payload, members = _strip(unpacked, members, top)
        files = {path: proof for path, proof in members.items() if proof is not None}
        if not files:
            raise ArchiveError(f"{archive} holds no file.", hint="Check that it is the right one.")
        if expected is not None:
            _compare(archive, files, expected)
        _land(payload, target)
    return sorted(files)


class _Proof(NamedTuple):
    size: int
    sha256: str


@contextmanager
def _unpacked(archive: Path) -> Iterator[BinaryIO]:
    """Open the archive's tar stream, whatever it is compressed with."""
    try:
        file = open(archive, "rb", buffering=CHUNK_BYTES)  # noqa: SIM115 - closed below
    except OSError as error:
        raise source_error(archive, error) from error
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ArchiveError(f"{archive} is not a file.", hint="Name the archive.")
        compressed = _Compressed(archive, file)
        magic = compressed.peek()
        if magic.startswith(_GZIP_MAGIC):
            pieces = _gunzip(archive, compressed)
        elif magic.startswith(_ZSTD_MAGIC):
            pieces = _unzstd(archive, compressed)
        else:
            raise ArchiveError(
                f"{archive} is neither a gzip nor a zstandard archive.",
                hint="Check that it is the right file, and whole.",
            )
        with io.BufferedReader(_PullStream(pieces), CHUNK_BYTES) as stream:
            yield cast("BinaryIO", stream)


@dataclass(slots=True)
class _Compressed:
    """The archive's file. Asked for more than it has, it says that the archive was cut short."""

    path: Path
    file: BinaryIO

    def read(self, size: int) -> bytes:
        with self._reading():
            data = self.file.read(size)
        if not data:
            raise _corrupt(self.path, "it was cut short")
        return data

    def peek(self) -> bytes:
        """Look at what comes next without taking it; empty at the end."""
        with self._reading():
            return cast("io.BufferedReader", self.file).peek(len(_ZSTD_MAGIC))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise source_error(self.path, error) from error


def _gunzip(archive: Path, compressed: _Compressed) -> Generator[bytes, None, None]:
    library = _deflate_library()
    data = b""
    while data or compressed.peek():  # one gzip stream may follow another
        stream = library.decompressobj(_GZIP_WBITS)
        while not stream.eof:
            try:
                yield stream.decompress(data or compressed.read(CHUNK_BYTES), CHUNK_BYTES)
            except library.error as error:
                raise _corrupt(archive, str(error)) from error
            data = stream.unused_data if stream.eof else stream.unconsumed_tail


def _unzstd(archive: Path, compressed: _Compressed) -> Generator[bytes, None, None]:
    library = _zstandard()
    data = b""
    while data or compressed.peek():  # one zstd frame may follow another
        stream = library.ZstdDecompressor().decompressobj()
        while not stream.eof:
            try:
                yield stream.decompress(data or compressed.read(_ZSTD_READ_BYTES))
            except library.ZstdError as error:
                raise _corrupt(archive, str(error)) from error
            data = stream.unused_data


def _corrupt(archive: Path, why: str) -> ArchiveError:
    return ArchiveError(f"{archive} cannot be unpacked: {why}.", hint="Fetch it again; this copy is damaged.")


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """Make a folder to unpack in, on the target's own disk, and remove it afterwards."""
    # The target itself when it exists (it may be a disk of its own), else the nearest folder above that does.
    home = next(place for place in (target, *target.parents) if place.exists())
    if not home.is_dir():
        raise RestoreError(f"{home} is a file where a folder belongs.", hint="Name another folder.")
    staging = Path(tempfile.mkdtemp(prefix=".stagesink-", suffix=".tmp", dir=home))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Name what the operating system says of the target; what it says of the archive has its name already."""
    try:
        yield
    except OSError as error:
        raise RestoreError(
            f"{target} cannot take the archive: {error.strerror or error}.",
            hint="Free some space, or unpack into another folder; nothing half-unpacked was left behind.",
        ) from error


class _Header(tarfile.TarInfo):
    """A tar header, read strictly: tarfile takes a damaged or missing header after the first for the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the true end; typeshed does not know it
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        if header.size < 0 or (header.size > _MAX_HEADER_BYTES and header.type in _HEADERS_WITH_TEXT):
            raise tarfile.ReadError(f"a header claims {header.size} bytes")
        return header


@contextmanager
def _parsing(archive: Path) -> Iterator[None]:
    """Name what tarfile raises, which for damaged headers is nearly anything."""
    try:
        yield
    except (tarfile.TarError, ValueError, LookupError, OverflowError, RecursionError) as error:
        raise _corrupt(archive, str(error)) from error


def _members(archive: Path, tar_stream: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, Iterator[bytes]]]:
    """Yield each member with its bytes, which are to be read before the next is asked for."""
    with _parsing(archive):
        with tarfile.open(fileobj=tar_stream, mode="r|", tarinfo=_Header, encoding="utf-8") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps every header it has seen
                yield member, _chunks(archive, tar, member)
        while tar_stream.read(CHUNK_BYTES):  # on to the checksum at the very end
            pass


def _chunks(archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    with _parsing(archive):
        stream = tar.extractfile(member)
        while stream is not None and (chunk := stream.read(CHUNK_BYTES)):
            yield chunk


def _unpack(archive: Path, tar_stream: BinaryIO, folder: Path) -> dict[str, _Proof | None]:
    """Write the members into ``folder``. Returns size and hash of each file, None for a folder."""
    found: dict[str, _Proof | None] = {}
    for member, chunks in _members(archive, tar_stream):
        path = _safe_path(archive, member)
        if not member.isdir():
            found[path] = _write_file(archive, member, chunks, folder / path)
        elif path:  # an archive of "." has a member for the target itself
            _make_folder(archive, folder / path)
            found[path] = None
    return found


def _safe_path(archive: Path, member: tarfile.TarInfo) -> str:
    """Return where a member goes, relative to the target."""
    name = member.name
    if name.startswith("/") or ".." in name.split("/"):
        raise UnsafeArchive(f"{archive} has a member {name!r}, which leads out of the target folder.")
    if not (member.isdir() or (member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse())):
        raise UnsafeArchive(f"{archive} has a member {name!r}, which is {_kind(member)}, not a plain file.")
    path = "/".join(part for part in name.split("/") if part not in ("", "."))
    try:
        if path or not member.isdir():
            ArtifactKey("archive", path)
    except InvalidKey as error:
        raise UnsafeArchive(f"{archive} has a member that no folder should hold. {error.message}") from error
    return path


def _kind(member: tarfile.TarInfo) -> str:
    kinds: dict[str, Callable[[], bool]] = {
        "a symbolic link": member.issym,
        "a hard link": member.islnk,
        "a named pipe": member.isfifo,
        "a device": member.isdev,
        "a sparse file": member.issparse,
    }
    return next((kind for kind, is_kind in kinds.items() if is_kind()), f"of type {member.type!r}")


def _make_folder(archive: Path, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise _twice(archive, folder) from error


def _write_file(archive: Path, member: tarfile.TarInfo, chunks: Iterable[bytes], place: Path) -> _Proof:
    _make_folder(archive, place.parent)
    # The mode goes through the umask as any new file's does; the member's own says only whether it may be run.
    mode = 0o777 if member.mode & stat.S_IXUSR else 0o666
    try:
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise _twice(archive, place) from error
    digest = hashlib.sha256()
    with open(descriptor, "wb", buffering=0) as file:
        for chunk in chunks:
            digest.update(chunk)
            _write_all(file, chunk)
        os.utime(file.fileno(), (_seconds(member), _seconds(member)))
    return _Proof(member.size, digest.hexdigest())


def _twice(archive: Path, place: Path) -> UnsafeArchive:
    return UnsafeArchive(f"{archive} has {place.name!r} twice in one folder, or both as a file and as a folder.")


def _seconds(member: tarfile.TarInfo) -> int:
    """Whole seconds since 1970; a header may claim anything, infinity included."""
    return int(member.mtime) if -(2**31) <= member.mtime < 2**34 else 0


def _strip(unpacked: Path, members: dict[str, _Proof | None], top: str) -> tuple[Path, dict[str, _Proof | None]]:
    """Take the top folder off, when it is there and nothing lies beside it."""
    inside = f"{top}/"
    if not all(path.startswith(inside) or (path == top and proof is None) for path, proof in members.items()):
        return unpacked, members
    return unpacked / top, {path[len(inside) :]: proof for path, proof in members.items() if path != top}


def _expected(manifest: Mapping[str, Any]) -> dict[str, _Proof]:
    try:
        return {file["path"]: _Proof(file["size"], file["sha256"]) for file in manifest["files"]}
    except (KeyError, TypeError) as error:
        raise ManifestError(
            "The manifest does not list its files with path, size and sha256.", hint="Use the archive's own manifest."
        ) from error


def _compare(archive: Path, files: Mapping[str, _Proof], expected: Mapping[str, _Proof]) -> None:
    problems = [f"{path} is missing" for path in sorted(expected.keys() - files.keys())]
    problems += [f"{path} is not in the manifest" for path in sorted(files.keys() - expected.keys())]
    problems += [f"{path} differs" for path in sorted(files.keys() & expected.keys()) if files[path] != expected[path]]
    if problems:
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise VerificationError(
            f"{archive} is not what its manifest says: {', '.join(problems[:5])}{more}.",
            hint="Fetch both again; nothing was unpacked.",
        )


def _land(payload: Path, target: Path) -> None:
    """Rename what was unpacked to where it belongs."""
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(payload, target)
        return
    moves = list(_moves(payload, target))
    for place, destination in moves:
        if place.is_dir():
            destination.mkdir(exist_ok=True)
        else:
            os.replace(place, destination)


def _moves(payload: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    """Yield what goes where, folders before what lies in them, or refuse before anything has moved."""
    for folder, subfolders, files in os.walk(payload):
        here = target / Path(folder).relative_to(payload)
        for name in subfolders:
            if (here / name).is_symlink():
                raise UnsafeArchive(
                    f"The archive would write through the link {here / name}.", hint="Remove it, or use another folder."
                )
            if (here / name).exists() and not (here / name).is_dir():
                raise RestoreError(f"{here / name} is a file where a folder goes.", hint="Use another folder.")
            yield Path(folder, name), here / name
        for name in files:
            if (here / name).is_dir() and not (here / name).is_symlink():
                raise RestoreError(f"{here / name} is a folder where a file goes.", hint="Use another folder.")
            yield Path(folder, name), here / name
