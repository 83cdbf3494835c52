"""The fault matrix on ``file:``."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.matrix import rows_of, run_cell
from faults.table import Row
from faults.worlds import file_world


@pytest.mark.parametrize("row", rows_of("file"))
def test_row(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with file_world(tmp_path, monkeypatch) as world:
        run_cell(row, world, caplog)
