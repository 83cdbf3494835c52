"""Memory that is measured: Python's, and what comes straight from the system."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stagesink.streams import new_buffer
from stagesink.testing import memory
from stagesink.testing.memory import PeakMemory

SIZE = 40 << 20


def pages() -> None:
    new_buffer(SIZE)[:] = bytes([1]) * SIZE


@pytest.mark.parametrize("take", [lambda: bytearray(SIZE), pages])
def test_what_was_given_back_counts(take: Callable[[], object]) -> None:
    with PeakMemory() as before:
        take()
    with PeakMemory() as after:
        pass
    assert before.peak >= SIZE - (1 << 20)
    assert after.peak < 4 << 20


def test_elsewhere_it_is_what_python_took(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_FORGET", tmp_path)
    with PeakMemory() as taken:
        bytearray(SIZE)
    assert SIZE <= taken.peak < SIZE + (1 << 20)
