"""Runs that began without their workspace: it takes their ids as they are, and needs neither mlflow nor its plug-in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from azureml_lines import Job
from faults.proxy import Answer, DropReply

from stagesink import ArtifactUploader
from stagesink.errors import SinkError, TransientSinkError
from stagesink.outbox.settings import OutboxSettings
from stagesink.outbox.store import Outbox
from stagesink.outbox.sync import Sync
from stagesink.runs.sync import RunOutcome, RunSync
from stagesink.sinks import open_sink
from stagesink.trackers import MLflowSweepTracker
from stagesink.transfer import TransferOptions

EXPERIMENT = "an experiment"


@pytest.fixture
def outbox(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outbox]:
    """An outbox beside a workspace that no job's environment names a run of."""
    for name in ("AZUREML_RUN_ID", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name)
    path = str(tmp_path / "outbox")
    monkeypatch.setenv("STAGESINK_OUTBOX_PATH", path)
    monkeypatch.setenv("STAGESINK_MODE", "offline")
    found = Outbox(OutboxSettings(path=path))
    yield found
    found.close()


def sync(outbox: Outbox) -> list[RunOutcome]:
    runs = RunSync(outbox)
    with Sync(outbox, open_sink, TransferOptions(attempts=1), run_of=runs.run_of) as work:
        return [each for each in runs.everything(work) if isinstance(each, RunOutcome)]


def search(model: Path) -> tuple[str, str]:
    """Search offline, and return the ids of the search and of its one trial."""
    with MLflowSweepTracker(sink="azureml:", run_name="search") as sweep, sweep.trial(7) as trial:
        trial.log_params({"lr": 0.1, **{f"p{number}": number for number in range(150)}})
        for step in range(3):
            trial.log_metrics({"loss": step / 7, "odd": math.nan}, step)
        with ArtifactUploader(sweep.run_id, sink="azureml:") as uploader:
            assert uploader.upload_file(model) is False
    return str(sweep.run_id), str(trial.run_id)


def check(job: Job, outbox: Outbox, above: str, below: str) -> None:
    assert not outbox.rows()
    assert not outbox.runs.waiting()
    runs = job.service.state.runs
    parent, child = runs[above], runs[below]
    assert parent.experiment.name == child.experiment.name == EXPERIMENT
    assert (parent.status, child.status) == ("FINISHED", "FINISHED")
    assert (parent.name, child.name) == ("search", "trial-7")
    assert child.tags["mlflow.parentRunId"] == above
    assert child.tags["stagesink.local_run_id"] == below
    start = outbox.runs.get(below)
    assert start is not None
    assert child.started == start.start.time
    assert len(child.params) == 151
    points = sorted((each["step"], each["key"], each["value"]) for each in child.metrics)
    assert points == [(step, *each) for step in range(3) for each in (("loss", step / 7), ("odd", "NaN"))]
    sink = open_sink("azureml:")
    assert {stored.key.path for stored in sink.list(above)} == {"model.bin", "model.bin.manifest.json"}
    sink.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file = tmp_path / "model.bin"
    file.write_bytes(b"weights")
    return file


def test_a_run_that_began_offline_keeps_its_id(job: Job, outbox: Outbox, model: Path) -> None:
    above, below = search(model)
    assert job.service.calls == []  # offline: nobody was asked
    outcomes = sync(outbox)
    assert [(each.server_run_id, each.error) for each in outcomes] == [(above, None), (below, None)]
    check(job, outbox, above, below)
    job.service.calls.clear()
    assert sync(outbox) == []
    assert job.service.calls == []


@pytest.mark.parametrize("path", ["/runs/", "runs/log-batch", "runs/update"], ids=["make", "log", "end"])
def test_an_answer_that_is_lost_doubles_nothing(job: Job, outbox: Outbox, model: Path, path: str) -> None:
    above, below = search(model)
    method = "PATCH" if path == "/runs/" else "POST"
    job.lines.front.plan(DropReply(), times=2, method=method, path=path)
    for _ in range(3):
        errors = [each.error for each in sync(outbox)]
    assert not any(errors)
    check(job, outbox, above, below)
    assert job.service.calls.count("make") == 2


def test_a_workspace_that_cannot_be_reached_is_said_and_keeps_what_waits(
    job: Job, outbox: Outbox, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    above, below = search(model)
    job.lines.front.plan(DropReply(), times=1000)
    outcomes = sync(outbox)
    assert [type(each.error) for each in outcomes] == [TransientSinkError, TransientSinkError]
    (run, _), _ = outbox.runs.waiting()
    assert run.told(outcomes[0].sink).error == outcomes[0].error.message  # type: ignore[union-attr]
    job.lines.front.forget()
    sync(outbox)
    check(job, outbox, above, below)


@pytest.mark.parametrize("path", ["/runs/", "runs/get", "runs/log-batch", "runs/update"])
def test_a_proxys_page_is_taken_for_no_answer(job: Job, outbox: Outbox, model: Path, path: str) -> None:
    above, below = search(model)
    job.lines.front.plan(Answer(200, body=b"<!DOCTYPE html><html>Please sign in</html>"), times=1000, path=path)
    errors = [each.error for each in sync(outbox) if each.error is not None]
    assert {type(error) for error in errors} == {SinkError}
    assert "a proxy's page looks like this" in str(errors[0])
    assert outbox.runs.waiting()
    job.lines.front.forget()
    sync(outbox)
    check(job, outbox, above, below)


def test_tags_of_a_run_that_was_joined_without_its_workspace_are_added(job: Job, outbox: Outbox, model: Path) -> None:
    above, _ = search(model)
    sync(outbox)
    job.service.state.runs[above].tags["team"] = "theirs"
    with MLflowSweepTracker(above, sink="azureml:", tags={"team": "ours", "colour": "blue"}):
        pass
    assert [each.error for each in sync(outbox)] == [None]
    tags = job.service.state.runs[above].tags
    assert (tags["team"], tags["colour"], tags["stagesink.stage"]) == ("theirs", "blue", "hpo")
