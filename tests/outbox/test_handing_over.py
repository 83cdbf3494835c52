"""A folder on the outbox's own disk takes what was kept as it is: nothing is copied."""

from __future__ import annotations

import os
import stat
from pathlib import Path

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
