from __future__ import annotations

import uuid
from typing import ClassVar

import pytest

from stagesink.sinks.memory import MemorySink
from stagesink.testing import SinkConformance, check_against_dict


class TestMemorySink(SinkConformance):
    exemptions: ClassVar = {8: "what is kept in memory takes memory"}
    shared_between_processes = False

    @pytest.fixture
    def sink(self) -> MemorySink:
        return MemorySink(uuid.uuid4().hex)


def test_any_order_of_operations_agrees_with_a_dict() -> None:
    sink = MemorySink(uuid.uuid4().hex)
    check_against_dict(lambda: sink)
