"""The nouns: which names exist, and what a file tells about itself."""

from __future__ import annotations

import os
import pickle
import socket
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagesink.artifacts import (
    MAX_PATH_BYTES,
    ArtifactKey,
    FileSource,
    MemorySource,
    Receipt,
    Source,
    StoredArtifact,
)
from stagesink.errors import InvalidKey, SourceKindError, SourceNotFound, SourceUnreadable
from stagesink.testing import GeneratedSource

# -- keys --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "a/b/c.txt",
        "a b",
        "100% #1 + more",
        "ünïcödé/模型",
        ".hidden",
        "a..b",
        "...",
        "-x",
        "~",
        "a:b",
        "x" * 255,
        "ü" * 127,
        "/".join(["x" * 200] * 5),
    ],
)
def test_a_good_path_is_taken_as_it_is(path: str) -> None:
    assert ArtifactKey("run", path).path == path


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "./a",
        "a/.",
        "../a",
        "a/../b",
        "a/..",
        "a\\b",
        "..\\a",
        "C:\\x",
        "a\x00b",
        "a\nb",
        "a\x1b[0m",
        "a\x7f",
        "a\ud800",
        "x" * 256,
        "ü" * 128,
        "a/" + "x" * 300,
        "/".join(["x" * 200] * 6),
    ],
)
def test_a_bad_path_is_one_clear_sentence_that_says_what_to_do(bad: str) -> None:
    with pytest.raises(InvalidKey) as caught:
        ArtifactKey("run", bad)
    assert caught.value.hint
    assert len(str(caught.value)) < 300
    str(caught.value).encode()  # what is printed can be printed, whatever was in the name
    assert not any(ord(character) < 32 for character in str(caught.value))


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "/a", "a\\b", "a\x00", "a\n", "x" * 256, "\udfff"])
def test_a_bad_run_id_is_refused(bad: str) -> None:
    with pytest.raises(InvalidKey, match="Run id") as caught:
        ArtifactKey(bad, "a")
    assert caught.value.hint


def test_run_id_and_path_together_have_a_limit() -> None:
    path = "/".join(["x" * 203] * 5)  # 1019 bytes
    assert ArtifactKey("r" * (MAX_PATH_BYTES - 1020), path)
    with pytest.raises(InvalidKey, match="1025"):
        ArtifactKey("r" * (MAX_PATH_BYTES - 1019), path)


@given(st.text(max_size=30))
def test_whatever_is_accepted_stays_inside_its_run(path: str) -> None:
    try:
        key = ArtifactKey("run", path)
    except InvalidKey:
        return
    inside = os.path.normpath(os.path.join("/root/run", key.path))
    assert inside == f"/root/run/{key.path}"


def test_keys_are_compared_sorted_hashed_and_carried_by_value() -> None:
    keys = [ArtifactKey("b", "a"), ArtifactKey("a", "b"), ArtifactKey("a", "a")]
    assert [str(key) for key in sorted(keys)] == ["a/a", "a/b", "b/a"]
    assert ArtifactKey("a", "b") in set(keys)
    assert ArtifactKey("a", "a") != ArtifactKey("b", "a")
    assert pickle.loads(pickle.dumps(keys)) == keys


# -- sources -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [lambda p: FileSource(p), lambda p: FileSource(str(p)), lambda p: MemorySource(b"12345")]
)
def test_a_source_can_be_opened_as_often_as_needed(make: Any, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    source: Source = make(tmp_path / "a")
    assert isinstance(source, Source)
    assert source.size == 5
    for _ in range(2):
        with source.open() as stream:
            assert stream.read() == b"12345"
    assert source.fingerprint() == source.fingerprint()
    hash(source.fingerprint())


def test_a_file_tells_its_size_and_fingerprint_anew_each_time(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    source = FileSource(path)
    before = source.fingerprint()
    path.write_bytes(b"123456")
    assert source.size == 6
    assert source.fingerprint() != before


def test_another_file_under_the_same_name_has_another_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    status = path.stat()
    before = FileSource(path).fingerprint()
    (tmp_path / "b").write_bytes(b"67890")
    os.utime(tmp_path / "b", ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(tmp_path / "b", path)
    assert FileSource(path).fingerprint() != before


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("a")
    assert FileSource(tmp_path / "link").size == 5


@pytest.mark.parametrize("use", ["size", "open", "fingerprint"])
def test_what_cannot_be_read_is_a_typed_error_that_says_what_to_do(use: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.symlink("nowhere", tmp_path / "dangling")
    os.symlink("loop", tmp_path / "loop")
    expected: dict[str, tuple[type[Exception], ...]] = {
        "nothing": (SourceNotFound,),
        "dangling": (SourceNotFound,),
        "folder": (SourceKindError, SourceUnreadable),
        "file/below": (SourceKindError,),
        "loop": (SourceUnreadable,),
        "x" * 300: (SourceUnreadable,),
        "nul\0": (SourceNotFound,),
    }
    for name, kinds in expected.items():
        source = FileSource(tmp_path / name)
        with pytest.raises(kinds) as caught:
            getattr(source, use) if use == "size" else getattr(source, use)()
        assert caught.value.hint  # type: ignore[attr-defined]
        assert "\0" not in str(caught.value)


def test_a_pipe_or_a_socket_is_refused_before_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for name in ("pipe", "socket"):
            with pytest.raises(SourceUnreadable, match="not a regular file"):
                FileSource(name).fingerprint()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "a").touch(mode=0)
    with pytest.raises(SourceUnreadable, match="permission"):
        FileSource(tmp_path / "a").open()


def test_memory_is_not_shown_where_a_source_is_printed() -> None:
    assert "secret" not in repr(MemorySource(b"secret"))


def test_the_nouns_cannot_be_changed_and_can_be_carried() -> None:
    key = ArtifactKey("run", "a")
    receipt = Receipt(key, "memory:run/a", 1, "00", 0.1, 1, "uploaded", "size")
    for noun in (
        key,
        StoredArtifact(key, "memory:run/a", 1, {"md5": "0"}),
        receipt,
        MemorySource(b"x"),
        FileSource("x"),
    ):
        with pytest.raises(FrozenInstanceError):
            setattr(noun, fields(noun)[0].name, "another")
        assert pickle.loads(pickle.dumps(noun)) == noun


@given(st.integers(0, 200_000), st.integers(0, 3))
def test_generated_bytes_are_as_long_as_they_say_and_the_same_each_time(length: int, seed: int) -> None:
    source = GeneratedSource(length, seed)
    assert len(source.read()) == length
    assert source.read() == source.read()
