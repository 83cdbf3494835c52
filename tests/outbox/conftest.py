"""An outbox, a checkpoint, and a store that can be taken away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from outbox_store import Store

from stagesink.outbox.settings import OutboxSettings
from stagesink.outbox.store import Outbox


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
