"""What a folder holds, and every reason why it cannot be uploaded."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stagesink.errors import (
    EmptyTree,
    IncompleteCheckpoint,
    InvalidKey,
    LinkError,
    SourceError,
    SourceKindError,
    SourceNotFound,
    SourceUnreadable,
)
from stagesink.tree import scan_tree, should_skip_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "checkpoint"
    root.mkdir()
    return root


def write(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def paths(folder: Path) -> list[str]:
    return [file.path for file in scan_tree(folder).files]


# -- what is skipped ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "relative",
    [
        "__pycache__/m.pyc",
        "a/.DS_Store",
        "x.tmp",
        "a/x.lock",
        ".git/HEAD",
        ".git",
        "a/.ipynb_checkpoints/b.ipynb",
        "d.tmp/x",
    ],
)
def test_caches_and_locks_are_skipped(relative: str) -> None:
    assert should_skip_file(Path("/checkpoint") / relative, relative)
    assert should_skip_file(Path("/checkpoint") / relative, Path(relative))


@pytest.mark.parametrize(
    "relative", ["train.log", "logs/a.log", "m.pyc", "model.bin", "tmp", "a.tmp.bin", ".gitignore", "lock"]
)
def test_logs_weights_and_lookalikes_are_kept(relative: str) -> None:
    assert not should_skip_file(Path("/checkpoint") / relative, relative)


def test_a_checkpoint_under_a_folder_of_a_skipped_name_is_kept() -> None:
    assert not should_skip_file("/home/.git/run.tmp/checkpoint/model.bin", "model.bin")


def test_scan_agrees_with_should_skip_file_and_lists_what_it_left_out(tmp_path: Path) -> None:
    root = tmp_path / "run.tmp" / "checkpoint"
    for name in ("model.bin", "a/train.log", "a/__pycache__/m.pyc", ".git/HEAD", "b.lock", "a/c.tmp"):
        write(root / name)
    (root / "dangling.lock").symlink_to("nowhere")
    (root / "circle.lock").symlink_to("circle.lock")
    os.mkfifo(root / "pipe.tmp")
    tree = scan_tree(root)
    assert [file.path for file in tree.files] == ["a/train.log", "model.bin"]
    assert tree.skipped == (".git/", "a/__pycache__/", "a/c.tmp", "b.lock", "circle.lock", "dangling.lock", "pipe.tmp")


# -- what is found -----------------------------------------------------------------------------------------------------


def test_files_come_sorted_by_path_with_size_and_bytes(folder: Path) -> None:
    for name in ("b.bin", "a/z.bin", "a.bin", "a/a/x", "é.bin"):
        write(folder / name, name.encode())
    tree = scan_tree(folder)
    found = [file.path for file in tree.files]
    assert found == sorted(found) == ["a.bin", "a/a/x", "a/z.bin", "b.bin", "é.bin"]
    for file in tree.files:
        assert file.size == len(file.path.encode())
        with file.source.open() as stream:
            assert stream.read() == file.path.encode()
    assert tree.total_size == sum(len(name.encode()) for name in found)


def test_a_relative_root_stays_good_after_a_change_of_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "model.bin")
    monkeypatch.chdir(folder.parent)
    tree = scan_tree("checkpoint")
    monkeypatch.chdir("/")
    assert tree.root == folder
    assert tree.files[0].source.size == 1


def test_thousands_of_files_are_all_found(folder: Path) -> None:
    for part in range(20):
        (folder / f"{part:02}").mkdir()
        for number in range(200):
            os.close(os.open(folder / f"{part:02}" / f"{number:03}", os.O_CREAT | os.O_WRONLY))
    assert paths(folder) == [f"{part:02}/{number:03}" for part in range(20) for number in range(200)]


def test_nesting_deeper_than_a_key_may_be_is_an_invalid_key(folder: Path) -> None:
    write(folder.joinpath(*["d"] * 600, "model.bin"))
    with pytest.raises(InvalidKey, match="1024 is the most"):
        scan_tree(folder)


# -- links -------------------------------------------------------------------------------------------------------------


def test_a_hugging_face_cache_snapshot_is_read_through_its_links(tmp_path: Path) -> None:
    write(tmp_path / "models--org--name" / "blobs" / "3f2a", b"weights")
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/3f2a")
    (file,) = scan_tree(snapshot).files
    assert (file.path, file.size) == ("model.safetensors", 7)
    with file.source.open() as stream:
        assert stream.read() == b"weights"


def test_a_link_to_a_folder_is_walked_and_twice_when_linked_twice(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "deep" / "x")
    (folder / "one").symlink_to(tmp_path / "elsewhere")
    (folder / "two").symlink_to(tmp_path / "elsewhere")
    assert paths(folder) == ["one/deep/x", "two/deep/x"]


def test_a_root_that_is_itself_a_link_is_walked(folder: Path, tmp_path: Path) -> None:
    write(folder / "x")
    (tmp_path / "latest").symlink_to(folder)
    assert paths(tmp_path / "latest") == ["x"]


@pytest.mark.parametrize("target", [".", "..", "../..", "a", "/"], ids=["itself", "parent", "above", "sibling", "root"])
def test_a_link_round_in_a_circle_is_named(folder: Path, target: str) -> None:
    write(folder / "a" / "x")
    (folder / "a" / "back").symlink_to(target if target != "a" else "../a")
    with pytest.raises(LinkError, match=r"a/back leads round"):
        scan_tree(folder)


def test_two_folders_that_link_to_each_other_are_a_circle(folder: Path, tmp_path: Path) -> None:
    write(folder / "x")
    write(tmp_path / "other" / "y")
    (folder / "there").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(folder)
    with pytest.raises(LinkError, match="back leads round"):
        scan_tree(folder)


@pytest.mark.parametrize("target", ["nowhere", "model.bin/below"])
def test_a_dangling_link_is_named_with_its_target(folder: Path, target: str) -> None:
    write(folder / "model.bin")
    (folder / "link").symlink_to(target)
    with pytest.raises(LinkError, match=rf"link leads to {target}") as caught:
        scan_tree(folder)
    assert caught.value.hint


def test_a_link_to_itself_is_a_link_error(folder: Path) -> None:
    write(folder / "model.bin")
    (folder / "self").symlink_to("self")
    with pytest.raises(LinkError, match="self"):
        scan_tree(folder)


def test_a_root_that_dangles_is_a_link_error(tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to("gone")
    with pytest.raises(LinkError, match="latest leads to gone"):
        scan_tree(tmp_path / "latest")


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="checkpont"):
        scan_tree(tmp_path / "checkpont")


def test_a_file_where_a_folder_belongs(tmp_path: Path) -> None:
    with pytest.raises(SourceKindError, match=r"model\.bin is a file"):
        scan_tree(write(tmp_path / "model.bin"))


def test_a_folder_below_a_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        scan_tree(write(tmp_path / "model.bin") / "below")


def test_an_empty_folder(folder: Path) -> None:
    (folder / "also" / "empty").mkdir(parents=True)
    with pytest.raises(EmptyTree, match="holds no file"):
        scan_tree(folder)


def test_a_folder_of_which_everything_was_skipped_says_so(folder: Path) -> None:
    write(folder / "x.tmp")
    write(folder / "__pycache__" / "y.pyc")
    with pytest.raises(EmptyTree, match="2 skipped"):
        scan_tree(folder)


@pytest.mark.parametrize("where", [".", "checkpoint-500/shard"])
def test_a_checkpoint_that_says_it_is_incomplete(folder: Path, where: str) -> None:
    write(folder / "model.bin")
    write(folder / where / "checkpoint-is-incomplete.txt")
    with pytest.raises(IncompleteCheckpoint, match=r"checkpoint-is-incomplete\.txt"):
        scan_tree(folder)


def test_a_named_pipe_is_refused_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(SourceUnreadable, match="pipe"):
        scan_tree(folder)


def test_a_link_to_a_device_is_refused(folder: Path) -> None:
    (folder / "zeros").symlink_to("/dev/zero")
    with pytest.raises(SourceUnreadable, match="zeros"):
        scan_tree(folder)


def test_a_socket_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        with pytest.raises(SourceUnreadable, match="checkpoint/s "):
            scan_tree(folder)


@pytest.mark.parametrize("name", [b"back\\slash", b"new\nline", b"\x7f", b"not-utf8-\xff"])
def test_a_name_that_no_backend_could_hold_is_named(folder: Path, name: bytes) -> None:
    write(folder / "model.bin")
    with open(os.fsencode(folder) + b"/" + name, "wb"):
        pass
    with pytest.raises(InvalidKey) as caught:
        scan_tree(folder)
    assert repr(os.fsdecode(name))[1:-1] in caught.value.message
    str(caught.value).encode()  # printable as it is


def test_a_skipped_name_that_is_no_utf8_is_recorded_printably(folder: Path) -> None:
    write(folder / "model.bin")
    with open(os.fsencode(folder) + b"/\xff.tmp", "wb"):
        pass
    (skipped,) = scan_tree(folder).skipped
    assert skipped.encode() == rb"\udcff.tmp"


@contextmanager
def as_plain_user() -> Iterator[None]:
    """Root may read everything: be somebody else for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def readable_by_all() -> Iterator[Path]:
    """A folder that another user gets into, which pytest's own is not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("closed", [".", "sub"], ids=["root", "subfolder"])
def test_a_folder_without_permission_is_never_left_out(readable_by_all: Path, closed: str) -> None:
    folder = readable_by_all / "checkpoint"
    write(folder / "model.bin")
    write(folder / "sub" / "optimizer.bin")
    (folder / closed).chmod(0)
    try:
        with as_plain_user(), pytest.raises(SourceUnreadable, match="No permission"):
            scan_tree(folder)
    finally:
        (folder / closed).chmod(0o755)


def test_a_file_without_permission_is_found_and_fails_when_opened(readable_by_all: Path) -> None:
    secret = write(readable_by_all / "model.bin")
    secret.chmod(0)
    with as_plain_user():
        (file,) = scan_tree(readable_by_all).files
        with pytest.raises(SourceUnreadable, match=r"model\.bin"):
            file.source.open()


def test_a_folder_name_with_a_nul_byte_does_not_exist() -> None:
    with pytest.raises(SourceNotFound, match="no path that a file can have"):
        scan_tree("a\0b")
