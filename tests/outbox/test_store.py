from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stagesink.artifacts import ArtifactKey, FileSource, Fingerprint, MemorySource
from stagesink.errors import OutboxError, OutboxFull, SourceChanged, SourceNotFound
from stagesink.outbox import index
from stagesink.outbox.entry import Entry
from stagesink.outbox.settings import OutboxSettings
from stagesink.outbox.store import Outbox
from stagesink.transfer import plan_packed_tree, plan_tree
from stagesink.transfer.plan import Plan, PlannedObject
from stagesink.transfer.share import Share

SINK = "file:/somewhere"


def kept_bytes(outbox: Outbox) -> dict[str, bytes]:
    (entry,) = outbox.entries()
    return {file.path: Path(entry.place(file)).read_bytes() for file in entry.files}


# -- what is kept ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", [True, False])
def test_what_is_kept_is_there_for_every_other_process(
    outbox: Outbox, reopened: Outbox, checkpoint: Path, quick: bool
) -> None:
    kept = outbox.keep(
        plan_tree("run", "checkpoint", checkpoint), SINK, stage="training", slot="checkpoint", quick=quick
    )
    (found,) = reopened.entries()
    assert found == kept
    assert kept_bytes(reopened) == {
        "checkpoint/model.bin": b"m" * (2 << 20),
        "checkpoint/sub/ünï code #1.json": b"{}",
        "checkpoint/empty": b"",
    }
    (row,) = reopened.rows()
    assert (row.run_id, row.path, row.stage, row.slot, row.files, row.bytes) == (
        *("run", "checkpoint", "training", "checkpoint", 3, (2 << 20) + 2),
    )


def test_its_owner_may_rotate_the_checkpoint_the_next_moment(outbox: Outbox, checkpoint: Path) -> None:
    outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK, quick=True)
    shutil.rmtree(checkpoint)
    assert kept_bytes(outbox)["checkpoint/model.bin"] == b"m" * (2 << 20)


def test_a_plan_comes_back_as_it_was(outbox: Outbox, checkpoint: Path) -> None:
    plan = plan_packed_tree(
        "run",
        "best.tar.gz",
        checkpoint,
        archive_format="tar.gz",
        details={"trial_number": 7},
        provenance={"stage": "hpo"},
    )
    again = outbox.keep(plan, SINK).plan()
    assert replace(again, objects=()) == replace(plan, objects=())
    with plan.objects[0].source.open() as sent, again.objects[0].source.open() as kept:
        assert kept.read() == sent.read()


def test_bytes_in_memory_are_kept_too(outbox: Outbox) -> None:
    item = PlannedObject(ArtifactKey("run", "note.txt"), MemorySource(b"hello"), 5)
    outbox.keep(Plan("run", "note.txt", "file", (item,)), SINK)
    assert kept_bytes(outbox) == {"note.txt": b"hello"}


def test_a_file_seen_rewritten_in_place_is_copied_from_then_on(outbox: Outbox, checkpoint: Path) -> None:
    hows = []
    for _ in range(3):
        entry = outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK, quick=True)
        hows.append({file.path: file.how for file in entry.files}["checkpoint/model.bin"])
        with (checkpoint / "model.bin").open("r+b") as stream:
            stream.write(os.urandom(8))
    if hows[0] == "reflink":
        pytest.skip("this disk has reflinks, which nobody can write through")
    assert hows == ["link", "copy", "copy"]


def test_a_link_that_was_written_through_is_an_error_and_never_uploaded(outbox: Outbox, checkpoint: Path) -> None:
    entry = outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK, quick=True)
    if any(file.how == "reflink" for file in entry.files):
        pytest.skip("this disk has reflinks, which nobody can write through")
    (checkpoint / "model.bin").write_bytes(b"the next checkpoint, half of it")
    with pytest.raises(SourceChanged, match="in place"):
        outbox.own(entry)
    sources = {item.key.path: item.source for item in entry.plan().objects}
    with pytest.raises(SourceChanged, match="in place"):
        sources["checkpoint/model.bin"].open()


def test_an_archive_is_not_packed_of_what_was_written_through_a_link(outbox: Outbox, checkpoint: Path) -> None:
    plan = plan_packed_tree("run", "checkpoint.tar.gz", checkpoint, archive_format="tar.gz")
    entry = outbox.keep(plan, SINK, quick=True)
    (checkpoint / "model.bin").write_bytes(b"the next checkpoint, half of it")
    (item,) = entry.plan().objects
    if {file.how for file in entry.files} == {"copy", "link"}:  # no reflinks on this disk
        with item.source.open() as stream, pytest.raises(SourceChanged, match="in place"):
            stream.read()


@pytest.mark.parametrize("bits", [1 << 63, (1 << 64) - 1])
def test_any_name_and_any_inode_can_be_linked(
    outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"m" * (2 << 20))
    plan = plan_tree("run", "checkpoint", folder)
    (found,) = outbox.keep(plan, SINK, quick=True).files
    assert found.how in ("link", "reflink")
    fingerprint = FileSource(folder / "model.bin").fingerprint()
    assert outbox._index.rewritten([("large", fingerprint._replace(inode=bits))]) == set()
    assert outbox._index.rewritten([("large", fingerprint._replace(inode=bits, size=1))]) == {"large"}


@pytest.mark.parametrize("quick", [True, False])
def test_an_outbox_may_be_moved_to_another_disk(
    outbox: Outbox, settings: OutboxSettings, checkpoint: Path, tmp_path: Path, quick: bool
) -> None:
    outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK, quick=quick)
    outbox.close()
    shutil.copytree(outbox.path, tmp_path / "moved")  # other inodes, as `cp -a` makes them
    shutil.rmtree(outbox.path)
    with contextlib.closing(Outbox(replace(settings, path=str(tmp_path / "moved")))) as moved:
        (entry,) = moved.entries()
        entry.check()
        (item,) = [item for item in entry.plan().objects if item.key.path == "checkpoint/model.bin"]
        with item.source.open() as stream:
            assert stream.read() == b"m" * (2 << 20)


def test_what_must_wait_long_shares_nothing_with_its_owner(outbox: Outbox, reopened: Outbox, checkpoint: Path) -> None:
    entry = outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK, quick=True)
    outbox.settle(entry)
    own = outbox.own(entry)
    (checkpoint / "model.bin").write_bytes(b"the next checkpoint")
    assert kept_bytes(reopened)["checkpoint/model.bin"] == b"m" * (2 << 20)
    assert {file.how for file in own.files} <= {"copy", "reflink"}


@pytest.mark.parametrize("call", ["os.unlink", "stagesink.outbox.store._replace", "stagesink.outbox.store.settle"])
def test_a_kill_while_links_become_copies_loses_nothing(
    outbox: Outbox, reopened: Outbox, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    entry = outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK, quick=True)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(call, killed)
        with pytest.raises(KeyboardInterrupt):
            outbox.own(entry)
    (again,) = reopened.entries()
    own = reopened.own(again)
    (checkpoint / "model.bin").write_bytes(b"the next checkpoint")
    for item in own.plan().objects:
        item.source.open().close()
    assert kept_bytes(reopened)["checkpoint/model.bin"] == b"m" * (2 << 20)


def test_nothing_is_left_of_what_could_not_be_kept(outbox: Outbox, checkpoint: Path) -> None:
    plan = plan_tree("run", "checkpoint", checkpoint)
    (checkpoint / "model.bin").unlink()
    with pytest.raises(SourceNotFound):
        outbox.keep(plan, SINK)
    assert outbox.rows() == []
    assert list((outbox.path / "entries").iterdir()) == []


# -- room --------------------------------------------------------------------------------------------------------------


def test_what_is_too_much_is_refused_clearly(settings: OutboxSettings, checkpoint: Path) -> None:
    outbox = Outbox(replace(settings, max_bytes=3 << 20))
    outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK, stage="training", slot="checkpoint")
    with pytest.raises(OutboxFull, match=r"no room for other \(2,097,154 bytes; 2,097,154 wait; .* stagesink sync"):
        outbox.keep(plan_tree("run", "other", checkpoint), SINK)
    assert [row.path for row in outbox.rows()] == ["checkpoint"]


def test_older_checkpoints_of_the_slot_give_way_and_it_is_said(
    settings: OutboxSettings, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = Outbox(replace(settings, max_bytes=5 << 20))
    for path in ("checkpoint-1", "checkpoint-2", "checkpoint-3"):
        outbox.keep(plan_tree("run", path, checkpoint), SINK, stage="training", slot="checkpoint")
    assert [row.path for row in outbox.rows()] == ["checkpoint-2", "checkpoint-3"]
    assert "checkpoint-1 of run run" in caplog.text
    assert "NOT uploaded" in caplog.text


def test_another_runs_checkpoints_and_other_slots_give_way_to_nobody(
    settings: OutboxSettings, checkpoint: Path
) -> None:
    outbox = Outbox(replace(settings, max_bytes=5 << 20))
    outbox.keep(plan_tree("other", "checkpoint", checkpoint), SINK, stage="training", slot="checkpoint")
    outbox.keep(plan_tree("run", "plots", checkpoint), SINK, stage="training", slot="plots")
    with pytest.raises(OutboxFull):
        outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK, stage="training", slot="checkpoint")
    assert len(outbox.rows()) == 2


def larger(folder: Path, size: int) -> Path:
    folder.mkdir()
    (folder / "model.bin").write_bytes(bytes(size))
    return folder


def test_nothing_gives_way_to_what_has_no_room_even_so(
    settings: OutboxSettings, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = Outbox(replace(settings, max_bytes=3 << 20))
    old = outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK, stage="training", slot="checkpoint")
    plan = plan_tree("run", "checkpoint", larger(tmp_path / "larger", 4 << 20))
    with pytest.raises(OutboxFull):
        outbox.keep(plan, SINK, stage="training", slot="checkpoint")
    assert outbox.entries() == [old]
    assert "gives way" not in caplog.text


def test_nothing_gives_way_to_what_never_comes(settings: OutboxSettings, checkpoint: Path, tmp_path: Path) -> None:
    outbox = Outbox(replace(settings, max_bytes=3 << 20))
    old = outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK)
    plan = plan_tree("run", "checkpoint", larger(tmp_path / "next", 2 << 20))
    (tmp_path / "next" / "model.bin").unlink()
    with pytest.raises(SourceNotFound):
        outbox.keep(plan, SINK)
    assert outbox.entries() == [old]


def test_what_takes_no_room_of_a_full_disk_does_not_give_way(
    settings: OutboxSettings, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(replace(settings, keep_free=1 << 20))
    old = outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK, quick=True)  # by a link
    assert [file.how for file in old.files if file.size > 1000] == ["link"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    with pytest.raises(OutboxFull, match="the disk is full"):
        outbox.keep(plan_tree("run", "checkpoint", larger(tmp_path / "next", 1 << 20)), SINK)
    assert outbox.entries() == [old]


def test_no_more_is_held_than_what_gives_way(
    settings: OutboxSettings, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(replace(settings, max_bytes=5 << 20))
    for name in ("checkpoint-1", "checkpoint-2"):
        outbox.keep(plan_tree("run", name, checkpoint), SINK, stage="training", slot="checkpoint")
    held: list[str] = []
    claim = Outbox.claim

    def noting(self: Outbox, entry_id: str, **options: float) -> AbstractContextManager[Entry | None]:
        held.append(entry_id)
        return claim(self, entry_id, **options)

    monkeypatch.setattr(Outbox, "claim", noting)
    oldest = outbox.rows()[0]
    outbox.keep(plan_tree("run", "checkpoint-3", checkpoint), SINK, stage="training", slot="checkpoint")
    assert held == [oldest.id]
    assert [row.path for row in outbox.rows()] == ["checkpoint-2", "checkpoint-3"]


def test_another_ranks_share_of_the_same_checkpoint_does_not_give_way(
    settings: OutboxSettings, checkpoint: Path, tmp_path: Path
) -> None:
    outbox = Outbox(replace(settings, max_bytes=3 << 20))

    def keep(rank: int, path: str = "checkpoint") -> Entry:
        plan = replace(plan_tree("run", path, checkpoint), share=Share(rank, 2, "step 1"))
        return outbox.keep(plan, SINK, stage="training", slot="checkpoint")

    first = keep(0)
    with pytest.raises(OutboxFull):
        keep(1)
    assert outbox.entries() == [first]
    later = keep(0, "checkpoint-2")  # its own does
    assert outbox.entries() == [later]


def test_the_names_of_a_new_outbox_reach_the_disk(
    settings: OutboxSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled: list[str] = []
    monkeypatch.setattr("stagesink.outbox.store.settle", settled.append)
    path = tmp_path / "not" / "there" / "outbox"
    Outbox(replace(settings, path=str(path)))
    assert {str(tmp_path), str(tmp_path / "not"), str(path.parent), str(path)} <= set(settled)
    settled.clear()
    Outbox(replace(settings, path=str(path)))
    assert settled == []


def test_what_lands_just_now_is_not_thrown_away(settings: OutboxSettings, checkpoint: Path) -> None:
    outbox = Outbox(replace(settings, max_bytes=3 << 20))
    old = outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK)
    with outbox.claim(old.id), pytest.raises(OutboxFull):
        outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK)
    assert outbox.entry(old.id) == old


def test_the_disk_keeps_its_free_space(settings: OutboxSettings, checkpoint: Path) -> None:
    outbox = Outbox(replace(settings, keep_free=1 << 60))
    with pytest.raises(OutboxFull, match="the disk is full"):
        outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK)


# -- claims ------------------------------------------------------------------------------------------------------------


def test_an_entry_is_held_by_one(outbox: Outbox, reopened: Outbox, checkpoint: Path) -> None:
    entry = outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK)
    with outbox.claim(entry.id) as mine, reopened.claim(entry.id) as theirs:
        assert (mine, theirs) == (entry, None)
    with reopened.claim(entry.id) as theirs:
        assert theirs == entry


def test_a_claim_dies_with_its_process(outbox: Outbox, settings: OutboxSettings, checkpoint: Path) -> None:
    entry = outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK)
    holder = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import sys, time\n"
            "from stagesink.outbox.settings import OutboxSettings\n"
            "from stagesink.outbox.store import Outbox\n"
            "with Outbox(OutboxSettings(path=sys.argv[1])).claim(sys.argv[2]):\n"
            "    print('held', flush=True)\n"
            "    time.sleep(600)\n",
            *(settings.path, entry.id),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with outbox.claim(entry.id) as held:
            assert held is None
    finally:
        holder.kill()
        holder.communicate()
    with outbox.claim(entry.id) as held:
        assert held == entry


def test_what_is_gone_cannot_be_held(outbox: Outbox, checkpoint: Path) -> None:
    entry = outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK)
    outbox.remove(entry.id)
    outbox.remove(entry.id)
    with outbox.claim(entry.id) as held:
        assert held is None
    assert not any((outbox.path / "entries").iterdir())
    assert not any((outbox.path / "claims").iterdir())


def test_one_sync_at_a_time_and_the_other_says_who(outbox: Outbox, reopened: Outbox) -> None:
    with outbox.one_sync(wait=False), pytest.raises(OutboxError, match=f"Process {os.getpid()} on "):  # noqa: SIM117
        with reopened.one_sync(wait=False):
            pass
    with reopened.one_sync(wait=False):
        pass


# -- through damage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["lost", "random", "truncated", "empty", "another program's"])
def test_a_damaged_index_is_made_anew_and_its_bytes_are_set_aside(
    outbox: Outbox, settings: OutboxSettings, checkpoint: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    entry = outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK)
    outbox.close()
    index = outbox.path / "index.db"
    for ending in ("-wal", "-shm"):
        Path(f"{index}{ending}").unlink(missing_ok=True)
    damaged = {
        "random": os.urandom(20_000),
        "truncated": index.read_bytes()[:5000],
        "empty": b"",
        "another program's": b"hello, I am a text\n" * 100,
    }
    if how == "lost":
        index.unlink()
    else:
        index.write_bytes(damaged[how])
    again = Outbox(settings)
    assert again.entries() == [entry]
    assert [row.path for row in again.rows()] == ["checkpoint"]
    aside = list(outbox.path.glob("index.db.damaged-*"))
    if how in ("lost", "empty"):  # an empty file is an empty database
        assert aside == []
    else:
        assert [each.read_bytes() for each in aside if not each.name.endswith(("-wal", "-shm"))] == [damaged[how]]
        assert str(aside[0]) in caplog.text
    again.remove(entry.id)
    assert again.rows() == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"checkpoint", b"check\xffoint"),  # text that is none
        (b"file:/somewhere", b"file:/\xff\xffmewhere"),
        (b"priority INTEGER", b"priorit\xff INTEGER"),
        (b"priority INTEGER", b"prioritx INTEGER"),  # of another version
    ],
)
def test_one_wrong_byte_in_the_index_costs_nothing(
    outbox: Outbox, settings: OutboxSettings, checkpoint: Path, old: bytes, new: bytes
) -> None:
    entry = outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK)
    outbox.close()
    index = outbox.path / "index.db"
    assert old in index.read_bytes()
    index.write_bytes(index.read_bytes().replace(old, new))
    again = Outbox(settings)
    assert [(row.id, row.path, row.sink) for row in again.rows()] == [(entry.id, "checkpoint", SINK)]
    again.close()


def test_two_that_are_kept_at_once_take_no_more_than_there_is(
    settings: OutboxSettings, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ranks of one node do: each sees the room that there is before the others have taken it."""
    add, looked = Outbox._add, threading.Semaphore(0)

    def slowly(self: Outbox, *arguments: Any, **named: Any) -> Entry:
        looked.release()
        looked.acquire(timeout=1)  # twice, where the other one looks meanwhile
        looked.acquire(timeout=1)
        return add(self, *arguments, **named)

    def keep(path: str) -> bool:
        outbox = Outbox(replace(settings, max_bytes=3 << 20))
        with closing(outbox), contextlib.suppress(OutboxFull):
            outbox.keep(plan_tree("run", path, checkpoint), SINK)
            return True
        return False

    monkeypatch.setattr(Outbox, "_add", slowly)
    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(keep, ["one", "two"])) == [False, True]


def test_what_killed_processes_left_gives_way_first(
    outbox: Outbox, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK)
    left = outbox.path / "entries" / ".20260101T000000-abcdefabcdef"
    (left / "files").mkdir(parents=True)
    (left / "files" / "000000").write_bytes(b"x" * 5000)
    # As a disk that is full until that is gone.
    monkeypatch.setattr(Outbox, "_lacks", lambda self, wanted: 5000 if left.exists() else -1)
    new = outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK)
    assert not left.exists()
    assert [entry.id for entry in outbox.entries()] == [old.id, new.id]


def test_whoever_syncs_cleans_up_after_killed_processes(outbox: Outbox) -> None:
    left = outbox.path / "entries" / ".20260101T000000-abcdefabcdef"
    left.mkdir()
    with outbox.one_sync(wait=False):
        assert not left.exists()


def test_an_index_damaged_while_it_is_open_is_mended(outbox: Outbox, checkpoint: Path) -> None:
    entry = outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK)
    with (outbox.path / "index.db").open("r+b") as file:
        file.write(os.urandom(4096))
    assert outbox.entries() == [entry]


def test_an_index_cut_to_whole_pages_while_it_is_open_is_mended(
    outbox: Outbox, settings: OutboxSettings, checkpoint: Path
) -> None:
    """Which sqlite calls an I/O error."""
    entry = outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK)
    index = outbox.path / "index.db"
    with closing(sqlite3.connect(index)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for ending in ("-wal", "-shm"):
        Path(f"{index}{ending}").unlink(missing_ok=True)
    os.truncate(index, 4 * 4096)
    more = outbox.keep(plan_tree("run", "more", checkpoint), SINK)
    with closing(Outbox(settings)) as again:
        assert again.entries() == [entry, more]
    assert any(outbox.path.glob("index.db.damaged-*"))


def test_an_index_that_another_holds_is_waited_for(
    outbox: Outbox, settings: OutboxSettings, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox.keep(plan_tree("run", "a", checkpoint), SINK)
    monkeypatch.setattr("stagesink.outbox.index._BUSY_SECONDS", 0.05)
    busy = Outbox(settings)
    other = sqlite3.connect(outbox.path / "index.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    entry = busy.keep(plan_tree("run", "b", checkpoint), SINK)  # whole on the disk: the index can be told later
    other.execute("COMMIT")
    other.close()
    assert [row.path for row in outbox.rows()] == ["a", "b"]
    assert outbox.entry(entry.id) == entry


def test_an_outbox_that_is_removed_under_us_is_made_anew(outbox: Outbox, checkpoint: Path) -> None:
    outbox.keep(plan_tree("run", "a", checkpoint), SINK)
    shutil.rmtree(outbox.path)
    assert outbox.rows() == []
    entry = outbox.keep(plan_tree("run", "b", checkpoint), SINK)
    assert outbox.entries() == [entry]


def test_what_is_said_of_an_entry_whose_outbox_was_removed_does_no_harm(outbox: Outbox, checkpoint: Path) -> None:
    entry = outbox.keep(plan_tree("run", "a", checkpoint), SINK)
    for what in (
        lambda: outbox.note_failed(entry.id, "it was busy"),
        lambda: outbox.note_landed(entry.id, []),
        lambda: outbox.landed(entry.id),
        lambda: outbox.remove(entry.id, for_good=True),
    ):
        shutil.rmtree(outbox.path)
        what()  # none of it ends an upload that has landed
    assert outbox.rows() == []


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_an_index_that_cannot_be_opened_is_an_error_of_the_outbox(settings: OutboxSettings, kind: str) -> None:
    path = Path(settings.path)
    path.mkdir(parents=True)
    if kind == "link":
        (path / "index.db").symlink_to(path / "elsewhere.db")
    else:
        (path / "index.db").mkdir()
    with pytest.raises(OutboxError, match="index"), contextlib.closing(Outbox(settings)) as outbox:
        outbox.rows()
    assert not (path / "elsewhere.db").exists()


def test_a_damaged_entry_is_left_alone_and_the_others_go_on(
    outbox: Outbox, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = outbox.keep(plan_tree("run", "bad", checkpoint), SINK)
    good = outbox.keep(plan_tree("run", "good", checkpoint), SINK)
    (bad.folder / "plan.json").write_bytes(b"{")
    assert outbox.entries() == [good]
    assert f"{bad.folder} is damaged" in caplog.text
    assert (bad.folder / "files").is_dir()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"000000"', '"../../../etc/passwd"'),
        ('"000000"', '"000000/../../x"'),
        ('"run_id":"run"', '"run_id":".."'),
        ('"path":"checkpoint"', '"path":"/etc"'),
        ('"checkpoint/model.bin"', '"../model.bin"'),
        ('"kind":"tree"', '"kind":"device"'),
        ('"format":"stagesink.outbox/1"', '"format":"stagesink.outbox/9"'),
    ],
)
def test_a_plan_that_somebody_forged_is_refused(outbox: Outbox, checkpoint: Path, old: str, new: str) -> None:
    entry = outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK)
    plan = entry.folder / "plan.json"
    text = plan.read_text()
    assert old in text
    plan.write_text(text.replace(old, new, 1))
    assert outbox.entry(entry.id) is None


def test_only_so_many_source_files_are_remembered_those_that_were_seen_last(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_REMEMBERED", 2)
    first, rewritten = Fingerprint(1, 10, 5), Fingerprint(1, 10, 6)
    for name in ("a", "b", "a", "c"):
        outbox._index.rewritten([(name, first)])
    assert outbox._index.rewritten([("b", rewritten)]) == set()  # forgotten
    assert outbox._index.rewritten([("c", rewritten)]) == {"c"}


def test_what_a_killed_process_left_is_no_entry_and_gc_removes_it(outbox: Outbox, reopened: Outbox) -> None:
    part = outbox.path / "entries" / ".20260101T000000-0123456789ab"
    (part / "files").mkdir(parents=True)
    (part / "files" / "000000").write_bytes(b"x" * 100)
    assert outbox.entries() == []
    assert reopened.gc() > 100
    assert not part.exists()


def test_gc_leaves_what_is_being_written(outbox: Outbox, reopened: Outbox, checkpoint: Path) -> None:
    seen: list[int] = []

    class Slow(MemorySource):
        def open(self):  # type: ignore[no-untyped-def]
            seen.append(reopened.gc())
            return super().open()

    item = PlannedObject(ArtifactKey("run", "note.txt"), Slow(b"hello"), 5)
    outbox.keep(Plan("run", "note.txt", "file", (item,)), SINK)
    assert seen == [0]
    assert kept_bytes(outbox) == {"note.txt": b"hello"}


# -- other users -------------------------------------------------------------------------------------------------------


def test_it_is_for_this_user_alone(outbox: Outbox, checkpoint: Path) -> None:
    os.umask(os.umask(0))
    outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK)
    assert os.stat(outbox.path).st_mode & 0o777 == 0o700
    for each in outbox.path.rglob("*"):
        assert os.lstat(each).st_mode & 0o077 == 0, each


def test_two_processes_may_make_it_at_once(settings: OutboxSettings) -> None:
    Path(settings.path).mkdir()
    (Path(settings.path) / ".gitignore").symlink_to("nowhere")  # not there when asked, and there when made
    Outbox(settings).close()


@pytest.mark.parametrize("packed", [False, True])
def test_a_symbolic_link_among_its_files_is_not_followed(
    outbox: Outbox, checkpoint: Path, tmp_path: Path, packed: bool
) -> None:
    (tmp_path / "secret").write_bytes(b"of this machine")
    plan = plan_tree("run", "checkpoint", checkpoint)
    if packed:
        plan = plan_packed_tree("run", "checkpoint.tar.gz", checkpoint, archive_format="tar.gz")
    entry = outbox.keep(plan, SINK)
    text = (entry.folder / "plan.json").read_text()
    for file in entry.files:
        place = Path(entry.place(file))
        place.unlink()
        place.symlink_to(tmp_path / "secret")
        true = json.dumps(file.fingerprint, separators=(",", ":"))
        text = text.replace(true, json.dumps(Fingerprint.of(os.stat(place)), separators=(",", ":")))
    (entry.folder / "plan.json").write_text(text)
    (forged,) = outbox.entries()
    for item in forged.plan().objects:
        with pytest.raises(SourceChanged), item.source.open() as stream:
            stream.read()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_plan_of_another_user_is_not_carried_out(outbox: Outbox, checkpoint: Path) -> None:
    entry = outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK)
    os.chown(entry.folder / "plan.json", 65534, 65534)
    assert outbox.entries() == []


def test_a_plan_that_is_a_link_is_not_carried_out(outbox: Outbox, checkpoint: Path, tmp_path: Path) -> None:
    entry = outbox.keep(plan_tree("run", "checkpoint", checkpoint), SINK)
    os.rename(entry.folder / "plan.json", tmp_path / "plan.json")
    (entry.folder / "plan.json").symlink_to(tmp_path / "plan.json")
    assert outbox.entries() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("part", [".", "entries", "claims"])
def test_a_folder_that_another_user_laid_out_is_refused(outbox: Outbox, part: str) -> None:
    os.chown(outbox.path / part, 65534, 65534)
    with pytest.raises(OutboxError, match="another user's"):
        outbox.rows()


@pytest.mark.parametrize("part", ["entries", "claims"])
def test_a_link_inside_it_is_refused_also_when_it_is_made_meanwhile(outbox: Outbox, tmp_path: Path, part: str) -> None:
    (tmp_path / "theirs").mkdir()
    (outbox.path / part).rmdir()
    (outbox.path / part).symlink_to(tmp_path / "theirs")
    with pytest.raises(OutboxError, match="is a link"):
        outbox.keep(Plan("run", "a", "file", ()), SINK)
    assert not any((tmp_path / "theirs").iterdir())


def test_one_that_was_open_to_all_is_closed(settings: OutboxSettings) -> None:
    os.makedirs(settings.path, 0o777)
    os.chmod(settings.path, 0o777)
    Outbox(settings).close()
    assert os.stat(settings.path).st_mode & 0o777 == 0o700


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "outbox").symlink_to(tmp_path / "theirs")
    with pytest.raises(OutboxError, match="is a link"):
        Outbox(OutboxSettings(path=str(tmp_path / "outbox")))
    assert not any((tmp_path / "theirs").iterdir())


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutboxError, match=r"cannot be used: .*\(STAGESINK_OUTBOX_PATH\)"):
        Outbox(OutboxSettings(path=str(tmp_path / "file" / "outbox")))


def test_the_address_it_keeps_has_no_secret(outbox: Outbox, checkpoint: Path) -> None:
    outbox.keep(plan_tree("run", "checkpoint", checkpoint), "mlflow+http://user:hunter2@host:5000?sig=abc")
    (row,) = outbox.rows()
    assert row.sink == "mlflow+http://host:5000"
    for each in outbox.path.rglob("*"):
        if each.is_file():
            assert b"hunter2" not in each.read_bytes()
