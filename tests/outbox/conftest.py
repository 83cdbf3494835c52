"""An outbox, a checkpoint, and a store that can be taken away."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stagesink.outbox.settings import OutboxSettings
from stagesink.outbox.store import Outbox


class Store:
    """A folder that a ``file:`` sink stores in; a file of its name makes every upload fail."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"file:{folder}"

    def take_away(self) -> None:
        self.folder.write_text("not a folder")

    def bring_back(self) -> None:
        self.folder.unlink()

    def files(self, run_id: str = "run") -> dict[str, bytes]:
        """What lies there, read without stagesink; manifests left out."""
        root = self.folder / run_id
        found = {str(each.relative_to(root)): each.read_bytes() for each in root.rglob("*") if each.is_file()}
        return {name: data for name, data in found.items() if not name.endswith("manifest.json")}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def settings(tmp_path: Path) -> OutboxSettings:
    return OutboxSettings(path=str(tmp_path / "outbox"), keep_free=0)


@pytest.fixture
def outbox(settings: OutboxSettings) -> Iterator[Outbox]:
    opened = Outbox(settings)
    yield opened
    opened.close()


@pytest.fixture
def reopened(settings: OutboxSettings) -> Iterator[Outbox]:
    """The same outbox, as another process sees it."""
    opened = Outbox(replace(settings))
    yield opened
    opened.close()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint-in-work"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.bin").write_bytes(b"m" * (2 << 20))
    (folder / "sub" / "ünï code #1.json").write_text("{}")
    (folder / "empty").touch()
    return folder


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
