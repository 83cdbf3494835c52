"""A folder on the outbox's own disk takes what was kept as it is: nothing is copied."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from outbox_store import Store
from outside import files_in, small_disk

from stagesink.errors import SourceUnreadable, TransferError
from stagesink.outbox.store import Outbox
from stagesink.outbox.sync import Outcome, Sync
from stagesink.sinks import open_sink
from stagesink.sinks.local import LocalSink
from stagesink.transfer import TransferOptions, plan_tree

OPTIONS = TransferOptions(attempts=1, reads=1)


def synced(outbox: Outbox) -> Outcome:
    with Sync(outbox, open_sink, OPTIONS) as sync:
        (outcome,) = sync.run()
    return outcome


def kept_inodes(outbox: Outbox) -> set[int]:
    (entry,) = (outbox.entry(row.id) for row in outbox.rows())
    assert entry is not None
    return {os.stat(entry.place(file)).st_ino for file in entry.files}


def landed(store: Store) -> list[Path]:
    return [each for each in (store.folder / "run" / "checkpoint").rglob("*") if each.is_file()]


def test_the_very_files_land_readable_for_whom_the_folder_says(outbox: Outbox, store: Store, checkpoint: Path) -> None:
    outbox.keep(plan_tree("run", "checkpoint", checkpoint), store.uri)
    inodes = kept_inodes(outbox)
    before = os.umask(0o027)
    try:
        assert synced(outbox).status == "landed"
    finally:
        os.umask(before)
    assert {each.stat().st_ino for each in landed(store)} == inodes
    assert {stat.S_IMODE(each.stat().st_mode) for each in landed(store)} == {0o640}
    assert {each.stat().st_nlink for each in landed(store)} == {1}
    assert {each.relative_to(store.folder / "run" / "checkpoint"): each.read_bytes() for each in landed(store)} == {
        each.relative_to(checkpoint): each.read_bytes() for each in checkpoint.rglob("*") if each.is_file()
    }
    assert not any(each.name.startswith(".stagesink-") for each in store.folder.rglob("*"))


def test_what_its_owner_can_still_write_into_is_copied(outbox: Outbox, store: Store, checkpoint: Path) -> None:
    model = checkpoint / "model.bin"
    before = model.stat().st_mode
    outbox.keep(plan_tree("run", "checkpoint", checkpoint), store.uri, quick=True)
    assert model.stat().st_ino in kept_inodes(outbox)
    assert synced(outbox).status == "landed"
    copy = (store.folder / "run" / "checkpoint" / "model.bin").stat()
    assert copy.st_ino != model.stat().st_ino
    assert (model.stat().st_mode, model.stat().st_nlink) == (before, 1)
    assert len({each.stat().st_ino for each in landed(store)}) == 3


def test_what_its_owner_let_go_of_may_be_open_still_and_is_copied(
    outbox: Outbox, store: Store, checkpoint: Path
) -> None:
    with (checkpoint / "model.bin").open("r+b") as writer:
        outbox.keep(plan_tree("run", "checkpoint", checkpoint), store.uri, quick=True)
        (checkpoint / "model.bin").unlink()
        inode = os.fstat(writer.fileno()).st_ino
        assert inode in kept_inodes(outbox)
        assert synced(outbox).status == "landed"
        target = store.folder / "run" / "checkpoint" / "model.bin"
        assert target.stat().st_ino != inode
        writer.write(b"CHANGED")
        writer.flush()
        assert target.read_bytes() == b"m" * (2 << 20)


def test_a_file_system_that_does_not_count_names_gets_a_copy(
    outbox: Outbox, store: Store, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox.keep(plan_tree("run", "checkpoint", checkpoint), store.uri)
    lstat = os.lstat

    def with_one_name(path: str) -> os.stat_result:
        found = lstat(path)
        return os.stat_result((*found[:3], 1, *found[4:10]))

    with monkeypatch.context() as patch:
        patch.setattr("stagesink.outbox.entry.os.lstat", with_one_name)
        (entry,) = (outbox.entry(row.id) for row in outbox.rows())
        assert entry is not None
        given = store.folder.parent / "given"
        assert not any(entry.source(file).link_to(str(given)) for file in entry.files)
        assert not given.exists()


def test_a_folder_with_a_group_of_its_own_gets_a_copy_that_has_it(
    outbox: Outbox, store: Store, checkpoint: Path
) -> None:
    folder = store.folder / "run" / "checkpoint"
    folder.mkdir(parents=True)
    try:
        os.chown(folder, -1, 2000)
    except PermissionError:
        pytest.skip("only root gives a folder away")
    folder.chmod(0o2775)
    outbox.keep(plan_tree("run", "checkpoint", checkpoint), store.uri)
    assert synced(outbox).status == "landed"
    assert {each.stat().st_gid for each in landed(store)} == {2000}
    assert not any(each.name.startswith(".stagesink-") for each in folder.rglob("*"))


def test_one_that_does_not_land_stays_its_own_users_alone(outbox: Outbox, store: Store, checkpoint: Path) -> None:
    outbox.keep(plan_tree("run", "checkpoint", checkpoint), store.uri)
    (store.folder / "run" / "checkpoint" / "model.bin").mkdir(parents=True)
    assert synced(outbox).status == "failed"
    (entry,) = (outbox.entry(row.id) for row in outbox.rows())
    assert entry is not None
    (place,) = (Path(entry.place(file)) for file in entry.files if file.path.endswith("model.bin"))
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert place.stat().st_nlink == 1
    assert not any(each.name.startswith(".stagesink-") for each in store.folder.rglob("*"))


def test_another_disk_gets_a_copy(outbox: Outbox, tmp_path: Path, checkpoint: Path) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        outbox.keep(plan_tree("run", "checkpoint", checkpoint), f"file:{disk}")
        assert synced(outbox).status == "landed"
        assert (disk / "run" / "checkpoint" / "model.bin").read_bytes() == (checkpoint / "model.bin").read_bytes()


def test_one_that_was_damaged_here_is_not_let_in(outbox: Outbox, store: Store, checkpoint: Path) -> None:
    outbox.keep(plan_tree("run", "checkpoint", checkpoint), store.uri)
    (entry,) = (outbox.entry(row.id) for row in outbox.rows())
    assert entry is not None
    (kept,) = (file for file in entry.files if file.path.endswith("model.bin"))
    place = Path(entry.place(kept))
    times = place.stat()
    place.write_bytes(bytes(reversed(place.read_bytes()[:-1])) + b"!")
    os.utime(place, ns=(times.st_atime_ns, times.st_mtime_ns))
    outcome = synced(outbox)
    assert isinstance(outcome.error, TransferError)
    assert [type(error) for error in outcome.error.failures.values()] == [SourceUnreadable]
    assert not any(path.endswith(("model.bin", ".tmp")) for path in files_in(store.folder))


def test_killed_between_landing_and_letting_go_it_lands_again(outbox: Outbox, store: Store, checkpoint: Path) -> None:
    outbox.keep(plan_tree("run", "checkpoint", checkpoint), store.uri)
    (entry,) = (outbox.entry(row.id) for row in outbox.rows())
    assert entry is not None
    for item in entry.plan().objects:  # as the engine does, which then dies
        LocalSink(store.folder).put(item.key, item.source)
    assert synced(outbox).status == "landed"
    assert {each.stat().st_nlink for each in landed(store)} == {1}
    assert store.files() == {
        f"checkpoint/{each.relative_to(checkpoint)}": each.read_bytes()
        for each in checkpoint.rglob("*")
        if each.is_file()
    }


def test_an_older_object_is_replaced_and_no_other_name_is_left(outbox: Outbox, store: Store, checkpoint: Path) -> None:
    outbox.keep(plan_tree("run", "checkpoint", checkpoint), store.uri)
    inodes = kept_inodes(outbox)
    target = store.folder / "run" / "checkpoint" / "model.bin"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"an older one")
    assert synced(outbox).status == "landed"
    assert target.stat().st_ino in inodes
    assert sorted(os.listdir(target.parent)) == ["empty", "model.bin", "sub"]


def test_what_a_killed_writer_left_of_it_is_swept_and_the_bytes_are_not(
    outbox: Outbox, store: Store, checkpoint: Path
) -> None:
    outbox.keep(plan_tree("run", "checkpoint", checkpoint), store.uri)
    (entry,) = (outbox.entry(row.id) for row in outbox.rows())
    assert entry is not None
    folder = store.folder / "run" / "checkpoint"
    folder.mkdir(parents=True)
    os.link(entry.place(entry.files[0]), folder / ".stagesink-0123456789abcdef.tmp")  # killed before the rename
    assert synced(outbox).status == "landed"
    assert sorted(os.listdir(folder)) == ["empty", "model.bin", "sub"]
    assert (folder / "model.bin").read_bytes() == (checkpoint / "model.bin").read_bytes()
