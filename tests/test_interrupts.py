"""Ctrl-C that comes in the middle of a wait is still one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import stagesink
from stagesink import ArtifactUploader
from stagesink.interrupts import interrupts_whole
from stagesink.outbox import background

Tear = Callable[[threading.Condition], None]


@pytest.fixture
def tear() -> Iterator[Tear]:
    """Have Ctrl-C come as this thread's wait takes its lock again: no signal meets that moment to order."""
    tears, here = [True], threading.get_ident()

    def call(condition: threading.Condition) -> None:
        restore = condition._acquire_restore

        def interrupted(state: Any) -> None:
            if tears and threading.get_ident() == here:
                raise KeyboardInterrupt
            restore(state)

        condition._acquire_restore = interrupted

    yield call
    tears.clear()


@pytest.fixture
def torn(tear: Tear, monkeypatch: pytest.MonkeyPatch) -> None:
    make, wait = threading.Condition.__init__, threading.Event.wait

    def waited(self: threading.Event, timeout: float | None = None) -> bool:
        """Wait a moment for what has happened already, too: a thread may have started before anybody waits for it."""
        if self.is_set():
            with self._cond:
                self._cond.wait(0.001)
        return wait(self, timeout)

    def made(self: threading.Condition, *arguments: Any) -> None:
        make(self, *arguments)
        tear(self)

    monkeypatch.setattr(threading.Condition, "__init__", made)
    monkeypatch.setattr(threading.Event, "wait", waited)


@pytest.mark.usefixtures("torn")
def test_what_python_makes_of_it_is_no_interrupt() -> None:
    with pytest.raises(RuntimeError):
        threading.Event().wait(0.01)


@pytest.mark.usefixtures("torn")
@pytest.mark.parametrize(
    "wait", [lambda: threading.Event().wait(0.01), lambda: Future[None]().result(0.01)], ids=["an event", "a future"]
)
def test_it_comes_out_as_what_it_is(wait: Callable[[], object]) -> None:
    with pytest.raises(KeyboardInterrupt), interrupts_whole():
        wait()


def fails() -> None:
    raise RuntimeError("other")


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="other"), interrupts_whole():
        fails()


def test_what_fails_while_an_interrupt_is_handled_is_none_itself() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(RuntimeError, match="other"), interrupts_whole():
            fails()


@pytest.mark.parametrize("in_the_background", [False, True])
@pytest.mark.usefixtures("torn")
def test_an_upload_is_not_said_to_have_failed(tmp_path: Path, in_the_background: bool) -> None:
    (tmp_path / "f").write_bytes(b"x")
    uploader = ArtifactUploader("run", sink=f"file:{tmp_path / 'store'}", background=in_the_background)
    with pytest.raises(KeyboardInterrupt):
        uploader.upload_file(tmp_path / "f")
    assert uploader.errors == []


def test_a_flush_ends_by_it(tear: Tear, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    (tmp_path / "store").write_bytes(b"no folder")
    uploader = ArtifactUploader("run", sink=f"file:{tmp_path / 'store'}", background=True)
    assert uploader.upload_file(tmp_path / "f")
    assert not stagesink.flush(60)
    tear(background.uploaders_here()[0]._changed)
    with pytest.raises(KeyboardInterrupt):
        stagesink.flush(60)
