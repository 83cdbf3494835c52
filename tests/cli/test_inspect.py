from __future__ import annotations

from pathlib import Path

import pytest

from stagesink.errors import TransientSinkError
from stagesink.sinks.local import LocalSink
from stagesink.testing import FaultySink, fails
from stagesink.transfer.retry import RetryPolicy
from stagesink.uploader import ArtifactUploader


@pytest.fixture
def uploaded(run, checkpoint):
    """The run r1: a tree of the training stage, and an archive."""
    assert run("upload", checkpoint, "-r", "r1", "--stage", "training").code == 0
    assert run("upload", checkpoint, "-r", "r1", "--to", "best.tar.gz").code == 0


# -- ls --------------------------------------------------------------------------------------------------------------


def test_ls_shows_what_is_whole(run, uploaded):
    answer = run("ls", "-r", "r1")
    assert (answer.code, answer.err) == (0, "")
    rows = {line.split()[0]: line.split() for line in answer.out.splitlines()}
    assert rows["checkpoint"][1:6] == ["tree", "3", "2.0", "kB", "training"]
    assert rows["best.tar.gz"][1:3] == ["archive", "3"]


def test_ls_in_json_counts_bytes(run, uploaded):
    uploads = {each["path"]: each for each in run("ls", "-r", "r1", "--json").json["uploads"]}
    assert uploads["checkpoint"]["size"] == 2005
    assert uploads["best.tar.gz"]["size"] == Path("artifacts/r1/best.tar.gz").stat().st_size
    assert uploads["checkpoint"]["created_at"].startswith("20")


def test_ls_lists_objects(run, uploaded):
    Path("artifacts/r1/junk").write_text("12345")
    objects = {each["path"]: each for each in run("ls", "-r", "r1", "--objects", "--json").json["objects"]}
    assert objects["checkpoint/model.bin"]["size"] == 1500
    assert objects["checkpoint.manifest.json"]["committed"] is True
    assert objects["junk"]["committed"] is False
    assert "junk" not in run("ls", "checkpoint", "-r", "r1", "--objects").out


def test_ls_notes_what_was_not_committed(run, uploaded):
    Path("artifacts/r1/checkpoint.manifest.json").unlink()
    answer = run("ls", "-r", "r1")
    assert "checkpoint " not in answer.out
    assert "3 objects not committed" in answer.err
    assert "checkpoint/model.bin" in run("ls", "-r", "r1", "--json").json["uncommitted"]
    assert run("ls", "-r", "r1", "-q").err == ""


def test_ls_takes_the_run_from_the_environment(run, uploaded, monkeypatch):
    monkeypatch.setenv("STAGESINK_RUN_ID", "r1")
    assert run("ls", "--json").json["run_id"] == "r1"


def test_ls_of_a_file_in_a_tree_shows_the_tree(run, uploaded):
    assert [each["path"] for each in run("ls", "checkpoint/model.bin", "-r", "r1", "--json").json["uploads"]] == [
        "checkpoint"
    ]


@pytest.mark.parametrize("command", ["ls", "verify", "restore --to x"])
def test_nothing_makes_up_a_run_to_read_from(run, command):
    answer = run(*command.split())
    assert answer.code == 2
    assert "--run-id" in answer.err


@pytest.mark.parametrize("command", ["ls", "ls --objects", "verify", "restore --to x"])
def test_a_run_that_holds_nothing_is_not_found(run, command):
    assert run(*command.split(), "-r", "empty").code == 3


@pytest.mark.parametrize("command", ["ls", "verify", "restore --to x"])
def test_a_path_that_holds_nothing_is_not_found(run, uploaded, command):
    answer = run(*command.split(), "nope", "-r", "r1")
    assert answer.code == 3
    assert "nope" in answer.err


@pytest.mark.parametrize("command", ["ls", "verify", "restore --to x"])
@pytest.mark.parametrize("run_id", ["..", "a/b", "a\\b", "x" * 300])
def test_a_run_id_that_would_leave_the_store(run, command, run_id):
    assert run(*command.split(), "-r", run_id).code == 2


@pytest.mark.parametrize("command", ["ls", "verify", "restore --to x"])
def test_a_path_that_would_leave_the_run(run, uploaded, command):
    assert run(*command.split(), "../r2", "-r", "r1").code in (2, 3)


BUSY = TransientSinkError("503")
TRIES = 7  # more than the default


@pytest.mark.parametrize("command", ["ls", "ls --objects", "verify", "verify --sizes", "restore --to back"])
@pytest.mark.parametrize("operation", ["list", "open"])
def test_a_busy_store_is_asked_as_often_as_configured(run, uploaded, monkeypatch, command, operation):
    Path("config").mkdir()
    Path("config/mlflow.yaml").write_text(f"artifacts: {{retries: {{attempts: {TRIES}}}}}")
    monkeypatch.setattr(
        ArtifactUploader, "sink", FaultySink(LocalSink("artifacts"), fails(operation, BUSY, first=TRIES - 1))
    )
    monkeypatch.setattr(RetryPolicy, "_sleep", lambda self, seconds: None)
    answer = run(*command.split(), "-r", "r1")
    assert (answer.code, answer.err) == (0, "")


# -- verify ----------------------------------------------------------------------------------------------------------


def test_verify_says_ok_for_each_upload(run, uploaded):
    answer = run("verify", "-r", "r1")
    assert (answer.code, answer.err) == (0, "")
    assert [line.split()[-1] for line in answer.out.splitlines()[1:]] == ["ok", "ok"]
    assert run("verify", "-r", "r1", "--json").json["ok"] is True


def test_verify_finds_other_bytes_of_the_same_size(run, uploaded):
    Path("artifacts/r1/checkpoint/model.bin").write_bytes(b"M" * 1500)
    answer = run("verify", "-r", "r1")
    assert answer.code == 1
    assert "checkpoint/model.bin" in answer.out
    assert "sha256" in answer.out
    answer = run("verify", "-r", "r1", "--json")
    assert answer.code == 1
    assert answer.json["ok"] is False
    bad = [problem for upload in answer.json["uploads"] for problem in upload["problems"]]
    assert [(each["path"], each["status"]) for each in bad] == [("checkpoint/model.bin", "content")]


def test_verify_by_size_reads_nothing(run, uploaded):
    Path("artifacts/r1/checkpoint/model.bin").write_bytes(b"M" * 1500)
    answer = run("verify", "-r", "r1", "--sizes", "--json")
    assert answer.code == 0
    assert answer.json["proof"] == "size"
    Path("artifacts/r1/checkpoint/model.bin").write_bytes(b"M")
    assert run("verify", "-r", "r1", "--sizes").code == 1


def test_verify_finds_what_is_missing(run, uploaded):
    Path("artifacts/r1/checkpoint/sub/notes.txt").unlink()
    assert run("verify", "checkpoint", "-r", "r1").code == 1
    assert run("verify", "best.tar.gz", "-r", "r1").code == 0


def test_verify_is_not_good_when_a_manifest_cannot_be_read(run, uploaded):
    Path("artifacts/r1/checkpoint.manifest.json").write_text("{")
    answer = run("verify", "-r", "r1")
    assert answer.code == 1
    assert "checkpoint.manifest.json  " in answer.out
    assert "damaged" in answer.out
    assert run("verify", "-r", "r1", "--json").json["unreadable_manifests"] == ["checkpoint.manifest.json"]


def test_an_upload_that_reads_back_mends_what_was_damaged_since(run, uploaded, checkpoint):
    Path("artifacts/r1/checkpoint/model.bin").write_bytes(b"M" * 1500)
    assert run("upload", checkpoint, "-r", "r1", "--stage", "training").code == 0
    assert run("verify", "-r", "r1").code == 1  # its size is right, and the proof was no more than that
    assert run("upload", checkpoint, "-r", "r1", "--stage", "training", "--verify", "full").code == 0
    assert run("verify", "-r", "r1").code == 0


def test_verify_notes_what_was_not_committed(run, uploaded):
    Path("artifacts/r1/junk").touch()
    answer = run("verify", "-r", "r1")
    assert answer.code == 0
    assert "junk" in answer.err


def test_verify_looks_at_a_part_of_a_tree_alone(run, uploaded):
    Path("artifacts/r1/checkpoint/sub/notes.txt").unlink()
    document = run("verify", "checkpoint/model.bin", "-r", "r1", "--json").json
    assert document["ok"] is True
    assert [(each["path"], each["files"], each["size"]) for each in document["uploads"]] == [("checkpoint", 1, 1500)]
    assert run("verify", "checkpoint/sub", "-r", "r1").code == 1


@pytest.mark.parametrize("command", ["verify", "restore --to x"])
def test_a_path_that_a_tree_does_not_hold_is_not_found(run, uploaded, command):
    assert run(*command.split(), "checkpoint/nope", "-r", "r1").code == 3
