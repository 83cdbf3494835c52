"""What the facade does with the outbox: what its booleans mean, and that nothing is lost."""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from pathlib import Path

import pytest
from outbox_store import Store

from stagesink.config import load_config
from stagesink.errors import OutboxError, TransferError, TransientSinkError
from stagesink.keeping import open_outbox, open_sink_again
from stagesink.outbox.store import Outbox
from stagesink.outbox.sync import Sync
from stagesink.sinks import open_sink
from stagesink.sinks.memory import MemorySink
from stagesink.stage_helpers import upload_training_artifacts
from stagesink.testing import FaultySink, fails
from stagesink.transfer import TransferOptions, plan_tree
from stagesink.uploader import ArtifactUploader


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STAGESINK_OUTBOX_KEEP_FREE", "0")
    monkeypatch.setenv("STAGESINK_RETRIES", "1")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def gone(store: Store) -> Store:
    store.take_away()
    return store


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"m" * (2 << 20))
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def outbox() -> Outbox:
    return open_outbox(load_config().artifacts.outbox)


@pytest.mark.parametrize("what", ["claim", "remove"])
def test_an_outbox_that_breaks_keeps_nothing_from_a_store_that_is_there(
    store: Store, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    store.take_away()
    with ArtifactUploader("run", sink=store.uri) as uploader:
        assert not uploader.upload_checkpoint(checkpoint, "checkpoint")
    store.bring_back()
    (checkpoint / "config.json").write_text("newer")

    def broken(*_: object, **__: object) -> None:
        raise OutboxError("The outbox cannot be used: Read-only file system.")

    monkeypatch.setattr(Outbox, what, broken)
    caplog.clear()
    with ArtifactUploader("run", sink=store.uri) as uploader:
        assert uploader.upload_checkpoint(checkpoint, "checkpoint"), uploader.errors
    assert store.files()["checkpoint/config.json"] == b"newer"
    assert "would land over it: `stagesink outbox rm" in caplog.text


def sync(outbox: Outbox) -> list[str]:
    with Sync(outbox, lambda uri: open_sink_again(load_config(), uri), TransferOptions(attempts=1)) as run:
        return [outcome.status for outcome in run.run()]


def paths(outbox: Outbox) -> list[str]:
    return [row.path for row in outbox.rows()]


# -- in the foreground -------------------------------------------------------------------------------------------------


def test_what_cannot_land_is_false_kept_and_said_in_one_line(
    gone: Store, checkpoint: Path, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    uploader = ArtifactUploader("run", "training", sink=gone.uri)
    assert uploader.upload_checkpoint(checkpoint) is False
    assert [(r.key.path, r.status, r.verified_by) for r in uploader.receipts] == [
        ("checkpoint/config.json", "kept", "none"),
        ("checkpoint/model.bin", "kept", "none"),
    ]
    (error,) = uploader.errors
    assert isinstance(error, TransferError)
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage().startswith("checkpoint was not uploaded: ")
    kept = f"It is kept in {outbox.path} (2.1 MB)"
    # A file stands where the store's folder was: that does not pass by itself.
    assert record.getMessage().endswith(f"{kept}: once that is put right, `stagesink sync` uploads it.")


def test_what_passes_by_itself_needs_nobody_to_put_it_right(
    checkpoint: Path, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    busy = FaultySink(MemorySink(uuid.uuid4().hex), fails("put", TransientSinkError("busy"), first=99))
    assert ArtifactUploader("run", "training", sink=busy, attempts=1).upload_checkpoint(checkpoint) is False
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage().endswith(f"It is kept in {outbox.path} (2.1 MB): `stagesink sync` uploads it.")


def test_one_sync_later_it_is_there_whatever_became_of_the_files(gone: Store, checkpoint: Path, outbox: Outbox) -> None:
    answer = upload_training_artifacts(checkpoint, checkpoint / "config.json", "run", sink=gone.uri)
    assert answer == {"checkpoint": False, "metrics_json": False}
    shutil.rmtree(checkpoint)
    gone.bring_back()
    assert sync(outbox) == ["landed", "landed"]
    assert gone.files() == {
        "checkpoint/model.bin": b"m" * (2 << 20),
        "checkpoint/config.json": b"{}",
        "metrics.json": b"{}",
    }
    assert [(row.stage, row.slot) for row in outbox.rows()] == []


def test_each_kind_of_upload_is_kept(gone: Store, checkpoint: Path, outbox: Outbox) -> None:
    uploader = ArtifactUploader("run", "hpo", sink=gone.uri)
    assert uploader.upload_packed_checkpoint(checkpoint, trial_number=7) is False
    assert uploader.upload_file(checkpoint / "config.json", "deep/er/config.json") is False
    assert uploader.add_files(checkpoint) is False
    gone.bring_back()
    assert set(sync(outbox)) == {"landed"}
    assert set(gone.files()) == {"best_trial_checkpoint.tar.gz", "deep/er/config.json", "model.bin", "config.json"}


def test_what_is_wrong_with_the_source_is_not_kept(store: Store, tmp_path: Path, outbox: Outbox) -> None:
    uploader = ArtifactUploader("run", "training", sink=store.uri)
    assert uploader.upload_checkpoint(tmp_path / "nowhere") is False
    assert uploader.upload_file(tmp_path / "nowhere", "../x") is False
    assert outbox.rows() == []


def test_a_defect_in_somebody_elses_sink_loses_nothing(checkpoint: Path, outbox: Outbox) -> None:
    sink = FaultySink(MemorySink("theirs"), fails("put", ZeroDivisionError("a defect of theirs")))
    assert ArtifactUploader("run", sink=sink).upload_checkpoint(checkpoint) is False
    assert paths(outbox) == ["checkpoint"]


@pytest.mark.parametrize("where", ["argument", "variable", "slot", "stage"])
def test_only_warned_of_where_that_is_asked_for(
    gone: Store, checkpoint: Path, outbox: Outbox, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "variable":
        monkeypatch.setenv("STAGESINK_ON_FAILURE", "warn")
    elif where != "argument":
        Path("config").mkdir()
        inner = "on_failure: warn" if where == "stage" else "checkpoint: {on_failure: warn}"
        Path("config/mlflow.yaml").write_text(f"artifacts: {{stages: {{training: {{{inner}}}}}}}")
    uploader = ArtifactUploader("run", "training", sink=gone.uri, on_failure="warn" if where == "argument" else None)
    assert uploader.upload_checkpoint(checkpoint) is False
    assert {receipt.status for receipt in uploader.receipts} == {"failed"}
    assert outbox.rows() == []
    if where == "slot":  # the other slot is as ever
        assert uploader.upload_slots({"metrics_json": checkpoint / "config.json"}) == {"metrics_json": False}
        assert paths(outbox) == ["metrics.json"]


def test_raised_where_that_is_asked_for_and_then_not_kept(gone: Store, checkpoint: Path, outbox: Outbox) -> None:
    with pytest.raises(TransferError):
        ArtifactUploader("run", "training", sink=gone.uri, on_failure="raise").upload_checkpoint(checkpoint)
    assert outbox.rows() == []


def test_an_outbox_that_is_switched_off_keeps_nothing(
    gone: Store, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STAGESINK_OUTBOX_ENABLED", "false")
    monkeypatch.setenv("STAGESINK_OUTBOX_PATH", str(tmp_path / "outbox"))
    uploader = ArtifactUploader("run", "training", sink=gone.uri)
    assert uploader.upload_checkpoint(checkpoint) is False
    assert {receipt.status for receipt in uploader.receipts} == {"failed"}
    assert not (tmp_path / "outbox").exists()


def test_what_cannot_be_kept_either_is_said(
    gone: Store, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("STAGESINK_OUTBOX_MAX_BYTES", "1000")
    uploader = ArtifactUploader("run", "training", sink=gone.uri)
    assert uploader.upload_checkpoint(checkpoint) is False
    assert {receipt.status for receipt in uploader.receipts} == {"failed"}
    assert "It could not be kept either: The outbox" in caplog.text
    assert "artifacts.outbox.max_bytes" in caplog.text


def test_a_healthy_upload_makes_no_outbox(
    store: Store, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STAGESINK_OUTBOX_PATH", str(tmp_path / "outbox"))
    assert ArtifactUploader("run", "training", sink=store.uri).upload_checkpoint(checkpoint) is True
    assert not (tmp_path / "outbox").exists()


# -- older ones that wait ----------------------------------------------------------------------------------------------


def test_an_upload_that_lands_makes_older_ones_to_its_place_needless(
    gone: Store, checkpoint: Path, outbox: Outbox
) -> None:
    uploader = ArtifactUploader("run", "training", sink=gone.uri)
    uploader.upload_checkpoint(checkpoint)
    uploader.upload_file(checkpoint / "config.json", "other.json")
    (checkpoint / "model.bin").write_bytes(b"newer")
    gone.bring_back()
    assert uploader.upload_checkpoint(checkpoint) is True
    assert paths(outbox) == ["other.json"]
    sync(outbox)
    assert gone.files()["checkpoint/model.bin"] == b"newer"


def test_an_older_one_is_not_lost_when_the_newer_one_fails_as_well(
    gone: Store, checkpoint: Path, outbox: Outbox
) -> None:
    uploader = ArtifactUploader("run", "training", sink=gone.uri, on_failure="warn")
    ArtifactUploader("run", "training", sink=gone.uri).upload_checkpoint(checkpoint)
    assert uploader.upload_checkpoint(checkpoint) is False
    assert paths(outbox) == ["checkpoint"]
    with outbox.claim(outbox.rows()[0].id) as entry:
        assert entry is not None  # and is let go of


def test_what_waits_for_another_store_of_that_name_waits_on(gone: Store, checkpoint: Path, outbox: Outbox) -> None:
    class At(FaultySink):
        host = ""

    here, there = (At(open_sink(gone.uri)) for _ in range(2))
    here.host, there.host = "http://a:9000", "http://b:9000"
    assert ArtifactUploader("run", "training", sink=here).upload_checkpoint(checkpoint) is False
    gone.bring_back()
    assert ArtifactUploader("run", "training", sink=there).upload_checkpoint(checkpoint) is True
    assert [(row.path, row.host) for row in outbox.rows()] == [("checkpoint", "http://a:9000")]
    assert ArtifactUploader("run", "training", sink=here).upload_checkpoint(checkpoint) is True
    assert outbox.rows() == []


@pytest.mark.parametrize("adds", [False, True])
def test_whoever_holds_an_older_one_for_ever_holds_nobody_up(
    gone: Store, checkpoint: Path, outbox: Outbox, adds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a `stagesink sync` that was stopped in the middle."""
    monkeypatch.setenv("STAGESINK_RETRIES_BUDGET", "0.3")
    uploader = ArtifactUploader("run", "training", sink=gone.uri)
    uploader.upload_checkpoint(checkpoint)
    gone.bring_back()
    (row,) = outbox.rows()
    upload = (lambda: uploader.add_files(checkpoint / "config.json", "checkpoint")) if adds else None
    with outbox.claim(row.id):
        assert (upload or (lambda: uploader.upload_checkpoint(checkpoint)))() is False
    assert "Another process holds" in str(uploader.errors[-1])
    assert len(outbox.rows()) == 2
    sync(outbox)
    assert outbox.rows() == []


def test_what_adds_to_a_folder_comes_after_what_waits_for_it(gone: Store, checkpoint: Path, outbox: Outbox) -> None:
    uploader = ArtifactUploader("run", "training", sink=gone.uri)
    uploader.upload_checkpoint(checkpoint)
    extra = checkpoint.parent / "extra.txt"
    extra.write_text("extra")
    gone.bring_back()
    assert uploader.add_files(extra, "checkpoint") is True
    assert set(gone.files()) == {"checkpoint/model.bin", "checkpoint/config.json", "checkpoint/extra.txt"}
    assert outbox.rows() == []


def test_what_adds_to_a_folder_waits_too_when_that_cannot_land(gone: Store, checkpoint: Path, outbox: Outbox) -> None:
    uploader = ArtifactUploader("run", "training", sink=gone.uri)
    uploader.upload_checkpoint(checkpoint)
    extra = checkpoint.parent / "extra.txt"
    extra.write_text("extra")
    assert uploader.add_files(extra, "checkpoint") is False
    assert paths(outbox) == ["checkpoint", "checkpoint/extra.txt"]
    gone.bring_back()
    assert sync(outbox) == ["landed", "landed"]
    assert set(gone.files()) == {"checkpoint/model.bin", "checkpoint/config.json", "checkpoint/extra.txt"}


def test_what_can_never_land_does_not_stop_what_adds_to_its_folder(
    store: Store, checkpoint: Path, outbox: Outbox, tmp_path: Path
) -> None:
    outbox.keep(plan_tree("run", "out", checkpoint), store.uri, quick=True)
    (checkpoint / "model.bin").write_bytes(b"rewritten in place")
    (tmp_path / "note.txt").write_text("note")
    assert ArtifactUploader("run", sink=store.uri).add_files(tmp_path / "note.txt", "out") is True
    assert store.files()["out/note.txt"] == b"note"


# -- in the background -------------------------------------------------------------------------------------------------


def test_in_the_background_true_means_durable_here_and_the_handle_says_the_rest(
    store: Store, checkpoint: Path, outbox: Outbox
) -> None:
    with ArtifactUploader("run", "training", sink=store.uri, background=True) as uploader:
        assert uploader.upload_checkpoint(checkpoint) is True
        assert {receipt.status for receipt in uploader.receipts} == {"kept"}
        shutil.rmtree(checkpoint)  # the trainer rotates
        (handle,) = uploader.handles
        assert {receipt.status for receipt in handle.result(timeout=30)} == {"uploaded"}
        assert uploader.flush(timeout=30) is True
    assert store.files()["checkpoint/model.bin"] == b"m" * (2 << 20)
    assert outbox.rows() == []


def test_in_the_background_a_store_that_is_gone_costs_nothing(gone: Store, checkpoint: Path, outbox: Outbox) -> None:
    uploader = ArtifactUploader("run", "training", sink=gone.uri, background=True)
    assert uploader.upload_checkpoint(checkpoint) is True
    assert uploader.flush(timeout=30) is False
    with pytest.raises(TransferError):
        uploader.handles[0].result()
    assert paths(outbox) == ["checkpoint"]
    (entry,) = outbox.entries()
    assert {file.how for file in entry.files} <= {"copy", "reflink"}  # it waits long: no link to the trainer's file
    gone.bring_back()
    assert sync(outbox) == ["landed"]


def test_in_the_background_what_cannot_be_kept_is_false(
    store: Store, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGESINK_OUTBOX_MAX_BYTES", "1000")
    uploader = ArtifactUploader("run", "training", sink=store.uri, background=True)
    assert uploader.upload_checkpoint(checkpoint) is False
    assert isinstance(uploader.errors[0], OutboxError)
    assert uploader.handles == []


def test_a_sink_that_was_handed_over_is_used_in_the_background_and_stays_open(checkpoint: Path) -> None:
    closed: list[bool] = []

    class Sink(MemorySink):
        def close(self) -> None:
            closed.append(True)

    sink = Sink("background")
    uploader = ArtifactUploader("run", "training", sink=sink, background=True)
    assert uploader.upload_checkpoint(checkpoint) is True
    assert uploader.flush(timeout=30) is True
    assert {stored.key.path for stored in sink.list("run")} == {
        *("checkpoint/model.bin", "checkpoint/config.json", "checkpoint.manifest.json")
    }
    assert closed == []


def test_the_newest_of_one_place_wins_in_the_background_too(store: Store, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.json"
    with ArtifactUploader("run", "training", sink=store.uri, background=True) as uploader:
        for epoch in range(20):
            metrics.write_text(str(epoch))
            assert uploader.upload_file(metrics, "metrics.json") is True
        uploader.flush(timeout=30)
    assert store.files() == {"metrics.json": b"19"}


# -- offline -----------------------------------------------------------------------------------------------------------


def test_offline_nothing_is_asked_and_everything_is_kept(
    checkpoint: Path, outbox: Outbox, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGESINK_MODE", "offline")
    assert upload_training_artifacts(checkpoint, run_id="run", sink=store.uri) == {"checkpoint": False}
    assert not store.folder.exists()
    assert paths(outbox) == ["checkpoint"]
    monkeypatch.delenv("STAGESINK_MODE")
    assert sync(outbox) == ["landed"]


def test_offline_in_the_background_true_means_kept(
    checkpoint: Path, outbox: Outbox, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGESINK_MODE", "offline")
    uploader = ArtifactUploader("run", "training", sink=store.uri, background=True)
    assert uploader.upload_checkpoint(checkpoint) is True
    assert uploader.handles == []
    assert not store.folder.exists()
    assert paths(outbox) == ["checkpoint"]


@pytest.mark.parametrize("variable", [("STAGESINK_MODE", "offline"), ("STAGESINK_BACKGROUND", "true")])
def test_without_an_outbox_neither_works_and_it_is_said(
    checkpoint: Path, store: Store, monkeypatch: pytest.MonkeyPatch, variable: tuple[str, str]
) -> None:
    monkeypatch.setenv(*variable)
    monkeypatch.setenv("STAGESINK_OUTBOX_ENABLED", "false")
    uploader = ArtifactUploader("run", "training", sink=store.uri)
    assert uploader.upload_checkpoint(checkpoint) is False
    assert "STAGESINK_OUTBOX_ENABLED" in str(uploader.errors[0])


# -- the sink, later ---------------------------------------------------------------------------------------------------


def test_the_configured_sink_is_the_one_that_knows_the_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "ftp://user:hunter2@localhost:2121/artifacts"
    monkeypatch.setenv("STAGESINK_SINK", uri)
    opened: list[str] = []

    def remember(uri: str, **options: object) -> object:
        opened.append(uri)
        return open_sink(uri)

    monkeypatch.setattr("stagesink.keeping.open_sink", remember)
    open_sink_again(load_config(), "ftp://localhost:2121/artifacts").close()
    assert opened == [uri]
    opened.clear()
    open_sink_again(load_config(), f"file:{tmp_path}").close()
    assert opened == [f"file:{tmp_path}"]


def test_one_outbox_for_a_process_and_another_in_a_child(outbox: Outbox) -> None:
    assert open_outbox(load_config().artifacts.outbox) is outbox
    child = os.fork()
    if child == 0:
        os._exit(0 if open_outbox(load_config().artifacts.outbox) is not outbox else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_defect_while_it_is_kept_does_not_kill_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("stagesink.outbox.store.Outbox.keep", no_memory)
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "store").touch()  # a file where its folder goes
    with ArtifactUploader("run", sink=tmp_path / "store", attempts=1) as uploader:
        assert uploader.upload_file(tmp_path / "metrics.json") is False
    assert "It could not be kept either: Unexpected MemoryError." in caplog.text


def test_an_outbox_that_cannot_be_used_keeps_nothing_from_a_store_that_can(
    store: Store, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    monkeypatch.setenv("STAGESINK_OUTBOX_PATH", str(tmp_path / "link"))
    with caplog.at_level(logging.WARNING, "stagesink"):
        assert ArtifactUploader("run", sink=store.uri).upload_checkpoint(checkpoint)
    assert "is a link" in caplog.text
    assert "would land over this upload later" in caplog.text


def test_a_working_folder_that_is_gone_stops_no_upload(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGESINK_OUTBOX_PATH", str(tmp_path / "box"))
    open_outbox(load_config().artifacts.outbox)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.chdir(scratch)
    scratch.rmdir()
    assert ArtifactUploader("run", sink=str(tmp_path / "store")).upload_checkpoint(checkpoint)
