from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow_servers import MlflowServer


@pytest.fixture
def server(mlflow_server: MlflowServer, mlflow: Any, monkeypatch: pytest.MonkeyPatch) -> MlflowServer:
    """A real server, whose client gives up at once when it is gone."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("STAGESINK_RETRIES", "1")
    return mlflow_server


@pytest.fixture
def client(server: MlflowServer, mlflow: Any) -> Any:
    return mlflow.MlflowClient(server.url)


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stages hand over."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    (out / "checkpoint").mkdir(parents=True)
    (out / "checkpoint" / "model.bin").write_bytes(b"weights")
    (out / "metrics.json").write_text(json.dumps({"accuracy": 0.9}))
    (out / "model.onnx").write_bytes(b"onnx")
    (out / "conversion.log").write_text("converted\n")
    (out / "benchmark.json").write_text(json.dumps({"p50_ms": 1.5}))
    return out
