"""What bad input gets, from the facade and from the engine: one clear sentence, nothing lost, nothing half there."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from faults.proxy import Answer, FaultProxy
from outside import NOBODY, files_in, python, running, said, small_disk, tell
from servers import S3Server

from stagesink import ArtifactUploader, Transfer, TransferOptions, list_committed, open_sink, verify
from stagesink.artifacts import ArtifactKey
from stagesink.config import load_config
from stagesink.errors import (
    ConfigError,
    EmptyTree,
    IncompleteCheckpoint,
    InvalidKey,
    LinkError,
    MissingExtra,
    SinkAuthError,
    SinkConflict,
    SinkQuotaError,
    SourceChanged,
    SourceKindError,
    SourceNotFound,
    SourceUnreadable,
    StagesinkError,
    TransferError,
    TransientSinkError,
    UnknownScheme,
    VerificationError,
)
from stagesink.sinks.local import LocalSink
from stagesink.testing import FaultySink, fails, loses_object
from stagesink.transfer import Plan, plan_archive, plan_file, plan_packed_tree, plan_tree

QUICK = TransferOptions(initial=0, max_wait=0)


class Bench:
    """A store in a folder with an older upload in it, and a pipeline that uploads bad input to it."""

    def __init__(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.folder = folder
        self.root = folder / "store"
        self.caplog = caplog
        old = folder / "old.json"
        old.write_text("old")
        assert ArtifactUploader("run", "training", sink=LocalSink(self.root)).upload_file(old, "metrics.json") is True
        self.before = files_in(self.root)
        caplog.clear()

    def sink(self) -> LocalSink:
        return LocalSink(self.root)

    def refused(
        self,
        upload: Callable[[ArtifactUploader], bool],
        plan: Callable[[], Plan],
        *,
        sink: Any = None,
        intact: bool = True,
    ) -> StagesinkError:
        """Give the same bad input to the facade and to the engine; return what both say of it.

        Parameters
        ----------
        intact : bool
            The store holds afterwards exactly what it held before.
        """
        uploader = ArtifactUploader("run", "training", sink=sink or self.sink())
        assert upload(uploader) is False
        (error,) = uploader.errors
        (record,) = [record for record in self.caplog.records if record.levelno >= logging.WARNING]
        assert record.exc_info is None
        says_what_to_do(error, record.getMessage())
        if intact:
            assert files_in(self.root) == self.before
        with pytest.raises(StagesinkError) as caught:
            Transfer(sink or self.sink(), QUICK).run(plan())
        if intact:
            assert files_in(self.root) == self.before
        assert str(caught.value) == str(error)
        return cause_of(caught.value)


def cause_of(error: StagesinkError) -> StagesinkError:
    """Return what is wrong with the one object that failed."""
    if isinstance(error, TransferError):
        (error,) = error.failures.values()
    return error


def says_what_to_do(error: StagesinkError, line: str) -> None:
    assert error.hint
    assert line.partition(" It is kept in ")[0].endswith(error.hint)
    assert len(line.splitlines()) == 1


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STAGESINK_RETRIES_INITIAL", "0")


@pytest.fixture
def bench(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Bench:
    return Bench(tmp_path, caplog)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    (folder / "shards").mkdir(parents=True)
    for number in range(4):
        (folder / "shards" / f"{number}.bin").write_bytes(bytes([number]) * 10_000)
    return folder


# -- a path that does not exist ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["file", "folder", "packed folder", "archive"])
def test_a_path_that_does_not_exist(bench: Bench, tmp_path: Path, method: str) -> None:
    path = tmp_path / "nothing"
    error = {
        "file": lambda: bench.refused(
            lambda u: u.upload_file(path, "metrics.json"), lambda: plan_file("run", "metrics.json", path)
        ),
        "folder": lambda: bench.refused(lambda u: u.upload_checkpoint(path), lambda: plan_tree("run", "c", path)),
        "packed folder": lambda: bench.refused(
            lambda u: u.upload_packed_checkpoint(path),
            lambda: plan_packed_tree("run", "c.tar.gz", path, archive_format="tar.gz"),
        ),
        "archive": lambda: bench.refused(
            lambda u: u.upload_checkpoint_archive(path), lambda: plan_archive("run", "c.tar.gz", path)
        ),
    }[method]()
    assert type(error) is SourceNotFound
    assert str(error) == f"{path} does not exist. Check the path."


# -- a folder that holds nothing to upload -----------------------------------------------------------------------------


@pytest.mark.parametrize("holding", [(), ("__pycache__/x.pyc", "train.lock", "step.tmp")])
def test_an_empty_checkpoint_folder(bench: Bench, tmp_path: Path, holding: tuple[str, ...]) -> None:
    folder = tmp_path / "empty"
    (folder / "sub").mkdir(parents=True)
    for name in holding:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    error = bench.refused(lambda u: u.upload_checkpoint(folder), lambda: plan_tree("run", "checkpoint", folder))
    assert type(error) is EmptyTree
    assert str(error).startswith(f"{folder} holds no")
    bench.caplog.clear()
    packed = bench.refused(
        lambda u: u.upload_packed_checkpoint(folder),
        lambda: plan_packed_tree("run", "c.tar.gz", folder, archive_format="tar.gz"),
    )
    assert type(packed) is EmptyTree


def test_a_checkpoint_that_says_it_is_incomplete(bench: Bench, checkpoint: Path) -> None:
    (checkpoint / "checkpoint-is-incomplete.txt").touch()
    error = bench.refused(lambda u: u.upload_checkpoint(checkpoint), lambda: plan_tree("run", "checkpoint", checkpoint))
    assert type(error) is IncompleteCheckpoint


@pytest.mark.parametrize("target", ["nowhere", "loop"])
def test_a_checkpoint_with_a_link_that_leads_nowhere(bench: Bench, checkpoint: Path, target: str) -> None:
    (checkpoint / "loop").symlink_to(target)
    error = bench.refused(lambda u: u.upload_checkpoint(checkpoint), lambda: plan_tree("run", "checkpoint", checkpoint))
    assert type(error) is LinkError


# -- the wrong kind ----------------------------------------------------------------------------------------------------


def test_a_folder_where_a_file_belongs(bench: Bench, checkpoint: Path) -> None:
    error = bench.refused(
        lambda u: u.upload_file(checkpoint, "metrics.json"), lambda: plan_file("run", "metrics.json", checkpoint)
    )
    assert type(error) is SourceKindError
    assert str(error) == f"{checkpoint} is a folder where a file belongs. Name a file, or upload it as a tree."
    bench.caplog.clear()
    archive = bench.refused(
        lambda u: u.upload_checkpoint_archive(checkpoint), lambda: plan_archive("run", "c.tar.gz", checkpoint)
    )
    assert type(archive) is SourceKindError


def test_a_file_where_a_folder_belongs(bench: Bench, checkpoint: Path) -> None:
    file = checkpoint / "shards/0.bin"
    error = bench.refused(lambda u: u.upload_checkpoint(file), lambda: plan_tree("run", "checkpoint", file))
    assert type(error) is SourceKindError
    assert str(error) == f"{file} is a file where a folder belongs. Name the folder that holds it."


def test_a_path_through_a_file(bench: Bench, checkpoint: Path) -> None:
    path = checkpoint / "shards/0.bin/inside"
    error = bench.refused(lambda u: u.upload_file(path, "x"), lambda: plan_file("run", "x", path))
    assert type(error) is SourceKindError


def test_a_pipe_where_a_file_belongs(bench: Bench, checkpoint: Path) -> None:
    os.mkfifo(checkpoint / "pipe")
    error = bench.refused(
        lambda u: u.upload_file(checkpoint / "pipe", "x"), lambda: plan_file("run", "x", checkpoint / "pipe")
    )
    assert type(error) is SourceUnreadable
    bench.caplog.clear()
    tree = bench.refused(lambda u: u.upload_checkpoint(checkpoint), lambda: plan_tree("run", "checkpoint", checkpoint))
    assert type(tree) is SourceUnreadable


@pytest.mark.parametrize("destination", ["metrics.json/inside", "folder"])
def test_an_object_and_a_folder_of_one_name_in_the_store(bench: Bench, checkpoint: Path, destination: str) -> None:
    (bench.root / "run/folder").mkdir()
    (bench.root / "run/folder/theirs").write_text("theirs")
    bench.before = files_in(bench.root)
    file = checkpoint / "shards/0.bin"
    error = bench.refused(lambda u: u.upload_file(file, destination), lambda: plan_file("run", destination, file))
    assert type(error) is SinkConflict


# -- no permission -----------------------------------------------------------------------------------------------------

AS_NOBODY = f"""
import os, re, sys
from pathlib import Path
from stagesink import ArtifactUploader, Transfer
from stagesink.errors import StagesinkError, TransferError
from stagesink.transfer import plan_file, plan_tree

base = Path(sys.argv[1])
os.chdir(base)

def plan(name):
    return plan_tree("run", name, base / name) if (base / name).is_dir() else plan_file("run", name, base / name)

def upload(name, store):
    uploader = ArtifactUploader("run", sink=f"file:{{base}}/{{store}}", on_failure="warn")
    as_tree = (base / name).is_dir()
    landed = uploader.upload_checkpoint(base / name, name) if as_tree else uploader.upload_file(base / name, name)
    try:
        Transfer(uploader.sink).run(plan(name))
        engine = None
    except StagesinkError as error:
        assert [told(each) for each in uploader.errors] == [told(error)]
        engine = next(iter(error.failures.values())) if isinstance(error, TransferError) else error
    print(landed, type(engine).__name__, told(engine))

def told(error):
    return re.sub(r"/turn\\.\\S+", "/turn", str(error))  # whose name no two turns share

upload("open", "warm-up")  # imports everything
{NOBODY}
upload("locked.json", "store")
upload("locked-folder", "store")
upload("folder-with-locked-file", "store")
upload("open", "locked-store")
upload("open", "store")
"""


def test_no_permission_to_read_or_to_write() -> None:
    base = Path(f"/tmp/stagesink-{uuid.uuid4().hex}")  # pytest's own folders are closed to other users
    base.mkdir(mode=0o755)
    try:
        (base / "open").mkdir()
        (base / "open/file").write_bytes(b"open")
        (base / "locked.json").write_bytes(b"mine")
        (base / "locked-folder").mkdir()
        (base / "locked-folder/file").write_bytes(b"mine")
        (base / "folder-with-locked-file").mkdir()
        (base / "folder-with-locked-file/locked").write_bytes(b"mine")
        for name in ("warm-up", "store", "locked-store"):
            (base / name).mkdir()
        (base / "store").chmod(0o777)
        locked = ("locked.json", "locked-folder", "folder-with-locked-file/locked", "locked-store")
        for name in locked:
            (base / name).chmod(0)
        lines = python(AS_NOBODY, base).stdout.splitlines()
        read, write = "Make it readable for this user.", "Make the folder writable for this user, or choose another."
        assert lines == [
            "True NoneType None",
            f"False SourceUnreadable No permission to read {base}/locked.json. {read}",
            f"False SourceUnreadable No permission to read {base}/locked-folder. {read}",
            f"False SourceUnreadable No permission to read {base}/folder-with-locked-file/locked. {read}",
            f"False SinkAuthError {base}/locked-store/run/.stagesink/turn cannot be written or read: "
            f"Permission denied. {write}",
            "True NoneType None",
        ]
        for name in locked:
            (base / name).chmod(0o700)
        assert set(files_in(base / "store")) == {"run/open/file", "run/open.manifest.json"}
        assert files_in(base / "locked-store") == {}
        assert (base / "locked.json").read_bytes() == b"mine"
    finally:
        python("import shutil, sys; shutil.rmtree(sys.argv[1])", base)


# -- a full disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "tree", "packed tree"])
def test_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.bin").write_bytes(os.urandom(700_000))
    (tmp_path / "large").write_bytes(os.urandom(2_100_000))
    with small_disk(tmp_path / "disk") as disk:
        bench = Bench.__new__(Bench)
        bench.root, bench.caplog = disk, caplog
        (tmp_path / "old").mkdir()
        (tmp_path / "old/0.bin").write_bytes(b"old")
        old = ArtifactUploader("run", sink=LocalSink(disk))
        assert old.upload_checkpoint(tmp_path / "old", "previous") is True
        assert old.upload_file(tmp_path / "old/0.bin", "large") is True
        bench.before = files_in(disk)
        caplog.clear()
        calls: dict[str, Any] = {
            "file": (
                lambda u: u.upload_file(tmp_path / "large", "new"),
                lambda: plan_file("run", "new", tmp_path / "large"),
            ),
            "tree": (lambda u: u.upload_checkpoint(folder), lambda: plan_tree("run", "checkpoint", folder)),
            "packed tree": (
                lambda u: u.upload_packed_checkpoint(folder, "best.tar.gz"),
                lambda: plan_packed_tree("run", "best.tar.gz", folder, archive_format="tar.gz"),
            ),
        }
        uploader = ArtifactUploader("run", sink=LocalSink(disk), workers=1)
        assert calls[kind][0](uploader) is False
        (record,) = caplog.records
        assert record.getMessage().partition(" It is kept in ")[0].endswith(SinkQuotaError.default_hint)
        with pytest.raises(TransferError) as caught:
            Transfer(LocalSink(disk), TransferOptions(workers=1)).run(calls[kind][1]())
        assert {type(error) for error in caught.value.failures.values()} == {SinkQuotaError}
        there = files_in(disk)
        assert bench.before.items() <= there.items()  # what was there is whole
        new = {path: data for path, data in there.items() if path not in bench.before}
        if kind == "tree":  # what had room is there, whole; but there is no manifest, so the tree is not
            assert new == {f"run/checkpoint/{Path(path).name}": (folder / Path(path).name).read_bytes() for path in new}
        else:
            assert new == {}
        assert {manifest.path for manifest in list_committed(LocalSink(disk), "run")} == {"previous", "large"}


def test_a_full_disk_that_is_freed_takes_the_upload_of_the_same_call(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(700_000))
    with small_disk(tmp_path / "disk") as disk:
        (disk / "ballast").write_bytes(bytes(600_000))
        uploader = ArtifactUploader("run", sink=LocalSink(disk))
        assert uploader.upload_file(tmp_path / "file") is False
        (disk / "ballast").unlink()
        assert uploader.upload_file(tmp_path / "file") is True
        assert files_in(disk)["run/file"] == (tmp_path / "file").read_bytes()


# -- files that change -------------------------------------------------------------------------------------------------


LARGE = 12 << 20
"""Bytes of a file that is surely not read in one piece before it is put."""


class Meddling(LocalSink):
    """Does something to the source each time a put begins, when the engine has looked at it already."""

    def __init__(self, root: Path, meddle: Callable[[ArtifactKey], None]) -> None:
        super().__init__(root, fsync=False)
        self.meddle = meddle

    def put(self, key: ArtifactKey, source: Any, **how: Any) -> Any:
        self.meddle(key)
        return super().put(key, source, **how)

    def batch(self) -> Any:
        from contextlib import nullcontext

        return nullcontext(self)


def append(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b"more")


def rewrite(file: Path) -> None:
    """Same size, other bytes, in place: only the time of the change tells."""
    status = file.stat()
    file.write_bytes(os.urandom(8) + bytes(status.st_size - 8))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("change", [append, rewrite, truncate])
def test_a_file_that_never_stops_changing_during_upload(
    bench: Bench, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    file = tmp_path / "train.log"
    file.write_bytes(bytes(LARGE))
    sink = Meddling(bench.root, lambda _: change(file))
    error = bench.refused(
        lambda u: u.upload_file(file, "train.log"), lambda: plan_file("run", "train.log", file), sink=sink
    )
    assert type(error) is SourceChanged
    assert str(error) == (
        f"{file} changed while it was read. Upload it after its writer has finished, or write it to another name and "
        "rename it."
    )


def test_a_file_that_grows_once_during_upload_lands_as_it_was_in_the_end(tmp_path: Path) -> None:
    file = tmp_path / "train.log"
    file.write_bytes(bytes(LARGE))
    grown: list[int] = []

    def grow(_: ArtifactKey) -> None:
        if not grown:
            append(file)
            grown.append(1)

    uploader = ArtifactUploader("run", sink=Meddling(tmp_path / "store", grow))
    assert uploader.upload_file(file) is True
    there = files_in(tmp_path / "store")
    assert there["run/train.log"] == file.read_bytes()
    assert uploader.receipts[0].sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert uploader.receipts[0].attempts == 2


def test_a_log_that_another_process_keeps_writing_lands_whole_or_not_at_all(tmp_path: Path) -> None:
    program = """
        import sys
        with open(sys.argv[1], "ab", buffering=0) as log:
            print("ready", flush=True)
            while True:
                log.write(b"one more line\\n" * 1000)
    """
    log = tmp_path / "train.log"
    log.write_bytes(b"one more line\n" * 10_000)
    with running(program, log) as writer:
        assert said(writer) == "ready"
        uploader = ArtifactUploader("run", sink=LocalSink(tmp_path / "store", fsync=False))
        landed = uploader.upload_file(log)
        there = files_in(tmp_path / "store")
    if landed:
        (receipt,) = uploader.receipts
        assert hashlib.sha256(there["run/train.log"]).hexdigest() == receipt.sha256
    else:
        assert isinstance(cause_of(uploader.errors[0]), SourceChanged)
        assert there == {}


@pytest.mark.parametrize("kind", ["file", "tree", "packed tree"])
def test_a_file_that_vanishes_during_upload(bench: Bench, checkpoint: Path, kind: str) -> None:
    victim = checkpoint / "shards/2.bin"
    data = bytes(LARGE)
    victim.write_bytes(data)

    def vanish(_: ArtifactKey) -> None:
        with suppress(FileNotFoundError):
            victim.unlink()

    def upload(uploader: ArtifactUploader) -> bool:
        if kind == "file":
            return uploader.upload_file(victim, "x")
        if kind == "tree":
            return uploader.upload_checkpoint(checkpoint)
        return uploader.upload_packed_checkpoint(checkpoint)

    def plan() -> Plan:
        victim.write_bytes(data)
        if kind == "file":
            return plan_file("run", "x", victim)
        if kind == "tree":
            return plan_tree("run", "checkpoint", checkpoint)
        return plan_packed_tree("run", "best_trial_checkpoint.tar.gz", checkpoint, archive_format="tar.gz")

    error = bench.refused(upload, plan, sink=Meddling(bench.root, vanish), intact=kind != "tree")
    assert type(error) is SourceNotFound
    assert str(error) == f"{victim} does not exist. Check the path."
    assert [manifest.path for manifest in list_committed(bench.sink(), "run")] == ["metrics.json"]
    assert not any(name.endswith("2.bin") or ".tmp" in name for name in files_in(bench.root))


# -- names -------------------------------------------------------------------------------------------------------------

BAD_PATHS = {
    "../x": "contains '..'",
    "a/../x": "contains '..'",
    "a/./x": "contains '.'",
    "/etc/x": "is absolute",
    "a\\b": "contains a backslash",
    "a\0b": "contains a NUL byte",
    "a\nb": "contains the character '\\n'",
    "a/": "has an empty segment. Leave out the '/' at its end.",
    "a//b": "has an empty segment",
    "": "has an empty segment",
    "x" * 300: "has a segment of 300 bytes; 255 is the most",
    "ü" * 150: "has a segment of 300 bytes; 255 is the most",
    "/".join(["d" * 200] * 6): "makes a name of",
    "\ud800": "contains the character '\\ud800'",
}


@pytest.mark.parametrize("path", BAD_PATHS, ids=lambda path: ascii(path)[:20])
def test_an_artifact_path_that_no_backend_should_see(bench: Bench, checkpoint: Path, path: str) -> None:
    file = checkpoint / "shards/0.bin"
    error = bench.refused(lambda u: u.upload_file(file, path), lambda: plan_file("run", path, file))
    assert type(error) is InvalidKey
    assert BAD_PATHS[path] in str(error)
    bench.caplog.clear()
    tree = bench.refused(lambda u: u.upload_checkpoint(checkpoint, path), lambda: plan_tree("run", path, checkpoint))
    assert type(tree) is InvalidKey


@pytest.mark.parametrize("run_id", [*BAD_PATHS, "a/b", ".."], ids=lambda path: ascii(path)[:20])
def test_a_run_id_that_no_backend_should_see(
    bench: Bench, checkpoint: Path, run_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = checkpoint / "shards/0.bin"
    for upload in (
        lambda u: u.upload_file(file, "x"),
        lambda u: u.upload_checkpoint(checkpoint),
        lambda u: u.upload_packed_checkpoint(checkpoint),
    ):
        caplog.clear()
        uploader = ArtifactUploader(run_id, sink=bench.sink())
        assert upload(uploader) is False
        (error,) = uploader.errors
        assert type(error) is InvalidKey
        says_what_to_do(error, caplog.messages[0])
    with pytest.raises(InvalidKey):
        plan_file(run_id, "x", file)
    assert files_in(bench.root) == bench.before
    assert set(os.listdir(bench.folder)) == {"store", "old.json", "checkpoint"}


def test_a_file_in_a_checkpoint_with_a_name_that_no_backend_should_see(bench: Bench, checkpoint: Path) -> None:
    (checkpoint / "back\\slash").write_text("x")
    error = bench.refused(lambda u: u.upload_checkpoint(checkpoint), lambda: plan_tree("run", "checkpoint", checkpoint))
    assert type(error) is InvalidKey
    assert "Rename it." in str(error)


# -- sinks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("fiel:x", "No sink serves the scheme 'fiel'. Did you mean 'file'?"),
        ("wurst://x", "No sink serves the scheme 'wurst'."),
    ],
)
def test_an_unknown_scheme(checkpoint: Path, caplog: pytest.LogCaptureFixture, uri: str, sentence: str) -> None:
    uploader = ArtifactUploader("run", sink=uri)
    assert uploader.upload_checkpoint(checkpoint) is False
    (error,) = uploader.errors
    assert type(error) is UnknownScheme
    says_what_to_do(error, caplog.messages[0])
    assert str(error).startswith(sentence)
    with pytest.raises(UnknownScheme) as caught:
        open_sink(uri)
    assert str(caught.value) == str(error)


@pytest.mark.parametrize(
    ("package", "uri", "extra"),
    [
        ("paramiko", "sftp://host/x", "sftp"),
        ("s3fs", "s3://bucket", "s3"),
        ("adlfs", "az://c", "az"),
        ("gcsfs", "gs://b", "gs"),
    ],
)
def test_a_missing_extra(checkpoint: Path, package: str, uri: str, extra: str) -> None:
    program = """
        import sys
        from stagesink import ArtifactUploader, open_sink
        from stagesink.errors import MissingExtra
        package, uri, checkpoint = sys.argv[1:]
        sys.modules[package] = None  # as if it were not installed
        uploader = ArtifactUploader("run", sink=uri)
        assert uploader.upload_checkpoint(checkpoint) is False
        try:
            open_sink(uri)
        except MissingExtra as error:
            assert str(error) == str(uploader.errors[0])
    """
    done = python(program, package, uri, checkpoint)
    assert done.stderr.splitlines() == [
        f"checkpoint was not uploaded: A package for {extra}: sinks is not installed. pip install 'stagesink[{extra}]'"
    ]


def test_the_engine_names_the_extra_of_a_packed_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    program = """
        import sys
        sys.modules["zstandard"] = sys.modules["compression"] = None
        from stagesink import ArtifactUploader
        uploader = ArtifactUploader("run", sink=sys.argv[2])
        assert uploader.upload_packed_checkpoint(sys.argv[1], "c.tar.zst") is False
    """
    done = python(program, checkpoint, tmp_path / "store")
    assert "pip install 'stagesink[fast]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert files_in(tmp_path / "store") == {}
    assert issubclass(MissingExtra, ImportError)


# -- configuration -----------------------------------------------------------------------------------------------------

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD_YAML = {
    "a typo": ("artifacts:\n  wrokers: 4\n", 2, "artifacts.wrokers: unknown key; did you mean 'workers'?"),
    "a tab": ("artifacts:\n\tworkers: 4\n", 2, "not valid YAML: a tab in the indentation, which must be spaces."),
    "a list for a map": ("artifacts:\n  - workers\n", 1, "artifacts: expected a mapping, got a list"),
    "a list for a nested map": (
        "artifacts:\n  retries: [1, 2]\n",
        2,
        "artifacts.retries: expected a mapping, got a list",
    ),
    "a wrong type": ("artifacts:\n  workers: many\n", 2, "artifacts.workers: expected a whole number"),
    "a boolean in quotes": (
        "tracking:\n  training:\n    log_checkpoint: 'no'\n",
        3,
        "tracking.training.log_checkpoint: expected true or false, got 'no'",
    ),
    "an anchor bomb": (f"{LAUGHS}artifacts: *i\n", 5, "its aliases stand for more than 20000 values."),
    "ten megabytes of anchors": ("x: &x [1]\n" + "y: *x\n" * 1_700_000, None, "is larger than 1 MiB."),
    "an open bracket": ("artifacts: [\n", 2, "not valid YAML"),
    "not text": (b"artifacts: \xff\n", 1, "is not UTF-8 text."),
}


@pytest.mark.parametrize("name", BAD_YAML)
def test_a_configuration_with(
    bench: Bench, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    text, line, sentence = BAD_YAML[name]
    (tmp_path / "conf").mkdir()
    file = tmp_path / "conf/mlflow.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    uploader = ArtifactUploader("run", "training", tmp_path / "conf", sink=bench.sink())
    assert uploader.upload_checkpoint(checkpoint) is False
    (error,) = uploader.errors
    assert type(error) is ConfigError
    (message,) = caplog.messages
    where = f"{file}:{line}: " if line is not None else f"{file}: "
    assert f"checkpoint was not uploaded: {where}" in message
    assert sentence in message
    assert len(message) < 500
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "conf")
    assert str(caught.value) == str(error)
    assert files_in(bench.root) == bench.before


# -- two at once -------------------------------------------------------------------------------------------------------

TOGETHER = """
    import sys
    from stagesink import ArtifactUploader
    store, source, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    uploader = ArtifactUploader("run", "training", sink=f"file:{store}")
    upload = uploader.upload_file if sys.argv[4] == "file" else uploader.upload_checkpoint
    for number in range(rounds):
        print("ready", flush=True)
        sys.stdin.readline()
        print(upload(source, f"{number}"), flush=True)
"""


def together(store: Path, sources: tuple[Path, Path], rounds: int, kind: str) -> list[list[str]]:
    """Let two processes upload to one destination at the same moment, several times; return what they got."""
    results = []
    with (
        running(TOGETHER, store, sources[0], rounds, kind) as one,
        running(TOGETHER, store, sources[1], rounds, kind) as other,
    ):
        for _ in range(rounds):
            assert [said(one), said(other)] == ["ready", "ready"]
            tell(one)
            tell(other)
            results.append([said(one), said(other)])
    return results


def test_two_processes_uploading_one_file_to_the_same_key(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    file.write_bytes(os.urandom(300_000))
    assert together(tmp_path / "store", (file, file), 10, "file") == [["True", "True"]] * 10
    sink = LocalSink(tmp_path / "store")
    assert [check.status for check in verify(sink, list_committed(sink, "run"))] == ["ok"] * 10
    assert len(files_in(tmp_path / "store")) == 20


def test_two_processes_uploading_the_same_tree(tmp_path: Path, checkpoint: Path) -> None:
    assert together(tmp_path / "store", (checkpoint, checkpoint), 10, "tree") == [["True", "True"]] * 10
    sink = LocalSink(tmp_path / "store")
    assert [check.status for check in verify(sink, list_committed(sink, "run"))] == ["ok"] * 40
    assert {path: data for path, data in files_in(tmp_path / "store/run/0").items()} == files_in(checkpoint)


def test_two_processes_uploading_other_bytes_to_the_same_key(tmp_path: Path) -> None:
    """One whole object wins each time. Whether its manifest is the winner's is what ``verify`` tells."""
    files = (tmp_path / "a", tmp_path / "b")
    for file in files:
        file.write_bytes(file.name.encode() * 300_000)
    together(tmp_path / "store", files, 10, "file")
    there = files_in(tmp_path / "store/run")
    for number in range(10):
        data = there[str(number)]
        assert data in (files[0].read_bytes(), files[1].read_bytes())
        manifest = json.loads(there[f"{number}.manifest.json"])
        assert manifest["files"][0]["sha256"] in {hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    sink = LocalSink(tmp_path / "store")
    for check in verify(sink, list_committed(sink, "run")):
        manifest = json.loads(there[f"{check.key.path}.manifest.json"])
        is_so = manifest["files"][0]["sha256"] == hashlib.sha256(there[check.key.path]).hexdigest()
        assert check.status == ("ok" if is_so else "content")
    for number in range(10):  # a later upload that reads back mends it, where one that compares sizes would not see it
        assert ArtifactUploader("run", sink=sink, verify="full").upload_file(files[0], str(number)) is True
    assert [check.status for check in verify(sink, list_committed(sink, "run"))] == ["ok"] * 10


# -- stores that fail --------------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(moto: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(moto.port) as proxy:
        yield proxy


@pytest.fixture
def prefix(bucket: str) -> str:
    return f"{bucket}/{uuid.uuid4().hex}"


def in_s3(moto: S3Server, prefix: str) -> dict[str, bytes]:
    """What lies there, as boto3 sees it."""
    client = moto.boto3()
    bucket, _, folder = prefix.partition("/")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{folder}/")
    keys = [each["Key"] for page in pages for each in page.get("Contents", ())]
    return {key[len(folder) + 1 :]: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


@pytest.fixture
def s3_config(tmp_path: Path, moto: S3Server, prefix: str, proxy: FaultProxy) -> Callable[[int], Path]:
    """Write the configuration of a pipeline that uploads to S3 through the proxy."""

    def config(attempts: int) -> Path:
        retries = {"attempts": attempts, "initial": 0.001, "max_wait": 0.002}
        settings = {"sink": f"s3://{prefix}", "storage_options": moto.options(proxy.port), "retries": retries}
        (tmp_path / "conf").mkdir()
        (tmp_path / "conf/mlflow.yaml").write_text(json.dumps({"artifacts": settings}))
        return tmp_path / "conf"

    return config


def test_a_store_that_answers_503_ten_times_and_then_works(
    moto: S3Server, prefix: str, proxy: FaultProxy, s3_config: Callable[[int], Path], checkpoint: Path
) -> None:
    file = checkpoint / "shards/0.bin"
    proxy.plan(Answer(503, retry_after=0), times=10, method="PUT", path="0.bin")
    with ArtifactUploader("run", "training", s3_config(12)) as uploader:
        assert uploader.upload_file(file) is True
    (receipt,) = uploader.receipts
    assert (receipt.attempts, receipt.status) == (11, "uploaded")
    assert uploader.metrics["training"][receipt.uri.removesuffix("/run/0.bin")]["retries"] == 10
    there = in_s3(moto, prefix)
    assert there["run/0.bin"] == file.read_bytes()
    assert set(there) == {"run/0.bin", "run/0.bin.manifest.json"}


def test_a_store_that_answers_503_to_everything_at_first(
    moto: S3Server, prefix: str, proxy: FaultProxy, checkpoint: Path
) -> None:
    proxy.plan(Answer(503), times=10)
    sink = open_sink(f"s3://{prefix}", storage_options=moto.options(proxy.port))
    options = TransferOptions(attempts=11, initial=0.001, max_wait=0.002)
    receipts = Transfer(sink, options).run(plan_tree("run", "checkpoint", checkpoint))
    assert {receipt.status for receipt in receipts} == {"uploaded"}
    wanted = {f"run/checkpoint/{path}": data for path, data in files_in(checkpoint).items()}
    there = in_s3(moto, prefix)
    assert wanted.items() <= there.items()
    assert there.keys() - wanted.keys() == {"run/checkpoint.manifest.json"}


def test_a_store_that_answers_503_for_too_long(
    moto: S3Server,
    prefix: str,
    proxy: FaultProxy,
    s3_config: Callable[[int], Path],
    checkpoint: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    proxy.plan(Answer(503), times=1000)
    with ArtifactUploader("run", "training", s3_config(3)) as uploader:
        assert uploader.upload_file(checkpoint / "shards/0.bin", "metrics.json") is False
        (message,) = [record.getMessage() for record in caplog.records if record.name == "stagesink"]
        says_what_to_do(uploader.errors[0], message)
        assert isinstance(cause_of(uploader.errors[0]), TransientSinkError)
        assert "503" in message
        assert in_s3(moto, prefix) == {}
        proxy.forget()
        assert uploader.upload_file(checkpoint / "shards/0.bin", "metrics.json") is True
    assert set(in_s3(moto, prefix)) == {"run/metrics.json", "run/metrics.json.manifest.json"}


@pytest.mark.parametrize("kind", ["file", "tree"])
def test_a_store_that_accepts_and_loses_the_object(bench: Bench, checkpoint: Path, kind: str) -> None:
    if kind == "tree":  # one file, so that both say the same of it
        for number in (1, 2, 3):
            (checkpoint / f"shards/{number}.bin").unlink()
    file = checkpoint / "shards/0.bin"
    error = bench.refused(
        lambda u: u.upload_file(file, "x") if kind == "file" else u.upload_checkpoint(checkpoint, "x"),
        lambda: plan_file("run", "x", file) if kind == "file" else plan_tree("run", "x", checkpoint),
        sink=FaultySink(bench.sink(), loses_object()),
    )
    assert type(error) is VerificationError
    assert "accepted 10000 bytes for run/x" in str(error)
    assert str(error).endswith("with STAGESINK_VERIFY=full; if it happens again, the store is at fault.")


def test_a_store_that_loses_the_object_once_is_sent_it_again(tmp_path: Path, checkpoint: Path) -> None:
    sink = FaultySink(LocalSink(tmp_path / "store"), loses_object(first=2))
    uploader = ArtifactUploader("run", sink=sink)
    assert uploader.upload_checkpoint(checkpoint) is True
    assert files_in(tmp_path / "store/run/checkpoint") == files_in(checkpoint)
    assert sorted(receipt.attempts for receipt in uploader.receipts) == [1, 1, 2, 2]


def test_a_store_that_loses_the_manifest_has_no_upload(bench: Bench, checkpoint: Path) -> None:
    class LosesManifests(LocalSink):
        def put(self, key: ArtifactKey, source: Any, **how: Any) -> Any:
            stored = super().put(key, source, **how)
            if key.path.endswith("manifest.json"):
                self.delete(key)
            return stored

    uploader = ArtifactUploader("run", sink=LosesManifests(bench.root))
    assert uploader.upload_checkpoint(checkpoint) is False
    assert isinstance(cause_of(uploader.errors[0]), VerificationError)
    assert [manifest.path for manifest in list_committed(bench.sink(), "run")] == ["metrics.json"]


def test_what_replaces_an_upload_and_fails_leaves_no_mixture(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for number in range(4):
        (folder / str(number)).write_bytes(b"old")
    assert ArtifactUploader("run", sink=bench.sink()).upload_checkpoint(folder) is True
    for number in range(4):
        (folder / str(number)).write_bytes(b"new!")
    sink = FaultySink(bench.sink(), fails("put", SinkAuthError("No longer."), nth=3))
    assert ArtifactUploader("run", sink=sink, workers=1).upload_checkpoint(folder) is False
    assert [manifest.path for manifest in list_committed(bench.sink(), "run")] == ["metrics.json"]
    assert ArtifactUploader("run", sink=bench.sink()).upload_checkpoint(folder) is True
    assert set(files_in(bench.root / "run/checkpoint").values()) == {b"new!"}
