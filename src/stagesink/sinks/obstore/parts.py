"""Cutting a source into what is sent: small objects whole, large ones in parts, all of them within one budget."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import BinaryIO

from stagesink.errors import SourceChanged
from stagesink.sinks.protocol import OnBytes
from stagesink.streams import CHUNK_BYTES, filler, new_buffer

PART_BYTES = 8 << 20
"""Size of a part, and of the largest object that goes in one request."""

_STREAM_PART_BYTES = 12 << 20  # for a source of unknown size: 10,000 parts make 117 GiB
_MAX_PARTS = 10_000  # of S3, the strictest
_SMALL = 1 << 20  # bytes; what is smaller does not count
_BUDGET = 96 << 20  # bytes, over all objects in flight
_NOTHING = nullcontext(1)  # where nothing is taken; one serves all
_LEAST, _MOST = 3, 6  # parts of one large object in memory: one is filled, the others are on their way


def part_bytes(size: int | None) -> int:
    """Return how large the parts of an object are, in whole megabytes."""
    if size is None:
        return _STREAM_PART_BYTES
    return max(PART_BYTES, -(-size // (_MAX_PARTS << 20)) << 20)


class Pieces:
    """The bytes of a source in parts: read once, counted, and held against the size it said it has.

    Each part is memory of its own, which obstore sends as it is.

    Attributes
    ----------
    count : int
        Bytes read so far.
    error : BaseException or None
        What the source, or the callback, raised: obstore hands it on, but so does it its own.
    """

    def __init__(self, stream: BinaryIO, size: int | None, part: int, on_bytes: OnBytes | None) -> None:
        self._fill = filler(stream)
        self._size = size
        self._part = part
        self._on_bytes = on_bytes
        self._ahead: memoryview | None = None
        self.count = 0
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[memoryview]:
        return self

    def __next__(self) -> memoryview:
        part, self._ahead = self._ahead, None
        part = part if part is not None else self._read(self._part)
        if part is None:
            raise StopIteration
        return part

    def whole(self) -> memoryview | None:
        """Return all bytes, or None when they are more than one part: then they are still to come."""
        if self._size is not None and self._size > PART_BYTES:
            return None
        first = self._read(PART_BYTES)
        if first is None:
            return memoryview(b"")
        if len(first) == PART_BYTES and self._size is None:
            self._ahead = first
            return None
        return first

    def _read(self, length: int) -> memoryview | None:
        try:
            if self._size is not None:
                length = min(length, self._size - self.count)
            buffer = new_buffer(length)
            got = 0
            while got < length and (more := self._fill(buffer[got : got + CHUNK_BYTES])):
                got += more
                self.count += more
                if self._on_bytes is not None:
                    self._on_bytes(more)
            at_end = self.count == self._size
            if self._size is not None and (got < length or (at_end and self._fill(memoryview(bytearray(1))))):
                raise SourceChanged(f"The source does not hold the {self._size} bytes it had when it was opened.")
        except BaseException as error:
            self.error = error
            raise
        return buffer[:got] if got else None


class Budget:
    """What all objects in flight may keep in memory. A child of a fork has its own."""

    def __init__(self) -> None:
        self._by_process: dict[int, tuple[threading.Condition, list[int]]] = {}

    def taking(self, size: int | None, part: int) -> AbstractContextManager[int]:
        """Wait until there is room for an object, and yield how many parts of it may be on their way."""
        return _NOTHING if size is not None and size <= _SMALL else self._taking(size, part)

    @contextmanager
    def _taking(self, size: int | None, part: int) -> Iterator[int]:
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
