"""Large objects in parts: cut from a stream, some on their way at once, all of them within a fixed memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import BinaryIO, TypeVar

from stagesink.errors import SourceChanged
from stagesink.sinks.protocol import OnBytes
from stagesink.streams import filler, new_buffer

T = TypeVar("T")

_AT_ONCE = 4  # parts of one object
_BUFFERS = 8  # parts of all objects together
_MEMORY = 96 << 20  # bytes of all of them; parts of the largest objects are larger, and then there are fewer
_LEAST = 2  # parts: one is read while another is sent


class PartSender:
    """Sends the parts of objects. One for each sink, since it counts the buffers of all of them."""

    def __init__(self) -> None:
        self._memories: dict[int, _Memory] = {}

    def send(
        self,
        pieces: Iterator[memoryview],
        put: Callable[[int, memoryview], T],
        on_bytes: OnBytes | None = None,
        *,
        part_bytes: int = 8 << 20,
    ) -> list[T]:
        """Send every piece, some at once, and return what was said of each, in order.

        Parameters
        ----------
        pieces : iterator of memoryview
            Asked for the next only when there is room for it.
        put : callable
            Sends the piece of a number, counted from 0. What it raises ends the sending and is raised here.
        on_bytes : callable, optional
        part_bytes : int
            The size of a piece, but for the last.
        """
        futures: list[Future[T]] = []
        window, memory = threading.Semaphore(_AT_ONCE), self._memory

        def send(number: int, piece: memoryview) -> T:
            try:
                return put(number, piece)
            finally:
                del piece
                memory.give_back(part_bytes)
                window.release()

        with ThreadPoolExecutor(_AT_ONCE, "stagesink-part") as pool:
            while not any(future.done() and future.exception() is not None for future in futures):
                window.acquire()
                memory.take(part_bytes)
                piece = None
                try:
                    piece = next(pieces, None)
                finally:
                    if piece is None:
                        memory.give_back(part_bytes)
                        window.release()
                if piece is None:
                    break
                size = len(piece)
                futures.append(pool.submit(send, len(futures), piece))
                del piece
                if on_bytes is not None:
                    on_bytes(size)
        return [future.result() for future in futures]

    @property
    def _memory(self) -> _Memory:
        # By process id: a fork could copy it taken.
        return self._memories.setdefault(os.getpid(), _Memory())


class _Memory:
    """Room for the parts that are held, of whatever sizes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._bytes = 0
        self._parts = 0

    def take(self, size: int) -> None:
        """Wait until there is room for a part of this size."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_room(size))
            self._bytes += size
            self._parts += 1

    def give_back(self, size: int) -> None:
        with self._changed:
            self._bytes -= size
            self._parts -= 1
            self._changed.notify_all()

    def _has_room(self, size: int) -> bool:
        return self._parts < _LEAST or (self._parts < _BUFFERS and self._bytes + size <= _MEMORY)


def cut(stream: BinaryIO, size: int | None, part_bytes: int) -> Iterator[memoryview]:
    """Cut a stream into parts; of a known size, the last comes only when it is sure that all are there.

    Raises
    ------
    SourceChanged
        The stream holds more or fewer bytes than ``size``.
    """
    if size is None:
        # No name in here keeps a part that was handed on: its memory would wait for the next one.
        yield from iter(partial(read, stream, part_bytes), b"")
        return
    for start in range(0, size, part_bytes):
        yield _exactly(stream, min(part_bytes, size - start), last=start + part_bytes >= size)


def _exactly(stream: BinaryIO, size: int, *, last: bool) -> memoryview:
    piece = read(stream, size)
    if len(piece) < size or (last and stream.read(1)):
        raise SourceChanged("The source does not hold as many bytes as it had when it was opened.")
    return piece


def read(stream: BinaryIO, size: int) -> memoryview:
    """Read up to ``size`` bytes; fewer only at the end."""
    piece = new_buffer(size)
    fill, count = filler(stream), 0
    while count < size and (more := fill(piece[count:])):
        count += more
    return piece[:count]
