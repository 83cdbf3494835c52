"""A temporary folder that is full or gone is said; what the source says passes."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest
from outside import small_disk

from stagesink.artifacts import ArtifactKey
from stagesink.errors import SinkError
from stagesink.sinks._http.body import sized
from stagesink.sinks._temporary import writing_temporary

DATA = os.urandom(3 << 20)


class Unsized:
    """Tells its size only at its end, as an archive does that is packed while it is read."""

    size = None

    def __init__(self, stream: Any = None) -> None:
        self.stream = stream or io.BytesIO(DATA)

    def open(self) -> BinaryIO:
        return self.stream


class Failing(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        raise OSError(28, "the source's own")


def put_by_client(source: Any) -> None:
    from stagesink.sinks.mlflow.address import Address
    from stagesink.sinks.mlflow.client import ClientRoot

    client = SimpleNamespace(log_artifact=lambda *_: None)
    ClientRoot(client, "run", Address("databricks")).put(ArtifactKey("run", "a"), source)


def spool(source: Any) -> None:
    with sized(source):
        pass


WAYS = [
    pytest.param(spool, id="spooled"),
    pytest.param(put_by_client, id="mlflow's client"),
]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Any:
    if request.param is put_by_client:
        pytest.importorskip("mlflow", reason="comes with an extra")
    return request.param


def test_a_full_temporary_folder(way: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path / "small") as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        with pytest.raises(SinkError) as caught:
            way(Unsized())
        assert type(caught.value) is SinkError
        assert str(caught.value) == (
            f"A temporary file could not be written in {disk}: No space left on device. "
            f"Free some space in {disk}, or set TMPDIR to another folder."
        )
        assert list(disk.iterdir()) == []


def test_a_temporary_folder_that_is_gone(way: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(SinkError, match=rf"written in {tmp_path}/gone: No such file or directory\. Free some space"):
        way(Unsized())


def test_no_temporary_folder_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    monkeypatch.setenv("TMPDIR", "/named")
    with pytest.raises(SinkError, match=r"in /named: No usable temporary directory found\. Free"), writing_temporary():
        none()


def test_what_the_source_says_passes(way: Any) -> None:
    with pytest.raises(OSError, match="the source's own") as caught:
        way(Unsized(Failing()))
    assert type(caught.value) is OSError


def test_errors_while_it_is_sent_are_not_the_temporary_folders() -> None:
    def send() -> None:
        with sized(Unsized()) as (stream, size):
            assert (stream.read(), size) == (DATA, len(DATA))
            raise OSError("of sending")

    with pytest.raises(OSError, match="of sending"):
        send()
