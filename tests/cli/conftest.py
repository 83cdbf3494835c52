"""A small checkpoint, and the command run in this process."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner


class Answer(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Answer]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    logger = logging.getLogger("stagesink")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.fixture
def run() -> Run:
    from stagesink.cli.app import app

    def call(*args: str | Path) -> Answer:
        result = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="stagesink")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Answer(result.exit_code, result.stdout, result.stderr)

    return call


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Three files, one in a subfolder, and a lock that is never uploaded."""
    folder = tmp_path / "out" / "checkpoint"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.bin").write_bytes(b"m" * 1500)
    (folder / "optimizer.bin").write_bytes(b"o" * 500)
    (folder / "sub" / "notes.txt").write_text("hello")
    (folder / "train.lock").touch()
    return folder
