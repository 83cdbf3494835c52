"""Getting uploads back into a folder, whole and proven, and nowhere else."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from parts import QUICK, RUN, Recording, files_in, folder_of, one, plan

from stagesink.artifacts import ArtifactKey, MemorySource
from stagesink.errors import (
    ArtifactNotFound,
    RestoreError,
    RestoreFailed,
    SinkAuthError,
    SinkConflict,
    SinkQuotaError,
    TransferError,
    TransientSinkError,
    VerificationError,
)
from stagesink.manifest import Manifest, ManifestEntry
from stagesink.sinks import local as local_module
from stagesink.sinks.local import LocalSink
from stagesink.sinks.memory import MemorySink
from stagesink.testing import FaultySink, corrupts, fails
from stagesink.transfer import Transfer, list_committed, plan_packed_tree, restore, select
from stagesink.transfer.restore import check_inside

FILES = {"a.bin": b"a" * 10, "b.bin": b"b" * 20, "c/d.bin": b"d" * 3_000_000, "empty": b""}
LANDED = {f"tree/{name}": data for name, data in FILES.items()}


@pytest.fixture
def committed(memory: MemorySink) -> tuple[Manifest, ...]:
    Transfer(memory).run(plan(FILES))
    return list_committed(memory, RUN)


def failing(*args: Any) -> RestoreFailed:
    with pytest.raises(RestoreFailed) as caught:
        restore(*args)
    return caught.value


# -- what comes back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 4])
def test_what_comes_back_is_what_was_uploaded(
    memory: MemorySink, committed: tuple[Manifest, ...], tmp_path: Path, workers: int
) -> None:
    found = restore(memory, committed, tmp_path / "there", replace(QUICK, workers=workers))
    assert files_in(tmp_path / "there") == LANDED
    assert [(r.path, r.size, r.sha256, r.status) for r in found] == [
        (tmp_path / "there" / "tree" / entry.path, entry.size, entry.sha256, "restored") for entry in committed[0].files
    ]


def test_a_file_and_an_archive_come_back_under_their_own_names(memory: MemorySink, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", FILES)
    Transfer(memory).run(one(b"{}", "metrics.json"))
    Transfer(memory).run(plan_packed_tree(RUN, "best.tar.gz", folder, archive_format="tar.gz"))
    restore(memory, list_committed(memory, RUN), tmp_path / "there")
    assert set(files_in(tmp_path / "there")) == {"metrics.json", "best.tar.gz"}


def test_the_target_may_be_relative(
    memory: MemorySink, committed: tuple[Manifest, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    restore(memory, committed, "there")
    assert files_in(tmp_path / "there") == LANDED


@pytest.mark.parametrize("name", ["with space", "ünï", "a%20b", "file:x", "s3:x", "~", "-x", ".hidden"])
def test_the_target_may_have_any_name(
    memory: MemorySink, committed: tuple[Manifest, ...], tmp_path: Path, name: str
) -> None:
    restore(memory, committed, tmp_path / name)
    assert files_in(tmp_path / name) == LANDED
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_other_files_in_the_target_are_left_alone(
    memory: MemorySink, committed: tuple[Manifest, ...], tmp_path: Path
) -> None:
    target = folder_of(tmp_path / "there", {"tree/mine": b"mine", "notes": b"notes"})
    restore(memory, committed, target)
    assert files_in(target) == {**LANDED, "tree/mine": b"mine", "notes": b"notes"}


def test_what_is_there_already_is_not_fetched_again(
    memory: MemorySink, committed: tuple[Manifest, ...], tmp_path: Path
) -> None:
    restore(memory, committed, tmp_path / "there")
    (tmp_path / "there/tree/a.bin").unlink()
    (tmp_path / "there/tree/b.bin").write_bytes(b"?" * 20)
    sink = Recording(memory)
    found = restore(sink, committed, tmp_path / "there")
    assert sorted(sink.asked("open")) == ["tree/a.bin", "tree/b.bin"]
    assert [r.status for r in found] == ["restored", "restored", "unchanged", "unchanged"]
    assert files_in(tmp_path / "there") == LANDED


def test_nothing_to_restore_makes_no_folder(memory: MemorySink, tmp_path: Path) -> None:
    assert restore(memory, (), tmp_path / "there") == ()
    assert not (tmp_path / "there").exists()


def test_a_busy_store_is_asked_again(memory: MemorySink, committed: tuple[Manifest, ...], tmp_path: Path) -> None:
    sink = FaultySink(
        memory,
        fails("open", TransientSinkError("503"), first=3),
        fails("open", TransientSinkError("reset"), nth=4, after_bytes=5),
    )
    restore(sink, committed, tmp_path / "there", QUICK)
    assert files_in(tmp_path / "there") == LANDED


def test_bytes_damaged_once_on_the_way_are_fetched_again(
    memory: MemorySink, committed: tuple[Manifest, ...], tmp_path: Path
) -> None:
    restore(FaultySink(memory, corrupts("open", nth=1)), committed, tmp_path / "there", QUICK)
    assert files_in(tmp_path / "there") == LANDED


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"?" * 10, b"short", b"much longer than it should be"])
def test_an_object_altered_in_the_store_is_named_and_the_others_are_there(
    memory: MemorySink, committed: tuple[Manifest, ...], tmp_path: Path, data: bytes
) -> None:
    memory.put(ArtifactKey(RUN, "tree/a.bin"), MemorySource(data))
    error = failing(memory, committed, tmp_path / "there", QUICK)
    assert list(error.failures) == ["tree/a.bin"]
    assert isinstance(error.failures["tree/a.bin"], VerificationError)
    assert "tree/a.bin" in str(error)
    assert error.hint
    assert files_in(tmp_path / "there") == {name: data for name, data in LANDED.items() if name != "tree/a.bin"}


def test_an_altered_object_does_not_replace_the_file_that_is_there(
    memory: MemorySink, committed: tuple[Manifest, ...], tmp_path: Path
) -> None:
    target = folder_of(tmp_path / "there", {"tree/a.bin": b"older"})
    memory.put(ArtifactKey(RUN, "tree/a.bin"), MemorySource(b"?" * 10))
    failing(memory, committed, target, QUICK)
    assert files_in(target)["tree/a.bin"] == b"older"


def test_every_object_that_failed_is_reported_in_order(
    memory: MemorySink, committed: tuple[Manifest, ...], tmp_path: Path
) -> None:
    for name in ("empty", "b.bin", "a.bin"):
        memory.delete(ArtifactKey(RUN, f"tree/{name}"))
    error = failing(memory, committed, tmp_path / "there", QUICK)
    assert list(error.failures) == ["tree/a.bin", "tree/b.bin", "tree/empty"]
    assert {type(e) for e in error.failures.values()} == {ArtifactNotFound}
    assert files_in(tmp_path / "there") == {"tree/c/d.bin": FILES["c/d.bin"]}


def test_an_error_of_a_restore_survives_pickling(
    memory: MemorySink, committed: tuple[Manifest, ...], tmp_path: Path
) -> None:
    memory.delete(ArtifactKey(RUN, "tree/a.bin"))
    error = failing(memory, committed, tmp_path / "there", QUICK)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), list(again.failures)) == (str(error), list(error.failures))


def test_a_store_that_does_not_let_us_is_asked_once_for_each(
    memory: MemorySink, committed: tuple[Manifest, ...], tmp_path: Path
) -> None:
    sink = FaultySink(memory, fails("open", SinkAuthError("no")))
    failing(sink, committed, tmp_path / "there", QUICK)
    assert sink.calls["open"] == len(FILES)


def test_a_folder_where_a_file_should_land_is_an_error_and_the_others_are_there(
    memory: MemorySink, committed: tuple[Manifest, ...], tmp_path: Path
) -> None:
    (tmp_path / "there/tree/a.bin").mkdir(parents=True)
    error = failing(memory, committed, tmp_path / "there", QUICK)
    assert {path: type(e) for path, e in error.failures.items()} == {"tree/a.bin": SinkConflict}
    assert set(files_in(tmp_path / "there")) == LANDED.keys() - {"tree/a.bin"}


def test_a_file_where_a_folder_should_be_is_an_error_and_the_others_are_there(
    memory: MemorySink, committed: tuple[Manifest, ...], tmp_path: Path
) -> None:
    folder_of(tmp_path / "there", {"tree/c": b"in the way"})
    error = failing(memory, committed, tmp_path / "there", QUICK)
    assert {path: type(e) for path, e in error.failures.items()} == {"tree/c/d.bin": SinkConflict}
    assert files_in(tmp_path / "there")["tree/c"] == b"in the way"


def test_the_folder_itself_being_a_file_is_one_clear_sentence(
    memory: MemorySink, committed: tuple[Manifest, ...], tmp_path: Path
) -> None:
    (tmp_path / "there").write_bytes(b"a file")
    with pytest.raises(RestoreError, match="not a folder"):
        restore(memory, committed, tmp_path / "there")
    with pytest.raises(RestoreError, match="root of the file system"):
        restore(memory, committed, "/")


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "a\\b", "a\nb"], ids=["NUL", "too long", "backslash", "newline"])
def test_a_target_no_folder_can_have_is_one_clear_sentence(
    memory: MemorySink, committed: tuple[Manifest, ...], tmp_path: Path, name: str
) -> None:
    for target in (f"{tmp_path}/{name}", f"{tmp_path}/{name}/deeper"):
        if "\\" in name or "\n" in name:
            target = f"{tmp_path}/{name}"  # higher up they are harmless
        with pytest.raises((RestoreError, RestoreFailed)):
            restore(memory, committed, target, QUICK)
    assert list(tmp_path.iterdir()) == []


# -- nothing outside the target ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", ["tree", "tree/c"])
def test_a_link_that_leads_out_of_the_target_is_not_followed(
    memory: MemorySink, committed: tuple[Manifest, ...], tmp_path: Path, link: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    place = tmp_path / "there" / link
    place.parent.mkdir(parents=True)
    place.symlink_to(outside)
    with pytest.raises(RestoreError, match="symbolic link"):
        restore(memory, committed, tmp_path / "there")
    assert files_in(outside) == {}
    assert files_in(tmp_path / "there") == {}  # found before anything was fetched


def test_a_link_in_the_place_of_a_file_is_replaced_not_written_through(
    memory: MemorySink, committed: tuple[Manifest, ...], tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "there/tree").mkdir(parents=True)
    (tmp_path / "there/tree/a.bin").symlink_to(victim)
    restore(memory, committed, tmp_path / "there")
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "there/tree/a.bin").is_symlink()
    assert files_in(tmp_path / "there") == LANDED


def test_a_link_to_the_very_bytes_is_replaced_by_a_file(
    memory: MemorySink, committed: tuple[Manifest, ...], tmp_path: Path
) -> None:
    elsewhere = folder_of(tmp_path / "elsewhere", {"a.bin": FILES["a.bin"]}) / "a.bin"
    place = tmp_path / "there/tree/a.bin"
    place.parent.mkdir(parents=True)
    place.symlink_to(elsewhere)
    found = {r.path: r.status for r in restore(memory, committed, tmp_path / "there")}
    assert found[place] == "restored"
    assert not place.is_symlink()
    assert place.read_bytes() == FILES["a.bin"]


def test_a_link_made_while_the_restore_runs_is_not_followed_either(memory: MemorySink, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    trees = {"one": b"1", "two": b"2"}
    for name, data in trees.items():
        Transfer(memory).run(plan({"x": data}, name))

    class Linking(Recording):
        def open(self, key: ArtifactKey) -> Any:
            other = next(name for name in trees if not key.path.startswith(name))
            if not self.asked("open"):
                (tmp_path / "there" / other).symlink_to(outside)
            return super().open(key)

    (tmp_path / "there").mkdir()
    manifests = list_committed(memory, RUN)
    error = failing(Linking(memory), manifests, tmp_path / "there", replace(QUICK, workers=1))
    assert [type(e) for e in error.failures.values()] == [RestoreError]
    assert files_in(outside) == {}


@pytest.mark.parametrize("path", ["", "a", "a/b", "inside/b", "a/../b"])
def test_what_lies_in_a_folder_is_inside(tmp_path: Path, path: str) -> None:
    (tmp_path / "there/c").mkdir(parents=True)
    (tmp_path / "there/inside").symlink_to("c")
    check_inside(tmp_path / "there", tmp_path / "there" / path)


@pytest.mark.parametrize("path", ["..", "../therefore", "out", "out/deeper", "dangling"])
def test_what_leads_out_of_a_folder_is_not_inside(tmp_path: Path, path: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/out").symlink_to("..")
    (tmp_path / "there/dangling").symlink_to("../nowhere")
    with pytest.raises(RestoreError, match="outside"):
        check_inside(tmp_path / "there", tmp_path / "there" / path)


def test_a_link_that_stays_inside_is_followed(
    memory: MemorySink, committed: tuple[Manifest, ...], tmp_path: Path
) -> None:
    (tmp_path / "there/elsewhere").mkdir(parents=True)
    (tmp_path / "there/tree").symlink_to("elsewhere")
    restore(memory, committed, tmp_path / "there")
    assert set(files_in(tmp_path / "there/elsewhere")) == FILES.keys()


def test_the_target_itself_may_be_a_link(memory: MemorySink, committed: tuple[Manifest, ...], tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "there").symlink_to("disk")
    restore(memory, committed, tmp_path / "there")
    assert files_in(tmp_path / "disk") == LANDED


@pytest.mark.parametrize("path", ["../victim", "/victim", "a/../../victim", "a\\..\\victim"])
def test_names_that_leave_the_target_are_refused_whoever_made_the_manifest(
    memory: MemorySink, tmp_path: Path, path: str
) -> None:
    entry = ManifestEntry(path, 1, "00" * 32)  # made by hand: what is read from a store was checked before
    with pytest.raises(ValueError, match="Artifact path"):
        restore(memory, [Manifest(RUN, "tree", "tree", (entry,))], tmp_path / "there")
    assert list(tmp_path.iterdir()) == []


# -- landing -----------------------------------------------------------------------------------------------------------


def test_a_file_lands_by_rename_so_that_nobody_sees_a_part(
    memory: MemorySink, committed: tuple[Manifest, ...], tmp_path: Path
) -> None:
    target = folder_of(tmp_path / "there", {"tree/a.bin": b"older"})
    before = (target / "tree/a.bin").stat().st_ino
    with (target / "tree/a.bin").open("rb") as reader:
        restore(memory, committed, target)
        assert reader.read() == b"older"  # who had it open keeps the old one
    assert (target / "tree/a.bin").stat().st_ino != before


def test_failures_leave_no_temporary_file(memory: MemorySink, committed: tuple[Manifest, ...], tmp_path: Path) -> None:
    failing(FaultySink(memory, corrupts("open")), committed, tmp_path / "there", QUICK)
    assert set(files_in(tmp_path / "there")) <= {"tree/empty"}


_INTERRUPTED = """
    import sys
    from stagesink.manifest import Manifest, ManifestEntry
    from stagesink.testing import FaultySink, GeneratedSource, slow
    from stagesink.sinks.memory import MemorySink
    from stagesink.transfer import restore, TransferOptions

    class Endless(MemorySink):
        def open(self, key):
            return GeneratedSource(1 << 30).open()

    files = tuple(ManifestEntry(str(n), 1 << 30, "00" * 32) for n in range(int(sys.argv[3])))
    started = []
    def progress(now):
        if now.bytes_done and not started:
            started.append(1)
            print("moving", flush=True)
    sink = FaultySink(Endless(), slow("open", per_chunk=0.02))
    try:
        restore(
            sink, [Manifest("run", "tree", "tree", files)], sys.argv[1],
            TransferOptions(workers=int(sys.argv[2])), progress=progress,
        )
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.exit(130)
"""


@pytest.mark.parametrize(("workers", "count"), [(4, 6), (1, 2)])
def test_ctrl_c_ends_a_restore_and_leaves_nothing_half_there(tmp_path: Path, workers: int, count: int) -> None:
    script, target = tmp_path / "restore.py", tmp_path / "there"
    script.write_text(textwrap.dedent(_INTERRUPTED))
    process = subprocess.Popen(
        [sys.executable, str(script), str(target), str(workers), str(count)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "moving\n"
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (rest, process.returncode) == ("interrupted\n", 130)
    assert files_in(target) == {}


# -- a disk that is full, and one of its own ---------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if made.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_fails_what_has_no_room_and_leaves_nothing_half_there(
    memory: MemorySink, committed: tuple[Manifest, ...], small_disk: Path
) -> None:
    # One at a time: others would find the disk full while the large one is being written.
    error = failing(memory, committed, small_disk / "there", replace(QUICK, workers=1))
    assert {path: type(e) for path, e in error.failures.items()} == {"tree/c/d.bin": SinkQuotaError}
    assert files_in(small_disk) == {f"there/{name}": data for name, data in LANDED.items() if len(data) < 1000}


def test_an_upload_to_a_full_disk_fails_what_has_no_room_and_commits_nothing(small_disk: Path) -> None:
    sink = LocalSink(small_disk)
    with pytest.raises(TransferError) as caught:
        Transfer(sink, replace(QUICK, workers=1)).run(plan(FILES))
    assert {path: type(e) for path, e in caught.value.failures.items()} == {"tree/c/d.bin": SinkQuotaError}
    assert set(files_in(small_disk)) == {"run/tree/a.bin", "run/tree/b.bin", "run/tree/empty"}


def test_many_small_files_are_synced_on_the_disk_they_lie_on(
    memory: MemorySink, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(local_module, "_sync_file_system", lambda path: synced.append(os.stat(path).st_dev))
    Transfer(memory).run(plan({f"{n}": b"x" for n in range(200)}))
    restore(memory, list_committed(memory, RUN), small_disk)  # the folder's parent lies on another disk
    assert synced == [small_disk.stat().st_dev]


def test_a_disk_that_refuses_at_the_end_is_a_failed_restore(
    memory: MemorySink, committed: tuple[Manifest, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local_module, "settle", refuse)
    (tmp_path / "there/tree/c").mkdir(parents=True)
    memory.delete(ArtifactKey(RUN, "tree/b.bin"))
    error = failing(memory, committed, tmp_path / "there", QUICK)
    assert {type(e) for e in error.failures.values()} == {ArtifactNotFound, SinkQuotaError}


# -- choosing ----------------------------------------------------------------------------------------------------------


def manifest(path: str, *files: str) -> Manifest:
    return Manifest(RUN, path, "tree", tuple(ManifestEntry(file, 1, "00" * 32) for file in files))


ALL = (manifest("a", "x.bin", "logs/y.txt"), manifest("a/b", "z.bin"), manifest("ab", "x.bin"))


@pytest.mark.parametrize(
    ("path", "found"), [(None, ["a", "a/b", "ab"]), ("a", ["a", "a/b"]), ("a/", ["a", "a/b"]), ("ab", ["ab"])]
)
def test_a_path_chooses_what_lies_at_it_or_under_it(path: str | None, found: list[str]) -> None:
    assert [chosen.path for chosen in select(ALL, path)] == found


@pytest.mark.parametrize(
    ("path", "files"),
    [
        ("ab/x.bin", ["x.bin"]),
        ("a/logs", ["logs/y.txt"]),
        ("a/logs/", ["logs/y.txt"]),
        ("a/logs/y.txt", ["logs/y.txt"]),
    ],
)
def test_a_path_inside_a_tree_chooses_its_files_there(path: str, files: list[str]) -> None:
    (chosen,) = select(ALL, path)
    assert chosen.path == path.partition("/")[0]
    assert [file.path for file in chosen.files] == files


def test_an_archive_and_a_file_have_nothing_inside() -> None:
    entry = ManifestEntry("x.bin", 1, "00" * 32)
    packed = Manifest(RUN, "best.tar.gz", "archive", (entry,), archive=ManifestEntry("best.tar.gz", 1, "00" * 32))
    single = Manifest(RUN, "one", "file", (entry,))
    for path in ("best.tar.gz/x.bin", "one/x.bin"):
        with pytest.raises(ArtifactNotFound):
            select((packed, single), path)


def test_patterns_choose_files_within(memory: MemorySink) -> None:
    assert [(m.path, [f.path for f in m.files]) for m in select(ALL, None, include=["*.bin"], exclude=["b"])] == [
        ("a", ["x.bin"]),
        ("ab", ["x.bin"]),
    ]


@pytest.mark.parametrize(
    "wanted",
    [
        {"path": "c"},
        {"path": None, "include": ["*.onnx"]},
        {"path": "x.bin"},
        {"path": "a/nope"},
        {"path": "a/log"},
        {"path": "a/logs", "include": ["x.bin"]},
    ],
)
def test_choosing_nothing_is_an_error_that_says_what_to_do(wanted: Any) -> None:
    with pytest.raises(ArtifactNotFound, match="stagesink ls"):
        select(ALL, **wanted)


def test_an_empty_run_has_nothing_to_choose_and_that_is_no_error() -> None:
    assert select((), None) == ()
