"""Reading once: digests on the way, a changing file noticed, Ctrl-C obeyed."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagesink.artifacts import FileSource, MemorySource
from stagesink.errors import SourceChanged, SourceError, SourceNotFound, SourceUnreadable, TransferCancelled
from stagesink.testing import GeneratedSource
from stagesink.transfer.reader import ReadOnce, digest_of


def drain(stream: BinaryIO) -> None:
    while stream.read(4):
        pass


def reader(source: Any, *algorithms: str) -> ReadOnce:
    return ReadOnce(source, threading.Event(), algorithms)


@given(st.binary(max_size=5000), st.integers(1, 600), st.booleans())
def test_any_size_of_pieces_gives_the_bytes_and_their_digests(data: bytes, piece: int, sized: bool) -> None:
    source = MemorySource(data) if sized else _Unsized(data)
    once = reader(source, "md5")
    with once.open() as stream:
        found = b"".join(iter(lambda: stream.read(piece), b""))
    assert found == data
    assert once.whole
    assert once.count == len(data)
    assert once.digests() == {"sha256": hashlib.sha256(data).hexdigest(), "md5": hashlib.md5(data).hexdigest()}


@dataclass(frozen=True)
class _Unsized:
    """Its size is known only after reading, and its stream has no ``readinto``."""

    data: bytes

    @property
    def size(self) -> None:
        return None

    def fingerprint(self) -> int:
        return 0

    def open(self) -> BinaryIO:
        return cast("BinaryIO", _OnlyRead(self.data))


class _OnlyRead:
    def __init__(self, data: bytes) -> None:
        self._inner = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._inner.read(size)

    def close(self) -> None:
        self._inner.close()


def test_reading_all_at_once_gives_the_same() -> None:
    once = reader(MemorySource(b"all of it"))
    with once.open() as stream:
        assert stream.read() == b"all of it"
    assert once.digests()["sha256"] == hashlib.sha256(b"all of it").hexdigest()


@pytest.mark.parametrize("source", [MemorySource(b"bytes"), _Unsized(b"bytes")], ids=["sized", "unsized"])
def test_asking_for_nothing_is_not_the_end(source: Any) -> None:
    once = reader(source)
    with once.open() as stream:
        assert stream.read(0) == b""
        assert not once.whole
        assert stream.read() == b"bytes"
    assert once.whole


def test_an_object_is_whole_only_when_its_last_byte_was_read() -> None:
    once = reader(MemorySource(b"12345"))
    assert not once.whole
    with once.open() as stream:
        stream.read(4)
        assert not once.whole
        stream.read(1)  # a sink that knows the size never reads past it
        assert once.whole
        assert stream.read(1) == b""


def test_opening_again_begins_again() -> None:
    once = reader(MemorySource(b"12345"))
    once.open().read(3)
    with once.open() as stream:
        assert stream.read() == b"12345"
    assert once.count == 5
    assert once.digests()["sha256"] == hashlib.sha256(b"12345").hexdigest()


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _shrink(path: Path) -> None:
    os.truncate(path, 6)


def _rewrite(path: Path) -> None:
    before = path.stat()
    path.write_bytes(b"x" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def _replace(path: Path) -> None:
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"y" * before.st_size)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)


@pytest.mark.parametrize("change", [_grow, _shrink, _rewrite, _replace])
def test_a_file_that_changes_is_noticed_before_its_last_byte_is_handed_on(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"0123456789")
    once = reader(FileSource(path))
    with once.open() as stream:
        assert stream.read(4) == b"0123"
        change(path)
        with pytest.raises(SourceChanged, match=r"model\.bin") as caught:
            drain(stream)
    assert not once.whole
    assert caught.value.hint


def test_a_file_that_vanishes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"0123456789")
    once = reader(FileSource(path))
    with once.open() as stream:
        stream.read(4)
        path.unlink()
        with pytest.raises(SourceNotFound, match=r"model\.bin"):
            drain(stream)
    assert not once.whole


def test_a_file_that_is_left_alone_is_not_suspected(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"0123456789")
    assert digest_of(FileSource(path), threading.Event()) == hashlib.sha256(b"0123456789").hexdigest()


def test_a_stop_ends_the_reading() -> None:
    cancel = threading.Event()
    once = ReadOnce(MemorySource(b"12345"), cancel)
    with once.open() as stream:
        stream.read(1)
        cancel.set()
        with pytest.raises(TransferCancelled):
            stream.read(1)


def test_what_the_disk_says_while_reading_becomes_a_typed_error_naming_the_file() -> None:
    class Broken(io.RawIOBase):
        def readinto(self, buffer: Any) -> int:
            raise OSError(5, "Input/output error")

    class Disk(FileSource):
        def open(self) -> BinaryIO:
            return cast("BinaryIO", Broken())

    once = reader(Disk(__file__))
    with once.open() as stream, pytest.raises(SourceUnreadable, match="Input/output error") as caught:
        stream.read(4)
    assert str(caught.value).startswith(__file__)
    assert caught.value.hint


def test_an_error_of_the_source_passes_unchanged() -> None:
    error = SourceUnreadable("its own words")
    once = reader(GeneratedSource(100, fails_after=10, error=error))
    with once.open() as stream, pytest.raises(SourceUnreadable) as caught:
        drain(stream)
    assert caught.value is error


def test_a_source_that_cannot_be_opened_leaves_no_noise_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", noise.append)
    path = tmp_path / "gone"
    path.write_bytes(b"x")
    once = reader(FileSource(path))
    path.unlink()
    with pytest.raises(SourceError):
        once.open()
    assert noise == []
