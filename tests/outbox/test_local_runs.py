"""The journals of runs: what is in them after whatever happened to their writers."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from outside import python, running, said, small_disk

from stagesink.errors import InvalidKey, OutboxError, OutboxFull
from stagesink.outbox.local_runs import LocalRun, LocalRuns, RunStart, Told

SINK = "mlflow+http://user:secret@host:5000"
SHOWN = "mlflow+http://host:5000"


@pytest.fixture
def runs(tmp_path: Path) -> LocalRuns:
    return LocalRuns(tmp_path / "runs")


def begin(runs: LocalRuns, run_id: str = "a", *, joined: bool = False, time: int = 5) -> LocalRun:
    return runs.make(RunStart(run_id, SINK, time, joined=joined, name="a name", tags={"team": "vision"}))


def said_of(run: LocalRun) -> list[object]:
    return [event.get("said") for _, event in run.events()][1:]


def test_a_run_is_what_it_began_as_without_secrets(runs: LocalRuns) -> None:
    begin(runs)
    begin(runs, time=9)  # it stays as it is
    found = runs.get("a")
    assert found is not None
    assert found.start == RunStart("a", SHOWN, 5, name="a name", tags={"team": "vision"})
    assert b"secret" not in found.path.read_bytes()
    assert stat.S_IMODE(found.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(runs.folder.stat().st_mode) == 0o700


def test_to_look_for_one_makes_nothing(runs: LocalRuns) -> None:
    assert runs.get("a") is None
    assert runs.all() == []
    assert runs.on_server("a", SINK) == "a"
    assert not runs.folder.exists()


@pytest.mark.parametrize("torn", [b'{"said": 2', b"\0" * 5000, b'{"said": "' + b"x" * 200_000])
def test_a_line_that_a_killed_process_has_begun_is_cut_off(runs: LocalRuns, torn: bytes) -> None:
    run = begin(runs)
    run.add({"said": 1})
    whole = run.size
    with run.path.open("ab") as file:
        file.write(torn)
    assert said_of(run) == [1]
    assert run.size == whole
    run.add({"said": 3})
    assert said_of(run) == [1, 3]


def test_a_damaged_line_costs_no_other(runs: LocalRuns, caplog: pytest.LogCaptureFixture) -> None:
    run = begin(runs)
    run.add({"said": 1})
    with run.path.open("ab") as file:
        file.write(b"\0\0\n[]\n")
    run.add({"said": 2})
    assert said_of(run) == [1, 2]
    assert caplog.text.count("is damaged before byte") == 2


def test_a_run_whose_beginning_is_damaged_is_left_out(runs: LocalRuns, caplog: pytest.LogCaptureFixture) -> None:
    begin(runs, "good")
    begin(runs, "bad").path.write_bytes(b'{"event": "start"}\n')
    assert [run.run_id for run in runs.all()] == ["good"]
    assert "bad.jsonl is damaged" in caplog.text
    with pytest.raises(OutboxError, match="damaged"):
        runs.get("bad")


def test_many_processes_write_whole_lines(runs: LocalRuns) -> None:
    run = begin(runs)
    program = """
        import sys
        from pathlib import Path
        from stagesink.outbox.local_runs import LocalRuns
        run = LocalRuns(Path(sys.argv[1])).get("a")
        print("ready", flush=True)
        for number in range(50):
            run.add({"said": [sys.argv[2], number], "long": "x" * 5000})
    """
    with running(program, runs.folder, "p") as one, running(program, runs.folder, "q") as other:
        assert said(one) == said(other) == "ready"
        assert one.wait(60) == other.wait(60) == 0
    lines = said_of(run)
    for name in ("p", "q"):
        assert [line for line in lines if line[0] == name] == [[name, number] for number in range(50)]  # type: ignore[index]


def test_a_full_disk_leaves_whole_lines_alone(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        run = begin(LocalRuns(disk / "runs"))
        run.add({"said": 1})
        with pytest.raises(OutboxFull):
            run.add({"said": "x" * 100_000})
        assert said_of(run) == [1]
        run.add({"said": 2})
        assert said_of(run) == [1, 2]


@pytest.mark.parametrize("name", ["a.jsonl", "a.sent"])
def test_a_link_in_its_place_is_refused(runs: LocalRuns, tmp_path: Path, name: str) -> None:
    run = begin(runs)
    (tmp_path / "other").write_bytes(b"theirs\n")
    (runs.folder / name).unlink(missing_ok=True)
    os.symlink(tmp_path / "other", runs.folder / name)
    with pytest.raises(OutboxError):
        run.note(SINK, sent=1) if name == "a.sent" else run.add({"said": 1})
    assert (tmp_path / "other").read_bytes() == b"theirs\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("name", ["a.jsonl", "a.sent"])
def test_a_journal_of_another_user_says_nothing(runs: LocalRuns, name: str) -> None:
    begin(runs).note(SINK, run_id="theirs")
    assert runs.on_server("a", SINK) == "theirs"
    os.chown(runs.folder / name, 65534, 65534)
    with pytest.raises(OutboxError, match="another user's"):
        runs.on_server("a", SINK)


@pytest.mark.parametrize("run_id", ["../a", "a/b", "", "a\0"])
def test_what_can_be_no_file_is_refused(runs: LocalRuns, run_id: str) -> None:
    with pytest.raises(InvalidKey):
        begin(runs, run_id)


def test_what_a_server_knows_is_remembered_by_server(runs: LocalRuns) -> None:
    run = begin(runs)
    assert run.told(SINK) == Told()
    assert runs.on_server("a", SINK) is None
    run.note(SINK, experiment="7")
    run.note(SINK, run_id="theirs", sent=10)
    run.note(SHOWN, sending=20, error="gone")
    run.note(SHOWN, error=None)
    assert run.told(SINK) == Told("7", "theirs", 10, 20)
    assert runs.on_server("a", SINK) == "theirs"
    assert runs.on_server("a", "mlflow+http://other") is None
    assert runs.names_of("theirs", SINK) == {"theirs", "a"}
    assert runs.names_of("theirs", "mlflow+http://other") == {"theirs"}


def test_a_run_that_its_server_made_keeps_its_id(runs: LocalRuns) -> None:
    begin(runs, joined=True)
    assert runs.on_server("a", SINK) == "a"


def _tell(run: LocalRun) -> None:
    run.note(SINK, run_id="theirs", sent=run.size)


@pytest.mark.parametrize(
    ("steps", "waits"),
    [
        ([], True),
        ([_tell], False),
        ([_tell, lambda run: run.add({"said": 1})], True),
        ([lambda run: run.add({"event": "end"}), _tell], True),
        ([lambda run: run.add({"event": "end"}), _tell, lambda run: run.note(SINK, ended=run.size)], False),
    ],
)
def test_a_run_waits_until_its_server_knows_everything(
    runs: LocalRuns, steps: list[Callable[[LocalRun], object]], waits: bool
) -> None:
    run = begin(runs)
    for step in steps:
        step(run)
    assert [(found.run_id, uri) for found, uri in runs.waiting()] == ([("a", SHOWN)] if waits else [])


def test_only_one_tells_servers_at_a_time(runs: LocalRuns) -> None:
    run = begin(runs)
    program = """
        import sys
        from pathlib import Path
        from stagesink.outbox import local_runs
        local_runs._LOCK_SECONDS = 0.0
        try:
            with local_runs.LocalRuns(Path(sys.argv[1])).get("a").turn():
                print("mine")
        except local_runs.OutboxError as error:
            print(error)
    """
    with run.turn():
        assert "Another process is uploading run a." in python(program, runs.folder).stdout
    assert python(program, runs.folder).stdout == "mine\n"


def test_what_servers_have_known_for_long_is_forgotten_and_nothing_else(runs: LocalRuns) -> None:
    for run_id, known in (("known", True), ("used", True), ("a.b", True), ("waits", False)):
        run = begin(runs, run_id)
        if known:
            _tell(run)
    assert runs.gc({"used"}) == 0
    assert len(runs.all()) == 4
    assert runs.gc({"used"}, older_than=0.0) > 0
    assert {run.run_id for run in runs.all()} == {"used", "waits"}
    assert {file.stem for file in runs.folder.iterdir()} == {"used", "waits"}


def test_that_nobody_else_uploads_a_run_does_not_make_it_younger(runs: LocalRuns) -> None:
    _tell(begin(runs, "known"))
    for file in runs.folder.iterdir():
        os.utime(file, (1, 1))
    turn = LocalRun.turn

    def taken(run: LocalRun) -> Any:
        (runs.folder / f"{run.run_id}.lock").touch()  # as filelock before 4 leaves it
        return turn(run)

    with mock.patch.object(LocalRun, "turn", taken):
        assert runs.gc(set()) > 0


@pytest.mark.parametrize("run_id", ["../a", "a\0", "x" * 241])
def test_no_such_run_is_looked_for(runs: LocalRuns, run_id: str) -> None:
    begin(runs)
    assert runs.get(run_id) is None
