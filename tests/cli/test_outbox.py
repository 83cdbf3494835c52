from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from stagesink.cli import outbox as cli
from stagesink.config import load_config
from stagesink.keeping import open_outbox
from stagesink.outbox.index import Row


@pytest.fixture(autouse=True)
def _small_disks_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGESINK_OUTBOX_KEEP_FREE", "0")


@pytest.fixture
def kept(run, checkpoint):
    """Two uploads of the run r1 that could not land, since a file stands where the store should be."""
    Path("artifacts").write_text("not a folder")
    assert run("upload", checkpoint, "-r", "r1", "--stage", "training").code == 5
    assert run("upload", checkpoint / "model.bin", "-r", "r1").code == 5


def test_an_upload_that_is_kept_says_so_and_exits_with_5(run, checkpoint):
    Path("artifacts").write_text("not a folder")
    answer = run("upload", checkpoint, "-r", "r1")
    assert answer.code == 5
    assert "checkpoint is kept in" in answer.err
    assert "`stagesink sync` uploads it." in answer.err
    document = run("upload", checkpoint, "-r", "r1", "--json").json
    assert document["error"]["type"] == "KeptInOutbox"


def test_what_is_wrong_with_the_source_is_not_kept(run):
    assert run("upload", "nowhere", "-r", "r1").code == 3
    assert run("status").out.startswith("Nothing waits")


def test_an_outbox_without_room_is_a_failure(run, checkpoint, monkeypatch):
    monkeypatch.setenv("STAGESINK_OUTBOX_MAX_BYTES", "10")
    Path("artifacts").write_text("not a folder")
    answer = run("upload", checkpoint, "-r", "r1")
    assert answer.code == 1
    assert "could not be kept either" in answer.err


def test_status_says_what_waits_for_where_since_when_and_why(run, kept):
    answer = run("status")
    assert answer.code == 0
    head, row, last = answer.out.splitlines()
    assert head.split() == ["Sink", "Run", "Uploads", "Size", "Waits", "Why"]
    assert row.split()[:3] == [f"file:{os.getcwd()}/artifacts", "r1", "2"]
    assert "Not a directory" in row
    assert last.endswith("`stagesink sync` uploads it.")
    document = run("status", "--json").json
    assert (document["waiting"], document["size"]) == (2, 2005 + 1500)
    (waiting,) = document["runs"]
    assert (waiting["run_id"], waiting["uploads"], waiting["attempts"]) == ("r1", 2, 1)


def test_sync_lands_what_waits_and_exits_with_5_while_something_does(run, kept):
    answer = run("sync")
    assert answer.code == 5
    assert "Still waiting: 2 uploads" in answer.out
    Path("artifacts").unlink()
    answer = run("sync", "-v")
    assert answer.code == 0
    assert "Landed: 2 uploads, 3.5 kB" in answer.out
    assert "checkpoint of run r1: landed" in answer.err
    assert Path("artifacts/r1/model.bin").read_bytes() == b"m" * 1500
    assert run("verify", "-r", "r1").code == 0
    again = run("sync", "--json")
    assert (again.code, again.json["outcomes"], again.json["waiting"]) == (0, [], 0)


def test_sync_can_be_for_one_run_or_one_sink(run, kept, checkpoint):
    assert run("upload", checkpoint, "-r", "r2").code == 5
    Path("artifacts").unlink()
    assert run("sync", "-r", "r2").code == 0
    assert not Path("artifacts/r1").exists()
    assert run("sync", "--sink", "file:./elsewhere").code == 0
    assert not Path("artifacts/r1").exists()
    assert run("sync", "--sink", "file:./artifacts").code == 0
    assert Path("artifacts/r1/checkpoint/model.bin").is_file()


def test_sync_without_an_outbox_makes_none(run):
    answer = run("sync", "--outbox", "nowhere")
    assert (answer.code, answer.out) == (0, "Nothing waits.\n")
    assert not Path("nowhere").exists()


def test_a_sync_that_is_under_way_is_named(run, kept):
    with open_outbox(load_config().artifacts.outbox).one_sync(wait=False):
        answer = run("sync", "--no-wait")
    assert answer.code == 1
    assert f"Process {os.getpid()} on" in answer.err


def test_ls_lists_and_rm_throws_away_after_a_question(run, kept):
    entries = run("outbox", "ls", "--json").json["entries"]
    assert [each["path"] for each in entries] == ["checkpoint", "model.bin"]
    assert entries[0]["id"] in run("outbox", "ls").out
    assert run("outbox", "rm", entries[0]["id"]).code == 1  # nobody answers here
    assert run("outbox", "rm", "nonesuch").code == 3
    assert run("outbox", "rm").code == 2
    assert run("outbox", "rm", entries[0]["id"], "--all").code == 2
    assert run("outbox", "rm", entries[0]["id"], "--yes").code == 0
    assert [each["path"] for each in run("outbox", "ls", "--json").json["entries"]] == ["model.bin"]
    assert run("outbox", "rm", "--all", "-y", "--json").json["removed"] == [entries[1]["id"]]
    assert run("outbox", "ls").out.startswith("Nothing waits")


def test_gc_frees_what_was_left_half_made(run, kept):
    folder = Path(json.loads(run("status", "--json").out)["outbox"], "entries", ".20260101T000000-0123456789ab")
    folder.mkdir()
    (folder / "x").write_bytes(b"x" * 1000)
    assert run("outbox", "gc").out == "Freed: 1.0 kB\n"
    assert len(run("outbox", "ls", "--json").json["entries"]) == 2


def test_a_broken_configuration_is_said(run):
    Path("config").mkdir()
    Path("config/mlflow.yaml").write_text("artifacts: {outbox: {pth: x}}")
    answer = run("status")
    assert answer.code == 2
    assert "did you mean 'path'?" in answer.err


@pytest.mark.parametrize(("ago", "due"), [(1, False), (10, True), (-86_400, True)])
def test_an_upload_of_tomorrow_is_due_today(ago: float, due: bool) -> None:
    """Kept while the clock was a day ahead."""
    row = Row("id", time.time() - ago, "file:/x", "run", "f", False, None, None, 0, 1, 1)
    assert cli._is_due(row) is due
    assert cli._is_due(replace(row, created=0.0, last_attempt=time.time() - ago, attempts=1)) is due
