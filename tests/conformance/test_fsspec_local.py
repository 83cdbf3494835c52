"""What fsspec reaches without a server: memory, which takes an object in one step, and a folder, which renames."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import ClassVar

import pytest

from stagesink.sinks.fsspec import FsspecSink
from stagesink.testing import SinkConformance, check_against_dict


class TestFsspecMemory(SinkConformance):
    exemptions: ClassVar = {8: "what is kept in memory takes memory"}
    shared_between_processes = False

    @pytest.fixture
    def sink(self) -> FsspecSink:
        return FsspecSink(f"memory://{uuid.uuid4().hex}")


@pytest.mark.once
class TestFsspecLocal(SinkConformance):
    @pytest.fixture
    def sink(self, tmp_path: Path) -> FsspecSink:
        return FsspecSink(f"local://{tmp_path}/store")


def test_any_order_of_operations_agrees_with_a_dict_in_a_folder(tmp_path: Path) -> None:
    sink = FsspecSink(f"local://{tmp_path}")
    check_against_dict(lambda: sink)
