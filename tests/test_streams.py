"""Streams are read whole, in bounded memory, whatever they can do."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from outside import python

from stagesink.streams import CHUNK_BYTES, chunks, filler, new_buffer


class OnlyRead:
    """A stream as some clients give it: it can be read, and nothing else. ``most`` bytes come at a time."""

    def __init__(self, data: bytes, most: int = 1 << 30) -> None:
        self._inner, self._most = io.BytesIO(data), most

    def read(self, size: int = -1) -> bytes:
        return self._inner.read(min(size, self._most))


class Short(io.RawIOBase):
    """A raw stream, which may give less than it is asked for."""

    def __init__(self, data: bytes, most: int) -> None:
        self._inner, self._most = io.BytesIO(data), most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._inner.readinto(memoryview(buffer)[: self._most])


DATA = bytes(range(256)) * 4
STREAMS = {
    "with readinto": io.BytesIO,
    "without readinto": OnlyRead,
    "short with readinto": lambda data: Short(data, 7),
    "short without readinto": lambda data: OnlyRead(data, 7),
}
every_stream = pytest.mark.parametrize("stream_of", STREAMS.values(), ids=STREAMS.keys())


@every_stream
def test_a_buffer_is_filled_from_its_start_and_the_end_is_nothing(stream_of: Any) -> None:
    fill = filler(stream_of(b"abc"))
    buffer = memoryview(bytearray(b"....."))
    assert (fill(buffer), bytes(buffer)) == (3, b"abc..")
    assert (fill(buffer), bytes(buffer)) == (0, b"abc..")


@every_stream
def test_no_more_is_read_than_the_buffer_takes(stream_of: Any) -> None:
    fill = filler(stream_of(b"abcde"))
    buffer = memoryview(bytearray(2))
    pieces = [bytes(buffer[: fill(buffer)]) for _ in range(4)]
    assert pieces == [b"ab", b"cd", b"e", b""]


@every_stream
def test_the_pieces_are_the_whole(stream_of: Any) -> None:
    assert b"".join(bytes(piece) for piece in chunks(stream_of(DATA))) == DATA


@every_stream
def test_an_empty_stream_has_no_piece(stream_of: Any) -> None:
    assert list(chunks(stream_of(b""))) == []


@pytest.mark.parametrize("stream_of", [io.BytesIO, OnlyRead])
def test_no_piece_is_larger_than_the_buffer(stream_of: Any) -> None:
    sizes = [len(piece) for piece in chunks(stream_of(bytes(2 * CHUNK_BYTES + 1)))]
    assert sizes == [CHUNK_BYTES, CHUNK_BYTES, 1]


def test_a_short_read_is_a_piece_not_the_end() -> None:
    assert [bytes(piece) for piece in chunks(Short(b"abcdefgh", 3))] == [b"abc", b"def", b"gh"]  # type: ignore[arg-type]


def _buffers() -> set[int]:
    """Where the pieces of two streams lie; the buffers live as long as their thread."""
    return {id(piece.obj) for data in (bytes(CHUNK_BYTES + 1), b"another") for piece in chunks(io.BytesIO(data))}


def test_each_thread_has_one_buffer_of_its_own() -> None:
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as another:
        found = [_buffers(), one.submit(_buffers).result(), another.submit(_buffers).result(), _buffers()]
    assert [len(buffers) for buffers in found] == [1, 1, 1, 1]
    assert found[0] == found[3]
    assert len(set.union(*found)) == 3


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 8 << 20])
def test_a_new_buffer_is_as_large_as_asked_for_and_nobody_elses(size: int) -> None:
    one, other = new_buffer(size), new_buffer(size)
    assert (len(one), one.readonly, bytes(one[:3])) == (size, False, bytes(min(3, size)))
    one[:] = b"\xff" * size
    assert not any(bytes(other[:: 1 << 12]))


_MANY = """
import io, threading
from stagesink.streams import chunks

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096

def read():
    assert [bytes(piece) for piece in chunks(io.BytesIO(b"little"))] == [b"little"]
    all_have_read.wait()
    all_are_counted.wait()

all_have_read, all_are_counted = threading.Barrier(65), threading.Barrier(65)
threads = [threading.Thread(target=read) for _ in range(64)]
before = resident()
for thread in threads:
    thread.start()
all_have_read.wait()
print(resident() - before)
all_are_counted.wait()
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not tell what a process takes")
def test_threads_that_read_little_take_little_memory() -> None:
    assert int(python(_MANY).stdout) < 32 << 20  # not a megabyte for each of 64
