"""The two formats, and the libraries that read and write them."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from stagesink.errors import ArchiveError, MissingExtra

ArchiveFormat = Literal["tar.gz", "tar.zst"]

TOP_FOLDER = "best_trial_checkpoint"
"""The folder that every member of a checkpoint archive lies in; older readers expect it."""

CHUNK_BYTES = 1 << 20
"""Bytes read, hashed and compressed at a time. igzip is a tenth slower with 64 KiB, a twentieth faster with 4 MiB."""

_LEVELS = {"tar.gz": range(1, 10), "tar.zst": range(1, 20)}
# Weights are noise: higher levels cost a multiple of the time and gain less than one percent of the size.
DEFAULT_LEVEL = 1
_ISAL_LEVELS = 3

ARCHIVE_SUFFIXES: dict[str, ArchiveFormat] = {".tar.gz": "tar.gz", ".tgz": "tar.gz", ".tar.zst": "tar.zst"}
"""What an archive's name may end in, and the format that each asks for."""

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
GZIP_WBITS = 31
"""zlib's way to ask for a gzip header and trailer; neither library writes a time into it."""


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


class Compressor(Protocol):
    def compress(self, data: Any, /) -> bytes: ...
    def flush(self) -> bytes: ...


def compressor(archive_format: str, level: int) -> Compressor:
    if archive_format not in _LEVELS:
        raise ArchiveError(f"There is no archive format {archive_format!r}.", hint=f"Use {' or '.join(_LEVELS)}.")
    levels = _LEVELS[archive_format]
    if level not in levels:
        raise ArchiveError(
            f"{archive_format} has no level {level!r}.", hint=f"Use {levels[0]} (fast) to {levels[-1]} (small)."
        )
    if archive_format == "tar.zst":
        return cast("Compressor", zstandard_library().ZstdCompressor(level=level, write_checksum=True).compressobj())
    library = deflate_library()
    if library is not zlib:
        level = min(level, _ISAL_LEVELS)
    return cast("Compressor", library.compressobj(level, zlib.DEFLATED, GZIP_WBITS))


def deflate_library() -> Any:
    """igzip where it is installed: the same interface as zlib, and more than ten times its speed."""
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib
    return isal_zlib


def zstandard_library() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtra(
            "A tar.zst archive needs the package zstandard.", hint="pip install 'stagesink[fast]'"
        ) from error
    return zstandard


class PullStream(io.RawIOBase):
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


def write_all(file: io.RawIOBase, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
