"""Bytes made on the fly, for objects that need not lie anywhere."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

_BLOCK = 1 << 16


@dataclass(frozen=True)
class GeneratedSource:
    """``length`` bytes that depend on ``seed`` alone.

    Parameters
    ----------
    length : int
        Bytes.
    seed : int
        Another seed gives other bytes.
    fails_after : int, optional
        Raise ``error`` once so many bytes were read.
    error : BaseException, optional
        What to raise.
    sized : bool
        False hides the size, as an archive made on the fly does.
    """

    length: int
    seed: int = 0
    fails_after: int | None = None
    error: BaseException | None = None
    sized: bool = True

    @property
    def size(self) -> int | None:
        return self.length if self.sized else None

    def open(self) -> BinaryIO:
        return cast("BinaryIO", _Stream(self))

    def fingerprint(self) -> Hashable:
        return self

    def digest(self, algorithm: str = "sha256") -> str:
        """Hex digest of all its bytes."""
        digest = hashlib.new(algorithm, usedforsecurity=False)
        stream = _Stream(self)
        while data := stream.read(1 << 20):
            digest.update(data)
        return digest.hexdigest()

    def read(self) -> bytes:
        """All its bytes at once."""
        return self.open().read()


class _Stream(io.RawIOBase):
    def __init__(self, source: GeneratedSource) -> None:
        self._source = source
        # Blocks differ from each other, so that a part left out, doubled or moved is noticed.
        self._block = hashlib.shake_128(str(source.seed).encode()).digest(_BLOCK - 8)
        self._at = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        source, view = self._source, memoryview(buffer)
        end = source.length if source.fails_after is None else min(source.fails_after, source.length)
        if self._at >= end and source.error is not None and source.fails_after is not None:
            raise source.error
        number, offset = divmod(self._at, _BLOCK)
        block = number.to_bytes(8, "big") + self._block
        data = block[offset : offset + min(len(view), end - self._at)]
        view[: len(data)] = data
        self._at += len(data)
        return len(data)
