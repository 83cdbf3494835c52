"""The fault matrix on Azure ML."""

from __future__ import annotations

from pathlib import Path

import pytest
from azureml_lines import Job
from faults.matrix import rows_of, run_cell
from faults.table import Row
from faults.worlds import azureml_world

pytest.importorskip("urllib3", reason="comes with the extra azureml")


@pytest.mark.parametrize("row", rows_of("azureml"))
def test_row(
    row: Row, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with azureml_world(job, tmp_path, monkeypatch, tls=row.tls) as world:
        run_cell(row, world, caplog)
