"""What the file: sink promises beyond the contract that the conformance suite checks."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
from outside import NOBODY, files_in, python, read_only_disk, running, said, small_disk, tell

from stagesink.artifacts import ArtifactKey, FileSource, MemorySource
from stagesink.errors import (
    ArtifactNotFound,
    ConfigError,
    SinkAuthError,
    SinkConflict,
    SinkError,
    SinkQuotaError,
    SourceNotFound,
    SourceUnreadable,
    TransientSinkError,
)
from stagesink.sinks import local, open_sink
from stagesink.sinks.local import LocalSink
from stagesink.sinks.protocol import BatchingSink
from stagesink.testing import GeneratedSource
from stagesink.transfer import Transfer, plan_tree

KEY = ArtifactKey("run", "folder/object.bin")


def key(path: str) -> ArtifactKey:
    return ArtifactKey("run", path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def sink(root: Path) -> LocalSink:
    return LocalSink(root)


# -- the order in which things reach the disk --------------------------------------------------------------------------


class Calls:
    """Every fsync and rename, in order: ("fsync", inode) and ("replace", from, to)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[object, ...]] = []
        fsync, replace, sync = os.fsync, os.replace, local._sync_file_system

        def recorded_fsync(fd: int) -> None:
            fsync(fd)
            self.made.append(("fsync", os.fstat(fd).st_ino))

        def recorded_replace(old: str, new: str) -> None:
            replace(old, new)
            self.made.append(("replace", str(old), str(new)))

        def recorded_sync(path: str) -> None:
            sync(path)
            self.made.append(("sync",))

        monkeypatch.setattr(os, "fsync", recorded_fsync)
        monkeypatch.setattr(os, "replace", recorded_replace)
        monkeypatch.setattr(local, "_sync_file_system", recorded_sync)

    def take(self) -> list[tuple[object, ...]]:
        made, self.made = self.made, []
        return made

    @staticmethod
    def fsync_of(path: Path) -> tuple[object, ...]:
        return ("fsync", path.stat().st_ino)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def test_bytes_are_on_the_disk_before_the_rename_and_the_rename_after_it(
    sink: LocalSink, root: Path, calls: Calls
) -> None:
    sink.put(key("folder/first"), MemorySource(b"makes the folder"))
    calls.take()
    sink.put(KEY, MemorySource(b"x"))
    file = root / "run/folder/object.bin"
    first, (name, temp, target), last = calls.take()
    assert first == calls.fsync_of(file)  # a rename keeps the inode
    assert (name, target) == ("replace", str(file))
    assert last == calls.fsync_of(file.parent)
    assert Path(str(temp)).parent == file.parent


def test_a_new_folder_is_on_the_disk_before_what_lies_in_it(sink: LocalSink, root: Path, calls: Calls) -> None:
    sink.put(KEY, MemorySource(b"x"))
    made = calls.take()
    before = made[: next(at for at, call in enumerate(made) if call[0] == "replace")]
    for folder in (root.parent, root, root / "run"):
        assert calls.fsync_of(folder) in before


def test_without_fsync_nothing_waits_for_the_disk(root: Path, calls: Calls) -> None:
    sink = LocalSink(root, fsync=False)
    sink.put(KEY, MemorySource(b"x"))
    with sink.batch() as batch:
        batch.put(key("other"), MemorySource(b"x"))
    sink.delete(KEY)
    assert [call[0] for call in calls.take()] == ["replace", "replace"]


def test_a_deletion_is_on_the_disk_before_delete_returns(sink: LocalSink, root: Path, calls: Calls) -> None:
    sink.put(key("checkpoint.manifest.json"), MemorySource(b"x"))
    sink.put(key("metrics.json"), MemorySource(b"x"))
    calls.take()
    sink.delete(key("checkpoint.manifest.json"))
    assert calls.take() == [calls.fsync_of(root / "run")]


def test_a_batch_syncs_its_small_new_objects_at_its_end(sink: LocalSink, root: Path, calls: Calls) -> None:
    sink.put(key("folder/first"), MemorySource(b"makes the folder"))
    calls.take()
    with sink.batch() as batch:
        for name in ("a", "b", "c"):
            batch.put(key(f"folder/{name}"), MemorySource(b"x"))
            assert sink.stat(key(f"folder/{name}")) is not None  # visible at once
        assert {call[0] for call in calls.take()} == {"replace"}
    made = calls.take()
    for name in ("folder/a", "folder/b", "folder/c", "folder"):
        assert calls.fsync_of(root / "run" / name) in made
    assert made[-1] == calls.fsync_of(root / "run/folder")


def test_a_large_batch_syncs_the_file_system_once(sink: LocalSink, calls: Calls) -> None:
    with sink.batch() as batch:
        for number in range(100):
            batch.put(key(f"folder/{number}"), MemorySource(b"x"))
        calls.take()
    assert calls.take() == [("sync",)]


@pytest.mark.parametrize("data", [b"new", b""])
def test_a_batch_syncs_what_replaces_an_object_before_it_does_so(
    sink: LocalSink, root: Path, calls: Calls, data: bytes
) -> None:
    sink.put(KEY, MemorySource(b"precious"))
    calls.take()
    with sink.batch() as batch:
        batch.put(KEY, MemorySource(data))
        file = root / "run/folder/object.bin"
        made = calls.take()
        assert made[0] == calls.fsync_of(file)
        assert made[1][0] == "replace"
        assert made[2] == calls.fsync_of(file.parent)


def test_a_batch_syncs_a_large_object_at_once(sink: LocalSink, root: Path, calls: Calls) -> None:
    with sink.batch() as batch:
        batch.put(KEY, GeneratedSource(5 << 20))
        assert calls.fsync_of(root / "run/folder/object.bin") in calls.take()


def test_an_object_that_was_deleted_before_its_batch_ended_is_no_failure(sink: LocalSink) -> None:
    with sink.batch() as batch:
        batch.put(KEY, MemorySource(b"x"))
        batch.put(key("other"), MemorySource(b"x"))
        sink.delete(KEY)
    assert [stored.key.path for stored in sink.list("run")] == ["other"]


def test_a_manifest_is_renamed_when_all_it_names_is_on_the_disk(
    sink: LocalSink, root: Path, tmp_path: Path, calls: Calls
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "checkpoint" / name).mkdir(parents=True)
        (tmp_path / "checkpoint" / name / "weights").write_bytes(name.encode())
    Transfer(sink).run(plan_tree("run", "checkpoint", tmp_path / "checkpoint"))
    made = calls.take()
    (commit,) = [at for at, call in enumerate(made) if str(call[-1]).endswith("checkpoint.manifest.json")]
    for name in ("a", "b", "c"):
        folder = root / "run/checkpoint" / name
        assert made.index(calls.fsync_of(folder / "weights")) < commit
        assert calls.fsync_of(folder) in made[:commit]
    assert made[-1] == calls.fsync_of(root / "run")


def test_the_sink_says_that_it_can_batch(sink: LocalSink) -> None:
    assert isinstance(sink, BatchingSink)
    with sink.batch() as batch:
        assert batch.uri == sink.uri


def test_a_failure_in_a_batch_passes_through(sink: LocalSink, root: Path) -> None:
    def put_two() -> None:
        with sink.batch() as batch:
            batch.put(KEY, MemorySource(b"x"))
            batch.put(key("other"), FileSource(root / "nothing"))

    with pytest.raises(SourceNotFound):
        put_two()


# -- leftovers ---------------------------------------------------------------------------------------------------------

WRITER = """
    import sys
    from stagesink.artifacts import ArtifactKey, MemorySource
    from stagesink.sinks.local import LocalSink

    def pause(_):
        print("half way", flush=True)
        sys.stdin.readline()

    source = MemorySource(b"written by another process")
    LocalSink(sys.argv[1]).put(ArtifactKey("run", "folder/object.bin"), source, on_bytes=pause)
    print("done", flush=True)
"""


def test_what_a_killed_process_left_is_never_seen_and_swept_by_the_next_writer(root: Path) -> None:
    with running(WRITER, root) as writer:
        assert said(writer) == "half way"
        writer.kill()
        writer.wait()
    (left,) = files_in(root)
    assert left.startswith("run/folder/")
    sink = LocalSink(root)
    assert list(sink.list("run")) == []
    assert list(sink.list("run", "folder")) == []
    assert sink.stat(KEY) is None
    with pytest.raises(ArtifactNotFound):
        sink.open(KEY)

    sink.put(key("elsewhere/x"), MemorySource(b"x"))
    assert left in files_in(root)
    sink.put(key("folder/x"), MemorySource(b"x"))
    assert set(files_in(root)) == {"run/elsewhere/x", "run/folder/x"}


def test_what_a_living_process_is_writing_is_not_swept(root: Path) -> None:
    with running(WRITER, root) as writer:
        assert said(writer) == "half way"
        sink = LocalSink(root)
        sink.put(key("folder/x"), MemorySource(b"x"))
        assert len(files_in(root)) == 2
        assert [stored.key.path for stored in sink.list("run")] == ["folder/x"]
        tell(writer)
        assert said(writer) == "done"
    assert files_in(root) == {"run/folder/object.bin": b"written by another process", "run/folder/x": b"x"}


def test_a_copy_from_a_pickle_sweeps_for_itself(sink: LocalSink, root: Path) -> None:
    sink.put(KEY, MemorySource(b"x"))
    left = root / "run/folder/.stagesink-0123456789abcdef.tmp"
    left.write_bytes(b"half")
    copy = pickle.loads(pickle.dumps(sink))
    copy.put(KEY, MemorySource(b"y"))
    assert not left.exists()


def test_a_pipe_or_a_link_of_a_leftovers_name_stays_and_holds_nobody_up(sink: LocalSink, root: Path) -> None:
    folder = root / "run/folder"
    folder.mkdir(parents=True)
    os.mkfifo(folder / ".stagesink-1.tmp")
    (root / "target").write_bytes(b"mine")
    (folder / ".stagesink-2.tmp").symlink_to(root / "target")
    sink.put(KEY, MemorySource(b"x"))
    assert {path.name for path in folder.iterdir()} == {"object.bin", ".stagesink-1.tmp", ".stagesink-2.tmp"}
    assert (root / "target").read_bytes() == b"mine"


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_written_and_never_swept(
    sink: LocalSink, root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    (root / "run/folder").mkdir(parents=True)
    (root / "run/folder/.stagesink-1.tmp").write_bytes(b"half")
    sink.put(KEY, MemorySource(b"x"))
    assert files_in(root) == {"run/folder/object.bin": b"x", "run/folder/.stagesink-1.tmp": b"half"}


def test_a_lock_that_fails_otherwise_is_a_typed_error_and_leaves_nothing(
    sink: LocalSink, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(SinkError):
        sink.put(KEY, MemorySource(b"x"))
    assert files_in(root) == {}


def test_what_only_looks_like_a_leftover_stays(sink: LocalSink, root: Path) -> None:
    (root / "run/folder").mkdir(parents=True)
    for name in (".stagesink-notes", "data.tmp", "x.stagesink-1.tmp"):
        (root / "run/folder" / name).write_bytes(b"mine")
    sink.put(KEY, MemorySource(b"x"))
    assert len(files_in(root)) == 4


@pytest.mark.parametrize("path", [".stagesink-1.tmp", "a/.stagesink-1.tmp", ".stagesink-1.tmp/a"])
def test_names_of_temporary_files_are_refused(sink: LocalSink, root: Path, path: str) -> None:
    for operation in (sink.stat, sink.open, sink.delete, lambda key: sink.put(key, MemorySource(b"x"))):
        with pytest.raises(SinkError, match=r"temporary files\. Rename"):
            operation(key(path))
    assert files_in(root) == {}


@pytest.mark.parametrize("fsync", [True, False])
def test_a_put_that_failed_leaves_no_folder_in_the_way(root: Path, fsync: bool) -> None:
    sink = LocalSink(root, fsync=fsync)
    source = GeneratedSource(1000, fails_after=10, error=SourceUnreadable("The disk gave up."))
    with pytest.raises(SourceUnreadable):
        sink.put(key("checkpoint/a/b"), source)
    sink.put(key("checkpoint"), MemorySource(b"a file now"))
    assert files_in(root) == {"run/checkpoint": b"a file now"}


# -- many at once ------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fsync", [True, False])
def test_deleting_and_putting_in_one_folder_at_once(root: Path, fsync: bool) -> None:
    stop = threading.Event()

    def delete(name: str) -> None:
        sink = LocalSink(root, fsync=fsync)
        while not stop.is_set():
            sink.delete(key(f"a/b/{name}"))

    def put(name: str) -> None:
        sink = LocalSink(root, fsync=fsync)
        for _ in range(300):
            sink.put(key(f"a/b/{name}"), MemorySource(name.encode()))

    with ThreadPoolExecutor(4) as pool:
        deleters = [pool.submit(delete, name) for name in ("x", "y")]
        try:
            for writer in [pool.submit(put, name) for name in ("x", "y")]:
                writer.result()
        finally:
            stop.set()
        for deleter in deleters:
            deleter.result()
    assert files_in(root).items() <= {"run/a/b/x": b"x", "run/a/b/y": b"y"}.items()


def test_of_two_processes_that_put_one_key_one_whole_object_wins(sink: LocalSink, root: Path) -> None:
    program = """
        import sys
        from stagesink.artifacts import ArtifactKey, MemorySource
        from stagesink.sinks.local import LocalSink
        sink, letter = LocalSink(sys.argv[1], fsync=False), sys.argv[2].encode()
        print("ready", flush=True)
        sys.stdin.readline()
        for size in range(100_000, 100_300):
            sink.put(ArtifactKey("run", "folder/object.bin"), MemorySource(letter * size))
        print("done", flush=True)
    """
    with running(program, root, "a") as one, running(program, root, "b") as other:
        for writer in (one, other):
            assert said(writer) == "ready"
        for writer in (one, other):
            tell(writer)
        while one.poll() is None or other.poll() is None:
            if sink.stat(KEY) is not None:
                with sink.open(KEY) as stream:
                    data = b"".join(iter(lambda: stream.read(1 << 20), b""))
                assert len(set(data)) == 1
                assert 100_000 <= len(data) < 100_300
        assert said(one) == said(other) == "done"
    (last,) = files_in(root).values()
    assert last in (b"a" * 100_299, b"b" * 100_299)


def test_a_forked_child_writes_into_a_folder_its_parent_has_used(root: Path) -> None:
    program = """
        import os, sys
        from stagesink.artifacts import ArtifactKey, MemorySource
        from stagesink.sinks.local import LocalSink
        sink = LocalSink(sys.argv[1])
        sink.put(ArtifactKey("run", "parent"), MemorySource(b"parent"))
        child = os.fork()
        if child == 0:
            sink.put(ArtifactKey("run", "child"), MemorySource(b"child"))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    """
    python(program, root)
    assert files_in(root) == {"run/parent": b"parent", "run/child": b"child"}


# -- what stands in the way --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("there", "path"), [("a", "a/b"), ("a", "a/b/c"), ("a/b", "a"), ("a/b/c", "a/b")])
def test_a_file_and_a_folder_of_one_name_are_a_conflict(sink: LocalSink, root: Path, there: str, path: str) -> None:
    sink.put(key(there), MemorySource(b"first"))
    with pytest.raises(SinkConflict, match=r"Remove .*, or choose another artifact path\.$"):
        sink.put(key(path), MemorySource(b"second"))
    assert files_in(root) == {f"run/{there}": b"first"}
    assert sink.stat(key(path)) is None
    sink.delete(key(path))
    assert files_in(root) == {f"run/{there}": b"first"}


def test_a_root_that_is_a_file_is_a_conflict(root: Path) -> None:
    root.write_bytes(b"mine")
    with pytest.raises(SinkConflict):
        LocalSink(root).put(KEY, MemorySource(b"x"))
    assert root.read_bytes() == b"mine"


def test_a_full_disk_keeps_the_old_object_and_no_part_of_the_new_one(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        sink = LocalSink(disk)
        sink.put(KEY, GeneratedSource(300_000, seed=1))
        before = files_in(disk)
        for wanted in (KEY, key("folder/another"), key("new/folder/another")):
            with pytest.raises(SinkQuotaError, match="Free some space or raise the quota"):
                sink.put(wanted, GeneratedSource(2_000_000, seed=2))
            assert files_in(disk) == before
        sink.put(KEY, GeneratedSource(400_000, seed=3))


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[LocalSink]:
    with read_only_disk(tmp_path / "disk", old=b"old") as disk:
        yield LocalSink(disk)


def test_a_read_only_disk_can_be_read_and_says_why_it_takes_nothing(read_only: LocalSink) -> None:
    for path in ("old", "new", "new/folder"):
        with pytest.raises(SinkAuthError, match=r"Read-only file system\. Choose a folder on a file system"):
            read_only.put(key(path), MemorySource(b"x"))
    with pytest.raises(SinkAuthError):
        read_only.delete(key("old"))
    read_only.delete(key("missing"))
    with read_only.open(key("old")) as stream:
        assert stream.read() == b"old"
    assert [stored.key.path for stored in read_only.list("run")] == ["old"]


def test_a_folder_without_permission_says_so_for_each_operation(tmp_path: Path) -> None:
    program = f"""
import sys
from stagesink.artifacts import ArtifactKey, MemorySource
from stagesink.errors import SinkAuthError
from stagesink.sinks.local import LocalSink
{NOBODY}
sink, key = LocalSink(sys.argv[1]), ArtifactKey("run", "object")
for call in (
    lambda: sink.put(key, MemorySource(b"x")), lambda: sink.stat(key), lambda: sink.open(key), lambda: sink.delete(key),
    lambda: list(sink.list("run")), lambda: list(sink.list("run", "object")),
):
    try:
        call()
    except SinkAuthError as error:
        print(error)
"""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/object").write_bytes(b"old")
    tmp_path.chmod(0)
    try:
        lines = python(program, tmp_path).stdout.splitlines()
    finally:
        tmp_path.chmod(0o700)
    assert len(lines) == 6
    assert all(line.endswith("Make the folder writable for this user, or choose another.") for line in lines)
    assert files_in(tmp_path) == {"run/object": b"old"}


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EDQUOT, SinkQuotaError),
        (errno.EFBIG, SinkQuotaError),
        (errno.EMFILE, TransientSinkError),
        (errno.ESTALE, TransientSinkError),
        (errno.EIO, SinkError),
        (None, SinkError),
    ],
)
@pytest.mark.parametrize("batched", [False, True])
def test_what_the_disk_says_at_the_last_moment_is_a_typed_error_too(
    sink: LocalSink, monkeypatch: pytest.MonkeyPatch, number: int | None, kind: type[SinkError], batched: bool
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number)) if number else OSError("something")

    def put() -> None:
        with sink.batch() if batched else nullcontext(sink) as target:
            target.put(KEY, MemorySource(b"x"))

    sink.put(key("folder/first"), MemorySource(b"makes the folder"))
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(SinkError) as caught:
        put()
    assert type(caught.value) is kind
    assert caught.value.hint


# -- roots and options -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("file:./relative", "work/relative"),
        ("file:relative/deep", "work/relative/deep"),
        ("relative", "work/relative"),
        ("file:~/home", "home/home"),
        ("~/home", "home/home"),
        ("file:with space/ü/模型", "work/with space/ü/模型"),
        ("file:100%25", "work/100%25"),
        ("file:{tmp}/absolute", "absolute"),
        ("file://{tmp}/absolute", "absolute"),
        ("file://localhost{tmp}/absolute", "absolute"),
        ("FILE://{tmp}/with%20space", "with space"),
        ("file:{tmp}/a/../b/", "b"),
        ("file:link", "linked"),
        ("file:link/inside", "linked/inside"),
    ],
)
def test_every_form_of_root_is_the_folder_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, folder: str
) -> None:
    for name in ("work", "home", "linked"):
        (tmp_path / name).mkdir()
    (tmp_path / "work/link").symlink_to(tmp_path / "linked")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    sink = open_sink(uri.format(tmp=tmp_path))
    monkeypatch.chdir(tmp_path)  # a relative root means the folder where it was opened
    sink.put(KEY, MemorySource(b"x"))
    assert files_in(tmp_path) == {f"{folder}/run/folder/object.bin": b"x"}
    assert [stored.key for stored in sink.list("run")] == [KEY]
    assert open_sink(sink.uri).stat(KEY) == sink.stat(KEY)
    sink.delete(KEY)
    assert files_in(tmp_path) == {}


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("file:", "names no folder"),
        ("file://", "names no folder"),
        ("file://server/share", "names the host 'server'"),
        ("file:~nobody-of-this-name/x", "no home folder"),
        ("file:/a\0b", "NUL"),
    ],
)
def test_a_uri_that_names_no_folder_of_this_machine_is_refused(uri: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        open_sink(uri)
    assert caught.value.hint


def test_a_password_in_a_uri_that_is_refused_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        open_sink("file://user:pa55word@server/share?sig=t0ken")
    assert "pa55word" not in str(caught.value)
    assert "t0ken" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"fsnyc": False}, "no storage option 'fsnyc'"),
        ({"fsync": "no"}, "'fsync' is true or false, not 'no'"),
        ({"fsync": 1, "key": "pa55word"}, "no storage option 'key'"),
    ],
)
def test_an_option_it_does_not_know_is_refused(tmp_path: Path, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        open_sink(f"file:{tmp_path}", storage_options=options)
    assert caught.value.hint
    assert "pa55word" not in str(caught.value)


def test_the_option_fsync_is_taken(tmp_path: Path, calls: Calls) -> None:
    open_sink(f"file:{tmp_path}", storage_options={"fsync": False}).put(KEY, MemorySource(b"x"))
    assert [call[0] for call in calls.take()] == ["replace"]


def test_files_that_no_key_can_name_are_not_listed(sink: LocalSink, root: Path) -> None:
    sink.put(KEY, MemorySource(b"x"))
    (root / "run/back\\slash").write_bytes(b"theirs")
    (root / "run/dangling").symlink_to("nowhere")
    os.mkfifo(root / "run/pipe")
    assert [stored.key for stored in sink.list("run")] == [KEY]


def test_a_deletion_takes_empty_folders_along_and_never_the_root(sink: LocalSink, root: Path) -> None:
    sink.put(key("a/b/c"), MemorySource(b"x"))
    sink.put(key("a/d"), MemorySource(b"x"))
    sink.delete(key("a/b/c"))
    assert sorted(path.name for path in (root / "run/a").iterdir()) == ["d"]
    sink.delete(key("a/d"))
    assert list(root.iterdir()) == []
