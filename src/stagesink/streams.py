"""Reading binary streams in bounded memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO, cast

CHUNK_BYTES = 1 << 20
"""Bytes read at a time."""

Fill = Callable[[memoryview], int]
"""Reads into the buffer it is given and returns how many bytes; 0 at the end."""

_local = threading.local()


def filler(stream: BinaryIO) -> Fill:
    """Return what fills a buffer from ``stream``, straight where the stream can do that."""
    readinto = getattr(stream, "readinto", None)
    if readinto is not None:
        return cast("Fill", readinto)

    def fill(buffer: memoryview) -> int:
        data = stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    return fill


def chunks(stream: BinaryIO) -> Iterator[memoryview]:
    """Yield what ``stream`` holds, piece by piece, out of one buffer per thread.

    Each piece is valid until the next is asked for, and one stream is read at a time. Filling one buffer again and
    again spares the page faults of a new megabyte at each read, about a tenth of the time of a local copy.
    """
    buffer = cast("memoryview | None", getattr(_local, "buffer", None))
    if buffer is None:
        buffer = _local.buffer = memoryview(bytearray(CHUNK_BYTES))
    fill = filler(stream)
    while count := fill(buffer):
        yield buffer[:count]
