"""The wrapper without faults is as good a sink as what it wraps."""

from __future__ import annotations

import uuid
from typing import ClassVar

import pytest

from stagesink.sinks.memory import MemorySink
from stagesink.testing import FaultySink, SinkConformance


class TestFaultySinkWithoutFaults(SinkConformance):
    exemptions: ClassVar = {8: "what is kept in memory takes memory"}
    shared_between_processes = False

    @pytest.fixture
    def sink(self) -> FaultySink:
        return FaultySink(MemorySink(uuid.uuid4().hex))
