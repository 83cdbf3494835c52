from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path

import pytest

from stagesink.artifacts import FileSource, Fingerprint
from stagesink.errors import SourceChanged, SourceNotFound
from stagesink.outbox import snapshot
from stagesink.outbox.snapshot import copy, is_shared, take, unshare

MODE_OF_OTHERS = 0o077


@pytest.fixture(autouse=True)
def _no_reflinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the disk of the test can do must not decide what is tested."""

    def refuse(fd: int, request: int, *arguments: object) -> int:
        if request == snapshot._FICLONE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return fcntl.ioctl(fd, request, *arguments)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(snapshot.fcntl, "ioctl", refuse)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(b"first" * 1000)
    return path


def test_a_link_survives_that_its_owner_deletes_or_replaces_the_file(file: Path, tmp_path: Path) -> None:
    taken = take(FileSource(file), str(tmp_path / "kept"), may_link=True)
    assert taken.how == "link"
    new = tmp_path / "new"
    new.write_bytes(b"second")
    os.replace(new, file)
    assert (tmp_path / "kept").read_bytes() == b"first" * 1000
    file.unlink()
    assert (tmp_path / "kept").read_bytes() == b"first" * 1000
    assert not is_shared(str(tmp_path / "kept"))


def test_a_copy_survives_that_its_owner_writes_into_the_file(file: Path, tmp_path: Path) -> None:
    taken = take(FileSource(file), str(tmp_path / "kept"), may_link=False)
    assert taken.how == "copy"
    with file.open("r+b") as stream:
        stream.write(b"SECOND")
    assert (tmp_path / "kept").read_bytes() == b"first" * 1000
    assert os.stat(tmp_path / "kept").st_mode & MODE_OF_OTHERS == 0


def test_a_reflink_is_taken_where_the_disk_has_them(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clone(target: int, request: int, source: int) -> int:  # what the disk does, but for sharing the blocks
        os.lseek(source, 0, os.SEEK_SET)
        os.write(target, os.read(source, 1 << 20))
        return 0

    monkeypatch.setattr(snapshot.fcntl, "ioctl", clone)
    assert take(FileSource(file), str(tmp_path / "kept"), may_link=True).how == "reflink"
    assert (tmp_path / "kept").read_bytes() == file.read_bytes()
    assert not is_shared(str(tmp_path / "kept"))


def test_a_symbolic_link_is_taken_for_what_it_leads_to(file: Path, tmp_path: Path) -> None:
    (tmp_path / "name").symlink_to(file)
    take(FileSource(tmp_path / "name"), str(tmp_path / "kept"), may_link=True)
    assert not (tmp_path / "kept").is_symlink()
    assert (tmp_path / "kept").read_bytes() == file.read_bytes()


def test_another_disk_gets_a_copy(file: Path) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or os.stat(shm).st_dev == os.stat(file).st_dev:
        pytest.skip("there is no second disk on this machine")
    folder = shm / f"stagesink-{os.getpid()}"
    folder.mkdir()
    try:
        assert take(FileSource(file), str(folder / "kept"), may_link=True).how == "copy"
        assert (folder / "kept").read_bytes() == file.read_bytes()
    finally:
        shutil.rmtree(folder)


def test_a_file_that_changes_meanwhile_is_not_kept(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy_of_a_file_in_work(source: FileSource, target: str) -> str:
        digest = copy(source, target)
        file.write_bytes(b"longer" * 2000)
        return digest

    monkeypatch.setattr(snapshot, "copy", copy_of_a_file_in_work)
    with pytest.raises(SourceChanged):
        take(FileSource(file), str(tmp_path / "kept"), may_link=False)
    assert not (tmp_path / "kept").exists()


def test_a_file_that_is_gone_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound):
        take(FileSource(tmp_path / "gone"), str(tmp_path / "kept"), may_link=True)


def test_a_link_becomes_a_copy_of_its_own(file: Path, tmp_path: Path) -> None:
    kept = str(tmp_path / "kept")
    taken = take(FileSource(file), kept, may_link=True)
    own = unshare(kept, taken.fingerprint, str(tmp_path / "own"))
    file.write_bytes(b"rewritten in place")
    assert (tmp_path / "own").read_bytes() == b"first" * 1000
    assert Fingerprint.of(os.stat(tmp_path / "own")) == own.fingerprint


def test_a_link_that_was_rewritten_in_place_never_passes_for_what_was_kept(file: Path, tmp_path: Path) -> None:
    kept = str(tmp_path / "kept")
    taken = take(FileSource(file), kept, may_link=True)
    file.write_bytes(b"rewritten in place")
    with pytest.raises(SourceChanged, match="rewritten it in place"):
        unshare(kept, taken.fingerprint, str(tmp_path / "own"))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["kept", "model.bin"]


def test_the_time_of_a_copy_is_that_of_the_file(file: Path, tmp_path: Path) -> None:
    os.utime(file, ns=(1_000_000_007, 1_234_567_891_011))
    take(FileSource(file), str(tmp_path / "kept"), may_link=False)
    assert os.stat(tmp_path / "kept").st_mtime_ns == 1_234_567_891_011  # so that an archive of it has the same bytes
