"""The fault matrix on an MLflow server."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.matrix import rows_of, run_cell
from faults.table import Row
from faults.worlds import mlflow_world
from mlflow_servers import MlflowServer

pytest.importorskip("urllib3", reason="comes with the extra mlflow")


@pytest.mark.parametrize("row", rows_of("mlflow"))
def test_row(
    row: Row,
    mlflow_server: MlflowServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with mlflow_world(mlflow_server, tmp_path, monkeypatch, tls=row.tls) as world:
        run_cell(row, world, caplog)
