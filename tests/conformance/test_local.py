from __future__ import annotations

from pathlib import Path

import pytest

from stagesink.sinks.local import LocalSink
from stagesink.testing import SinkConformance, check_against_dict


class TestLocalSink(SinkConformance):
    @pytest.fixture
    def sink(self, tmp_path: Path) -> LocalSink:
        return LocalSink(tmp_path / "store", fsync=False)


@pytest.mark.once
class TestLocalSinkThatSyncs(SinkConformance):
    many = 100  # there are no pages, and each sync takes its time

    @pytest.fixture
    def sink(self, tmp_path: Path) -> LocalSink:
        return LocalSink(tmp_path / "store")


def test_any_order_of_operations_agrees_with_a_dict(tmp_path: Path) -> None:
    check_against_dict(lambda: LocalSink(tmp_path, fsync=False))
