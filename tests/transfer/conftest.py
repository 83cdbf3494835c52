"""What the engine's tests share."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # parts.py

from stagesink.sinks.memory import MemorySink
from stagesink.transfer.retry import RetryPolicy


@pytest.fixture
def memory() -> MemorySink:
    """A store of this test's own."""
    return MemorySink(uuid.uuid4().hex)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody waits between attempts; what would have been waited, in seconds, is listed here."""
    seconds: list[float] = []
    monkeypatch.setattr(RetryPolicy, "_sleep", lambda self, wait: seconds.append(wait))
    return seconds
