"""Processes that end with uploads to MLflow under way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from mlflow_servers import MlflowServer
from outside import threads_at_the_end

_TRAINS = """
import sys
import mlflow
from stagesink import ArtifactUploader
mlflow.set_tracking_uri(sys.argv[1])
with mlflow.start_run(run_id=sys.argv[2]):
    uploader = ArtifactUploader(sink="mlflow+" + sys.argv[1], background=True)
    assert uploader.upload_checkpoint(sys.argv[3])
    assert uploader.upload_file(sys.argv[3] + "/a.bin", "metrics.json")
sys.exit(3)
"""


@pytest.mark.once
@threads_at_the_end
def test_a_process_ends_once_what_it_uploads_in_the_background_has_landed(
    mlflow: ModuleType, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    run_id = mlflow_server.run()
    (tmp_path / "checkpoint").mkdir()
    for name in ("a.bin", "b.bin"):
        (tmp_path / "checkpoint" / name).write_bytes(name.encode() * 50_000)
    command = [sys.executable, "-W", "ignore", "-c", _TRAINS, mlflow_server.url, run_id, str(tmp_path / "checkpoint")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    there = set(mlflow_server.listed(run_id))
    assert there >= {"checkpoint/a.bin", "checkpoint/b.bin", "checkpoint.manifest.json", "metrics.json"}
    assert "metrics.json.manifest.json" in there
