"""Parts of large objects: how many are held at once."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from stagesink.sinks._http.parts import PartSender, cut
from stagesink.testing import GeneratedSource
from stagesink.testing.memory import PeakMemory

PART = 4 << 20
SOURCES = [GeneratedSource(10 * PART + seed, seed=seed) for seed in range(6)]


class Held:
    """Counts parts from when they are read until they are sent; sends none until as many are held as may be."""

    def __init__(self, awaited: int = 1) -> None:
        self.now = self.most = 0
        self._awaited = awaited
        self._lock = threading.Condition()

    def pieces(self, count: int) -> Iterator[memoryview]:
        for _ in range(count):
            with self._lock:
                self.now += 1
                self.most = max(self.most, self.now)
                self._lock.notify_all()
            yield memoryview(b"x")

    def put(self, number: int, piece: memoryview) -> int:
        with self._lock:
            assert self._lock.wait_for(lambda: self.most >= self._awaited, 30)
        time.sleep(0.002)
        with self._lock:
            self.now -= 1
        return number


@pytest.mark.parametrize(
    ("part_bytes", "most"), [(8 << 20, 8), (12 << 20, 8), (24 << 20, 4), (40 << 20, 2), (500 << 20, 2)]
)
def test_larger_parts_have_fewer_buffers(part_bytes: int, most: int) -> None:
    sender, held = PartSender(), Held(most)
    with ThreadPoolExecutor(3) as pool:  # objects
        sent = [pool.submit(sender.send, held.pieces(20), held.put, part_bytes=part_bytes) for _ in range(3)]
        assert all(future.result() == list(range(20)) for future in sent)
    assert held.most == most


def test_parts_of_all_sizes_share_the_memory() -> None:
    sender, held = PartSender(), Held()
    with ThreadPoolExecutor(4) as pool:
        sizes = (5 << 20, 10 << 20, 60 << 20, 400 << 20)
        sent = [pool.submit(sender.send, held.pieces(20), held.put, part_bytes=size) for size in sizes]
        assert all(future.result() == list(range(20)) for future in sent)


def test_what_fails_gives_its_room_back() -> None:
    sender, held = PartSender(), Held()

    def refuse(number: int, piece: memoryview) -> int:
        raise ValueError("no")

    def broken() -> Iterator[memoryview]:
        yield memoryview(b"x")
        raise OSError("gone")

    for _ in range(5):
        with pytest.raises(ValueError, match="no"):
            sender.send(held.pieces(9), refuse, part_bytes=90 << 20)
        with pytest.raises(OSError, match="gone"):
            sender.send(broken(), lambda number, piece: None, part_bytes=90 << 20)
    assert sender.send(iter([memoryview(b"x")] * 9), lambda number, piece: number) == list(range(9))


def test_many_objects_at_once_share_eight_buffers() -> None:
    sender = PartSender()

    def send(source: GeneratedSource) -> str:
        def put(_: int, piece: memoryview) -> bytes:
            time.sleep(0.02)  # a line that is slower than the disk
            return bytes(hashlib.sha256(piece).digest())

        return hashlib.sha256(b"".join(sender.send(cut(source.open(), source.length, PART), put))).hexdigest()

    with PeakMemory() as taken, ThreadPoolExecutor(len(SOURCES)) as pool:
        assert len(set(pool.map(send, SOURCES))) == len(SOURCES)
    assert taken.peak < 14 * PART
