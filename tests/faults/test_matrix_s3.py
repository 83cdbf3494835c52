"""The fault matrix on S3."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.matrix import rows_of, run_cell
from faults.table import Row
from faults.worlds import s3_world
from servers import S3Server

pytest.importorskip("obstore", reason="comes with the extras az, s3 and gs, from Python 3.11 on")


@pytest.mark.parametrize("row", rows_of("s3"))
def test_row(
    row: Row,
    moto: S3Server,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with s3_world(moto, bucket, tmp_path, monkeypatch, tls=row.tls) as world:
        run_cell(row, world, caplog)
