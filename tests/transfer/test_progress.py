"""What is told about a transfer on its way, and how it is shown."""

from __future__ import annotations

import io
import os
import pty
import threading
from typing import Any

import pytest
from parts import QUICK, RUN, Recording, manifest_in, one, plan

from stagesink.artifacts import ArtifactKey
from stagesink.errors import SinkAuthError, TransferError, TransientSinkError
from stagesink.sinks.memory import MemorySink
from stagesink.testing import FaultySink, GeneratedSource, fails, loses_object
from stagesink.transfer import Progress, Transfer, TransferOptions, list_committed, progress_callback, restore, verify
from stagesink.transfer import progress as progress_module
from stagesink.transfer.progress import ProgressCounter, describe


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Progress]:
    """Every change is told, not only ten a second."""
    monkeypatch.setattr(progress_module, "_CALL_SECONDS", 0.0)
    return []


def moment(seconds: float, *, finished: bool = False, done: int = 3) -> Progress:
    return Progress("checkpoint", done, 8, 210_500_000, 577_000_000, seconds, finished)


FILES = {f"{n}.bin": bytes([n]) * (n * 1000) for n in range(20)}
TOTAL = sum(map(len, FILES.values()))


# -- what is told ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 4])
def test_the_last_call_says_finished_and_only_that_one(memory: MemorySink, told: list[Progress], workers: int) -> None:
    Transfer(memory, TransferOptions(workers=workers), progress=told.append).run(plan(FILES))
    assert [p.finished for p in told] == [False] * (len(told) - 1) + [True]
    last = told[-1]
    assert (last.files_done, last.files_total, last.bytes_done, last.bytes_total) == (20, 20, TOTAL, TOTAL)


@pytest.mark.parametrize("workers", [1, 4])
def test_files_done_never_falls_and_neither_do_bytes_when_nothing_fails(
    memory: MemorySink, told: list[Progress], workers: int
) -> None:
    Transfer(memory, TransferOptions(workers=workers), progress=told.append).run(plan(FILES))
    assert len(told) >= 20
    assert [p.files_done for p in told] == sorted(p.files_done for p in told)
    assert [p.bytes_done for p in told] == sorted(p.bytes_done for p in told)


def test_bytes_of_a_failed_attempt_are_taken_back(memory: MemorySink, told: list[Progress]) -> None:
    sink = FaultySink(memory, fails("put", TransientSinkError("cut off"), first=3, after_bytes=1000))
    Transfer(sink, QUICK, progress=told.append).run(plan(FILES))
    assert max(p.bytes_done for p in told) <= TOTAL
    assert told[-1].bytes_done == TOTAL


def test_bytes_of_an_object_that_the_store_lost_are_counted_once(memory: MemorySink, told: list[Progress]) -> None:
    Transfer(FaultySink(memory, loses_object(first=3)), QUICK, progress=told.append).run(plan(FILES))
    assert told[-1].bytes_done == TOTAL
    assert told[-1].files_done == 20


def test_bytes_of_a_file_that_failed_for_good_do_not_count(memory: MemorySink, told: list[Progress]) -> None:
    sink = FaultySink(memory, fails("put", SinkAuthError("no"), nth=1, after_bytes=1000))
    with pytest.raises(TransferError):
        Transfer(sink, QUICK, progress=told.append).run(plan({"a": b"x" * 5000}))
    assert (told[-1].bytes_done, told[-1].finished) == (0, True)


def test_unchanged_files_count_as_done(memory: MemorySink, told: list[Progress]) -> None:
    Transfer(memory).run(plan(FILES))
    Transfer(memory, progress=told.append).run(plan(FILES))
    assert (told[-1].files_done, told[-1].bytes_done, told[-1].finished) == (20, TOTAL, True)


def test_a_size_that_is_not_known_is_told_as_none(memory: MemorySink, told: list[Progress]) -> None:
    Transfer(memory, progress=told.append).run(one(GeneratedSource(5000, sized=False)))
    assert (told[-1].bytes_done, told[-1].bytes_total) == (5000, None)


def test_a_transfer_that_cannot_begin_is_told_as_finished_too(memory: MemorySink, told: list[Progress]) -> None:
    sink = FaultySink(memory, fails("open", SinkAuthError("no")))
    with pytest.raises(TransferError):
        Transfer(sink, QUICK, progress=told.append).run(plan(FILES))
    assert [p.finished for p in told].count(True) == 1


def test_verify_and_restore_tell_the_same_way(memory: MemorySink, told: list[Progress], tmp_path: Any) -> None:
    Transfer(memory).run(plan(FILES))
    committed = list_committed(memory, RUN)
    for operation in (
        lambda: verify(memory, committed, progress=told.append),
        lambda: restore(memory, committed, tmp_path / "there", progress=told.append),
    ):
        told.clear()
        operation()
        assert [p.finished for p in told] == [False] * (len(told) - 1) + [True]
        assert (told[-1].files_done, told[-1].bytes_done, told[-1].bytes_total) == (20, TOTAL, TOTAL)


def test_calls_are_about_ten_a_second_and_no_more(memory: MemorySink, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]

    class Clock:
        monotonic = staticmethod(lambda: now[0])

    monkeypatch.setattr(progress_module, "time", Clock)
    calls: list[Progress] = []
    counter = ProgressCounter("x", 1, 10_000, calls.append)
    for _ in range(10_000):
        now[0] += 0.001
        counter.add_bytes(1)
    assert 90 <= len(calls) <= 101
    assert calls[-1].seconds <= 10.0 + 1e-6


def test_nothing_is_told_after_the_end() -> None:
    calls: list[Progress] = []
    counter = ProgressCounter("x", 1, 10, calls.append)
    counter.finish()
    counter._told = 0.0  # long ago
    counter.add_bytes(5)  # a thread that Ctrl-C could not wait for
    counter.tick()
    counter.finish()
    assert [p.finished for p in calls] == [True]


def test_many_threads_count_exactly(told: list[Progress]) -> None:
    counter = ProgressCounter("x", 8, 8000, told.append)

    def work() -> None:
        for _ in range(1000):
            counter.add_bytes(1)
        counter.add_file()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counter.finish()
    assert (told[-1].bytes_done, told[-1].files_done) == (8000, 8)
    assert [p.bytes_done for p in told] == sorted(p.bytes_done for p in told)


class Stop(Exception):
    pass


@pytest.mark.parametrize("workers", [1, 4])
def test_a_callback_that_raises_stops_the_transfer_with_its_own_error_and_nothing_is_committed(
    memory: MemorySink, told: list[Progress], workers: int
) -> None:
    def callback(progress: Progress) -> None:
        if not progress.finished:
            raise Stop

    sink = Recording(memory)
    with pytest.raises(Stop):
        Transfer(sink, TransferOptions(workers=workers), progress=callback).run(plan(FILES))
    assert list_committed(memory, RUN) == ()
    assert len(sink.asked("put")) == len(set(sink.asked("put")))  # no failure of the backend, so not tried again


def test_a_callback_that_raises_at_the_end_comes_after_the_commit(memory: MemorySink) -> None:
    def callback(progress: Progress) -> None:
        if progress.finished:
            raise Stop

    with pytest.raises(Stop):
        Transfer(memory, progress=callback).run(plan(FILES))
    assert manifest_in(memory) is not None


# -- how it is shown ---------------------------------------------------------------------------------------------------


def test_lines_come_every_30_seconds_and_a_short_transfer_shows_none() -> None:
    stream = io.StringIO()
    show = progress_callback("lines", stream)
    assert show is not None
    for second in range(0, 300):
        show(moment(second / 10))
    assert stream.getvalue() == ""
    for second in range(30, 121):
        show(moment(float(second)))
    show(moment(121.0, finished=True))
    lines = stream.getvalue().splitlines()
    assert [line.rpartition(", ")[2] for line in lines] == ["30 s", "60 s", "90 s", "120 s"]
    assert lines[0] == "stagesink: checkpoint: 3/8 files, 210.5 of 577.0 MB, 30 s"


def test_lines_begin_anew_with_the_next_transfer() -> None:
    stream = io.StringIO()
    show = progress_callback("lines", stream)
    assert show is not None
    show(moment(35.0))
    show(moment(40.0, finished=True))
    show(moment(31.0))
    assert len(stream.getvalue().splitlines()) == 2


def test_a_line_without_a_known_size_has_no_total() -> None:
    assert describe(Progress("a", 0, 1, 1_500_000, None, 2.0)) == "a: 0/1 files, 1.5 MB, 2 s"


def test_quiet_shows_nothing_at_all(capfd: pytest.CaptureFixture[str], memory: MemorySink) -> None:
    assert progress_callback("none") is None
    Transfer(memory, progress=progress_callback("none")).run(plan(FILES))
    assert capfd.readouterr() == ("", "")


def test_auto_is_lines_where_no_terminal_is(memory: MemorySink) -> None:
    stream = io.StringIO()
    Transfer(memory, progress=progress_callback("auto", stream)).run(plan(FILES))
    assert stream.getvalue() == ""


def test_without_standard_error_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    assert progress_callback("auto") is None


def test_auto_is_a_bar_on_a_terminal(memory: MemorySink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    leader, follower = pty.openpty()
    shown: list[bytes] = []

    def watch() -> None:
        while True:
            try:
                data = os.read(leader, 65536)
            except OSError:  # Linux says so when the last writer is gone
                return
            if not data:
                return
            shown.append(data)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with os.fdopen(follower, "w") as stream:
        show = progress_callback("auto", stream)
        assert show is not None
        show(moment(1.0))
        show(moment(2.0, finished=True, done=8))
    watcher.join()
    os.close(leader)
    text = b"".join(shown).decode()
    assert "checkpoint" in text
    assert "8/8 files" in text
    assert text.rstrip().endswith("\x1b[2K") or "\x1b[?25h" in text  # the bar is gone and the cursor is back


def test_one_bar_serves_several_transfers_one_after_another(memory: MemorySink) -> None:
    stream = io.StringIO()
    transfer = Transfer(memory, progress=progress_callback("bar", stream))
    for run_id in ("one", "two"):
        transfer.run(plan(FILES, run_id=run_id))
    assert [len(list_committed(memory, run_id)) for run_id in ("one", "two")] == [1, 1]


class _Dead(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def _closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("make", [_Dead, _closed], ids=["broken pipe", "closed"])
@pytest.mark.parametrize("style", ["lines", "bar"])
def test_a_terminal_that_went_away_does_not_stop_the_upload(
    make: Any, style: Any, memory: MemorySink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "_CALL_SECONDS", 0.0)
    monkeypatch.setattr(progress_module, "_LINE_SECONDS", 0.0)
    Transfer(memory, progress=progress_callback(style, make())).run(plan(FILES))
    assert memory.stat(ArtifactKey(RUN, "tree.manifest.json")) is not None
