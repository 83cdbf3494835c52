"""Cutting a source into what is sent: small objects whole, large ones in parts, all of them within one budget."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from stagesink.errors import SourceChanged
from stagesink.sinks.protocol import OnBytes
from stagesink.streams import chunks

PART_BYTES = 8 << 20
"""Size of a part, and of the largest object that goes in one request."""

_STREAM_PART_BYTES = 12 << 20  # for a source of unknown size: 10,000 parts make 117 GiB
_MAX_PARTS = 10_000  # of S3, the strictest
_SMALL = 1 << 20  # bytes; what is smaller does not count
_BUDGET = 96 << 20  # bytes, over all objects in flight
_LEAST, _MOST = 3, 6  # parts of one large object in memory: one is filled, the others are on their way


def part_bytes(size: int | None) -> int:
    """Return how large the parts of an object are, in whole megabytes."""
    if size is None:
        return _STREAM_PART_BYTES
    return max(PART_BYTES, -(-size // (_MAX_PARTS << 20)) << 20)


class Pieces:
    """The bytes of a source that is read once, counted, and held against the size it said it has.

    Attributes
    ----------
    count : int
        Bytes read so far.
    error : BaseException or None
        What the source, or the callback, raised: obstore hands it on, but so does it its own.
    """

    def __init__(self, stream: BinaryIO, size: int | None, on_bytes: OnBytes | None) -> None:
        self._chunks = chunks(stream)
        self._size = size
        self._on_bytes = on_bytes
        self._ahead: deque[bytes] = deque()
        self.count = 0
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        piece = self._ahead.popleft() if self._ahead else self._read()
        if piece is None:
            raise StopIteration
        return piece

    def whole(self, limit: int) -> bytes | None:
        """Return all bytes, or None when there are more than ``limit``: then they are still to come, one by one."""
        while self.count <= limit:
            piece = self._read()
            if piece is None:
                return self._ahead[0] if len(self._ahead) == 1 else b"".join(self._ahead)
            self._ahead.append(piece)
        return None

    def _read(self) -> bytes | None:
        try:
            chunk = next(self._chunks, None)
            self.count += len(chunk or b"")
            if self._size is not None and (self.count > self._size or (chunk is None and self.count < self._size)):
                raise SourceChanged(f"The source does not hold the {self._size} bytes it had when it was opened.")
            if chunk is None:
                return None
            if self._on_bytes is not None:
                self._on_bytes(len(chunk))
            return bytes(chunk)  # a copy: obstore keeps it until it is sent
        except BaseException as error:
            self.error = error
            raise


class Budget:
    """What all objects in flight may keep in memory. A child of a fork has its own."""

    def __init__(self) -> None:
        self._by_process: dict[int, tuple[threading.Condition, list[int]]] = {}

    @contextmanager
    def taking(self, size: int | None, part: int) -> Iterator[int]:
        """Wait until there is room for an object, and yield how many parts of it may be on their way."""
        if size is not None and size <= _SMALL:
            yield 1
            return
        one = size is not None and size <= part
        least, most = (part, part) if one else (_LEAST * part, max(_LEAST * part, _MOST * PART_BYTES))
        condition, free = self._by_process.setdefault(os.getpid(), (threading.Condition(), [_BUDGET]))
        with condition:
            condition.wait_for(lambda: free[0] >= min(least, _BUDGET))
            taken = min(most, free[0])
            free[0] -= taken
        try:
            yield max(1, taken // part - 1)
        finally:
            with condition:
                free[0] += taken
                condition.notify_all()
