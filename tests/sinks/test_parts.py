"""Parts of many objects at once: all of them within one memory."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor

from stagesink.sinks._http.parts import PartSender, cut
from stagesink.testing import GeneratedSource
from stagesink.testing.memory import PeakMemory

PART = 4 << 20
SOURCES = [GeneratedSource(10 * PART + seed, seed=seed) for seed in range(6)]


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
