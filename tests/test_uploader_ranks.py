"""Ranks, as the facade, the training helper and the command have them."""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from stagesink import ArtifactUploader, list_committed, open_sink, upload_training_artifacts
from stagesink.errors import ConfigError, TransientSinkError
from stagesink.outbox.settings import OutboxSettings
from stagesink.outbox.store import Outbox
from stagesink.outbox.sync import Sync
from stagesink.sinks import ArtifactSink
from stagesink.testing import FaultySink, fails
from stagesink.transfer import TransferOptions


@pytest.fixture
def sink() -> ArtifactSink:
    return open_sink(f"memory:{uuid.uuid4().hex}")


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What two ranks have written; and their launcher."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"SLURM_JOB_ID": uuid.uuid4().hex, "SLURM_STEP_ID": "0"}.items():
        monkeypatch.setenv(name, value)
    folders = [tmp_path / f"shard-{rank}" for rank in range(2)]
    for rank, folder in enumerate(folders):
        folder.mkdir()
        (folder / f"{rank}.bin").write_bytes(bytes([rank]) * 10)
    return folders


def files(sink: ArtifactSink) -> list[list[str]]:
    return [[entry.path for entry in manifest.files] for manifest in list_committed(sink, "run")]


def test_true_says_that_this_part_has_landed_and_the_log_says_what_is_missing(
    sink: ArtifactSink, shards: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "stagesink")
    with ArtifactUploader("run", sink=sink) as uploader:
        assert uploader.upload_checkpoint(shards[0], rank=0, world_size=2, session="s") is True
        assert [(r.key.path, r.status) for r in uploader.receipts] == [("checkpoint/0.bin", "uploaded")]
        assert files(sink) == []
        assert "checkpoint: rank 0 is there; the whole is once all 2 are." in caplog.messages
        assert uploader.upload_checkpoint(shards[1], rank=1, world_size=2, session="s") is True
    assert files(sink) == [["0.bin", "1.bin"]]
    assert "checkpoint: the parts of all 2 ranks were there; it is whole." in caplog.messages


def test_the_launcher_tells_the_session(sink: ArtifactSink, shards: list[Path], tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.json"
    metrics.write_text("{}")
    # In one process the two ranks count on: each has a process of its own in a job, so the count is put back here.
    from stagesink.runs import session

    for rank in range(2):
        session._uploads.clear()
        given = metrics if rank == 0 else None
        landed = upload_training_artifacts(shards[rank], given, "run", sink=sink, rank=rank, world_size=2)
        assert set(landed.values()) == {True}
    assert files(sink) == [["0.bin", "1.bin"], ["metrics.json"]]


@pytest.mark.parametrize(
    "arguments",
    [
        {"rank": 2, "world_size": 2},
        {"rank": 0},
        {"world_size": 2},
        {"rank": "0", "world_size": 2},
        {"rank": 0, "world_size": 2, "session": ""},
    ],
)
def test_a_share_that_cannot_be_is_false_and_said(
    sink: ArtifactSink, shards: list[Path], arguments: dict[str, Any]
) -> None:
    with ArtifactUploader("run", sink=sink) as uploader:
        assert uploader.upload_checkpoint(shards[0], **arguments) is False
        (error,) = uploader.errors
    assert isinstance(error, ConfigError)
    assert list(sink.list("run")) == []


def test_ranks_need_a_run_that_has_a_name(sink: ArtifactSink, shards: list[Path]) -> None:
    with ArtifactUploader(sink=sink) as uploader:
        assert uploader.upload_checkpoint(shards[0], rank=0, world_size=2) is False
        assert "run of its own" in str(uploader.errors[0])
        assert uploader.upload_checkpoint(shards[0], rank=0, world_size=1) is True


def test_ranks_that_name_no_run_begin_none(shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("urllib3", reason="comes with the extra mlflow")
    monkeypatch.setenv("STAGESINK_OUTBOX_PATH", str(tmp_path / "outbox"))
    monkeypatch.setenv("STAGESINK_MODE", "offline")
    with ArtifactUploader(sink="mlflow+http://127.0.0.1:9") as uploader:
        assert uploader.upload_checkpoint(shards[0], rank=0, world_size=2) is False
        assert "run of its own" in str(uploader.errors[0])
    assert not list(tmp_path.glob("outbox/runs/*"))


def test_ranks_cannot_make_one_archive(sink: ArtifactSink, shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGESINK_PACK", "tar.gz")
    with ArtifactUploader("run", sink=sink) as uploader:
        assert uploader.upload_checkpoint(shards[0], rank=0, world_size=2) is False
        assert "one archive" in str(uploader.errors[0])


def test_a_rank_without_files_is_true(sink: ArtifactSink, shards: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with ArtifactUploader("run", sink=sink) as uploader:
        assert uploader.upload_checkpoint(tmp_path / "empty", rank=0, world_size=2, session="s") is True
        assert uploader.upload_checkpoint(shards[1], rank=1, world_size=2, session="s") is True
    assert files(sink) == [["1.bin"]]


def test_a_share_that_was_kept_is_a_share_when_it_is_synced(sink: ArtifactSink, shards: list[Path]) -> None:
    """Both ranks of this machine have one outbox, and none takes the other's place in it."""
    gone = FaultySink(sink, fails("put", TransientSinkError("gone")), notes=True)
    for rank in range(2):
        with ArtifactUploader("run", sink=gone, attempts=1) as uploader:
            assert uploader.upload_checkpoint(shards[rank], rank=rank, world_size=2, session="s") is False
            assert {receipt.status for receipt in uploader.receipts} == {"kept"}
    outbox = Outbox(OutboxSettings(path=os.environ["STAGESINK_OUTBOX_PATH"]))
    assert sorted(row.path for row in outbox.rows()) == ["checkpoint/rank-0", "checkpoint/rank-1"]
    with Sync(outbox, lambda uri: sink, TransferOptions()) as sync:
        assert [outcome.status for outcome in sync.run()] == ["landed", "landed"]
    assert files(sink) == [["0.bin", "1.bin"]]
