"""Reading binary streams in bounded memory."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import BinaryIO, cast

CHUNK_BYTES = 1 << 20
"""Bytes read at a time."""

Fill = Callable[[memoryview], int]
"""Reads into the buffer it is given and returns how many bytes; 0 at the end."""

_SMALL = 1 << 20  # bytes
_HUGE_PAGES = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux

_local = threading.local()


def new_buffer(size: int) -> memoryview:
    """Return memory for a part of an object, to be let go of as a whole.

    A large one comes straight from the system and goes back to it: from the heap, which has a region for each thread,
    three times as much would stay behind. In huge pages, where there are any, it costs a fifth of the time: 0.07 s
    for 577 MB instead of 0.31 s, most of it page faults.
    """
    if size <= _SMALL:
        return memoryview(bytearray(size))
    buffer = _pages(size)
    if _HUGE_PAGES is not None:
        with suppress(OSError):  # a kernel without them
            buffer.madvise(_HUGE_PAGES)
    return memoryview(buffer)


def _pages(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


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
    again spares the page faults of a new megabyte at each read, about a tenth of the time of a local copy. What no
    stream has filled takes no memory: with 72 small objects in flight that is 72 MB at most.
    """
    buffer = cast("memoryview | None", getattr(_local, "buffer", None))
    if buffer is None:
        buffer = _local.buffer = memoryview(_pages(CHUNK_BYTES))
    fill = filler(stream)
    while count := fill(buffer):
        yield buffer[:count]
