"""An archive, ours or another's, lands whole or not at all, and nothing in it can reach out of the target folder."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from stagesink.archive.formats import (
    CHUNK_BYTES,
    GZIP_MAGIC,
    GZIP_WBITS,
    TOP_FOLDER,
    ZSTD_MAGIC,
    PullStream,
    deflate_library,
    write_all,
    zstandard_library,
)
from stagesink.artifacts import ArtifactKey, source_error
from stagesink.errors import (
    ArchiveError,
    InvalidKey,
    ManifestError,
    RestoreError,
    UnsafeArchive,
    VerificationError,
)

_TEMP_PREFIX = ".unpacking-"  # other than LocalSink's, which it sweeps
_ZSTD_READ_BYTES = 1 << 10  # its output cannot be bounded, but four bytes give 128 KiB at most, so these give 32 MiB
_HEADERS_WITH_TEXT = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_MORE_BYTES = 1 << 20  # than its manifest says an archive may hold before it is given up: a bomb fills no disk
_MAX_HEADER_BYTES = 1 << 20  # tarfile reads such text in one piece, whatever size it claims


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
        most = None if expected is None else sum(proof.size for proof in expected.values()) + _MORE_BYTES
        members = _unpack(archive, tar_stream, unpacked, most)
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
        if magic.startswith(GZIP_MAGIC):
            pieces = _gunzip(archive, compressed)
        elif magic.startswith(ZSTD_MAGIC):
            pieces = _unzstd(archive, compressed)
        else:
            raise ArchiveError(
                f"{archive} is neither a gzip nor a zstandard archive.",
                hint="Check that it is the right file, and whole.",
            )
        with io.BufferedReader(PullStream(pieces), CHUNK_BYTES) as stream:
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
            return cast("io.BufferedReader", self.file).peek(len(ZSTD_MAGIC))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise source_error(self.path, error) from error


def _gunzip(archive: Path, compressed: _Compressed) -> Generator[bytes, None, None]:
    library = deflate_library()
    data = b""
    while data or compressed.peek():  # one gzip stream may follow another
        stream = library.decompressobj(GZIP_WBITS)
        while not stream.eof:
            try:
                yield stream.decompress(data or compressed.read(CHUNK_BYTES), CHUNK_BYTES)
            except library.error as error:
                raise _corrupt(archive, str(error)) from error
            data = stream.unused_data if stream.eof else stream.unconsumed_tail


def _unzstd(archive: Path, compressed: _Compressed) -> Generator[bytes, None, None]:
    library = zstandard_library()
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
    staging = Path(tempfile.mkdtemp(prefix=_TEMP_PREFIX, suffix=".tmp", dir=home))
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


def _unpack(archive: Path, tar_stream: BinaryIO, folder: Path, most: int | None) -> dict[str, _Proof | None]:
    """Write the members into ``folder``, no more than ``most`` bytes. Returns size and hash of each file, None for a
    folder.
    """
    found: dict[str, _Proof | None] = {}
    total = 0
    for member, chunks in _members(archive, tar_stream):
        path = _safe_path(archive, member)
        total += member.size
        if most is not None and total > most:
            raise VerificationError(f"{archive} holds more than its manifest says, from {path} on.")
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
            write_all(file, chunk)
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
