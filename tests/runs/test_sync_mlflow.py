"""Runs that began without their server, brought to a real one and read back with mlflow's own client."""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from faults.proxy import Answer, DropReply, FaultProxy, Reset
from mlflow_servers import MlflowServer
from outside import python
from typer.testing import CliRunner

from stagesink import upload_training_artifacts
from stagesink.cli.app import app
from stagesink.errors import RunNotFound, TransientSinkError
from stagesink.outbox.settings import OutboxSettings
from stagesink.outbox.store import Outbox
from stagesink.outbox.sync import Sync
from stagesink.runs.server import MlflowRuns
from stagesink.runs.sync import RunOutcome, RunSync
from stagesink.sinks import open_sink
from stagesink.sinks.runs import Logged
from stagesink.trackers import MLflowConversionTracker, MLflowSweepTracker, MLflowTrainingTracker
from stagesink.transfer import TransferOptions

OPTIONS = TransferOptions(attempts=1)
_RESET = Reset()


@pytest.fixture
def server(mlflow_server: MlflowServer, mlflow: Any, monkeypatch: pytest.MonkeyPatch) -> MlflowServer:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return mlflow_server


@pytest.fixture
def client(server: MlflowServer, mlflow: Any) -> Any:
    return mlflow.MlflowClient(server.url)


@pytest.fixture
def outbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outbox]:
    path = str(tmp_path / "outbox")
    monkeypatch.setenv("STAGESINK_OUTBOX_PATH", path)
    found = Outbox(OutboxSettings(path=path))
    yield found
    found.close()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGESINK_MODE", "offline")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"weights")
    return folder


@pytest.fixture
def experiment(server: MlflowServer, client: Any, tmp_path: Path) -> str:
    name = f"offline {tmp_path}"
    client.create_experiment(name)
    return name


def synced(outbox: Outbox) -> list[RunOutcome]:
    """Sync once, and return what came of the runs; no upload may be left."""
    runs = RunSync(outbox)
    with Sync(outbox, open_sink, OPTIONS, run_of=runs.run_of) as sync:
        outcomes = list(runs.everything(sync))
    found = [each for each in outcomes if isinstance(each, RunOutcome)]
    failed = [each for each in outcomes if each.error is not None]
    assert not failed, failed
    assert not outbox.rows()
    assert not outbox.runs.waiting()
    return found


def artifacts(server: MlflowServer, run: Any) -> set[str]:
    """Return what a run has, without the notes that servers before 2.17 keep."""
    return {path for path in server.listed(run.info.run_id) if not path.startswith(".stagesink/")}


@contextmanager
def gone(proxy: FaultProxy, fault: Reset | Answer = _RESET) -> Iterator[None]:
    """Nobody answers in the block, or not what was asked for."""
    proxy.plan(fault, times=1000)
    yield
    proxy.forget()


def the_run(client: Any, name: str, local_id: str | None) -> Any:
    """Return the one run of an experiment that was made for a local one."""
    experiment = client.get_experiment_by_name(name).experiment_id
    found = client.search_runs([experiment], f"tags.`stagesink.local_run_id` = '{local_id}'")
    assert len(found) == 1
    return found[0]


def history(client: Any, run: Any, key: str) -> list[tuple[int, float]]:
    return sorted((each.step, each.value) for each in client.get_metric_history(run.info.run_id, key))


# -- offline -----------------------------------------------------------------------------------------------------------


def test_a_run_that_began_offline_is_on_the_server_as_if_it_had_begun_there(
    server: MlflowServer,
    client: Any,
    outbox: Outbox,
    checkpoint: Path,
    experiment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as offline:
        offline.setenv("STAGESINK_MODE", "offline")
        with MLflowTrainingTracker(
            sink=server.sink_uri, experiment=experiment, run_name="a name", tags={"team": "vision"}
        ) as tracker:
            assert tracker.log_params({"lr": 0.1, "layers": [1, 2]}) is False
            for step in range(3):
                assert tracker.log_metrics({"loss": 1 / (step + 1), "bad": math.nan}, step) is False
            tracker.set_tags({"colour": "blue"})
            assert tracker.log_training_artifacts(checkpoint) == {"checkpoint": False}
            assert not client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    local = outbox.runs.get(str(tracker.run_id))
    assert local is not None
    synced(outbox)
    run = the_run(client, experiment, tracker.run_id)
    assert run.info.run_name == "a name"
    assert run.info.status == "FINISHED"
    assert run.info.start_time == local.start.time
    assert run.info.end_time == next(event["time"] for _, event in local.events() if event["event"] == "end")
    assert run.data.params == {"lr": "0.1", "layers": "[1, 2]"}
    assert history(client, run, "loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert [step for step, _ in history(client, run, "bad")] == [0, 1, 2]
    tags = run.data.tags
    assert tags["team"] == "vision"
    assert tags["colour"] == "blue"
    assert tags["stagesink.stage"] == "training"
    assert tags["mlflow.user"]
    assert tags["mlflow.source.name"] == sys.argv[0]
    assert artifacts(server, run) == {"checkpoint/model.bin", "checkpoint.manifest.json"}


def test_runs_that_tags_of_a_joined_run_name_are_the_servers(
    server: MlflowServer, client: Any, outbox: Outbox, experiment: str, offline: None
) -> None:
    with MLflowTrainingTracker(sink=server.sink_uri, experiment=experiment) as first:
        pass
    with MLflowTrainingTracker(sink=server.sink_uri, experiment=experiment) as training:
        pass
    with MLflowConversionTracker(first.run_id, sink=server.sink_uri, training_run_id=training.run_id) as joined:
        joined.set_tags({"other_run_id": str(training.run_id), "itself_run_id": str(first.run_id)})
    synced(outbox)
    there = the_run(client, experiment, training.run_id).info.run_id
    tags = the_run(client, experiment, first.run_id).data.tags
    assert tags["stagesink.training_run_id"] == tags["other_run_id"] == there
    assert tags["stagesink.stage"] == "training"


def test_runs_that_name_each_other_are_made_in_their_order(
    server: MlflowServer, client: Any, outbox: Outbox, experiment: str, offline: None
) -> None:
    with MLflowSweepTracker(sink=server.sink_uri, experiment=experiment) as sweep:
        with sweep.trial(7) as trial:
            pass
        with MLflowTrainingTracker(sink=server.sink_uri, experiment=experiment, sweep_run_id=sweep.run_id) as training:
            pass
        sweep.set_tags({"best_run_id": str(trial.run_id), "trained_run_id": str(training.run_id)})
    synced(outbox)
    above, below, trained = (the_run(client, experiment, each.run_id) for each in (sweep, trial, training))
    assert below.data.tags["mlflow.parentRunId"] == above.info.run_id
    assert trained.data.tags["stagesink.sweep_run_id"] == above.info.run_id
    assert above.data.tags["best_run_id"] == below.info.run_id
    assert above.data.tags["trained_run_id"] == trained.info.run_id


def test_tags_of_a_run_that_was_joined_without_its_server_are_added(
    server: MlflowServer, client: Any, outbox: Outbox, experiment: str, offline: None
) -> None:
    run = client.create_run(client.get_experiment_by_name(experiment).experiment_id, tags={"team": "theirs"})
    for _ in range(2):
        with MLflowTrainingTracker(
            run.info.run_id, sink=server.sink_uri, tags={"team": "ours", "colour": "blue"}
        ) as tracker:
            tracker.set_tags({"late": "1"})
    synced(outbox)
    tags = client.get_run(run.info.run_id).data.tags
    assert (tags["team"], tags["colour"], tags["stagesink.stage"], tags["late"]) == ("theirs", "blue", "training", "1")


def test_a_second_sync_changes_nothing(
    server: MlflowServer, client: Any, outbox: Outbox, experiment: str, offline: None
) -> None:
    with MLflowTrainingTracker(sink=server.sink_uri, experiment=experiment) as tracker:
        tracker.log_metrics({"loss": 1}, 1)
    synced(outbox)
    before = the_run(client, experiment, tracker.run_id).to_dictionary()
    assert synced(outbox) == []
    assert the_run(client, experiment, tracker.run_id).to_dictionary() == before


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_it_ends_as_its_block_ended(
    server: MlflowServer,
    client: Any,
    outbox: Outbox,
    experiment: str,
    offline: None,
    error: type[BaseException],
    status: str,
) -> None:
    with (
        pytest.raises(error),
        MLflowTrainingTracker(sink=server.sink_uri, experiment=experiment) as tracker,
    ):
        raise error
    synced(outbox)
    assert the_run(client, experiment, tracker.run_id).info.status == status


def test_trials_are_nested_and_later_stages_name_the_runs_of_the_server(
    server: MlflowServer, client: Any, outbox: Outbox, experiment: str, offline: None
) -> None:
    with MLflowSweepTracker(sink=server.sink_uri, experiment=experiment) as sweep, sweep.trial(3) as trial:
        trial.log_metrics({"accuracy": 0.5})
    with MLflowTrainingTracker(sink=server.sink_uri, experiment=experiment, sweep_run_id=sweep.run_id) as training:
        pass
    synced(outbox)
    above = the_run(client, experiment, sweep.run_id)
    below = the_run(client, experiment, trial.run_id)
    assert below.data.tags["mlflow.parentRunId"] == above.info.run_id
    assert below.info.experiment_id == above.info.experiment_id
    assert below.data.metrics == {"accuracy": 0.5}
    assert the_run(client, experiment, training.run_id).data.tags["stagesink.sweep_run_id"] == above.info.run_id


def test_a_helper_without_a_tracker_gets_a_run_that_ends_with_its_process(
    server: MlflowServer, client: Any, outbox: Outbox, checkpoint: Path, experiment: str
) -> None:
    program = f"""
        from stagesink import upload_training_artifacts
        for _ in range(2):
            print(upload_training_artifacts({str(checkpoint)!r}, sink={server.sink_uri!r}))
    """
    done = python(
        program,
        STAGESINK_MODE="offline",
        STAGESINK_OUTBOX_PATH=str(outbox.path),
        MLFLOW_EXPERIMENT_NAME=experiment,
    )
    assert done.stdout.splitlines() == ["{'checkpoint': False}"] * 2
    (outcome,) = synced(outbox)
    run = the_run(client, experiment, outcome.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["stagesink.stage"] == "training"
    assert artifacts(server, run) == {"checkpoint/model.bin", "checkpoint.manifest.json"}


@pytest.mark.parametrize("named", ["here", "nowhere", "no id of MLflow's", "on another server"])
def test_an_experiment_that_the_environment_named_by_its_id_when_the_run_began(
    server: MlflowServer,
    client: Any,
    outbox: Outbox,
    offline: None,
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    there = server.experiment()
    ids = {"nowhere": "987654321", "no id of MLflow's": "5b1c7a3e-0000-4c4c-8c8c-2f6d1e9ab001"}
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", ids.get(named, there))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000" if named == "on another server" else server.url)
    with MLflowTrainingTracker(sink=server.sink_uri):
        pass
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "123456789")  # where the sync runs it may be another, or none
    (outcome,) = synced(outbox)
    assert client.get_run(outcome.server_run_id).info.experiment_id == (there if named == "here" else "0")
    assert ("has no experiment" in caplog.text) == (named in ids)


def test_offline_what_a_servers_own_run_logs_waits_too(
    server: MlflowServer, client: Any, outbox: Outbox, checkpoint: Path, offline: None
) -> None:
    run_id = server.run()
    with MLflowTrainingTracker(run_id, sink=server.sink_uri) as tracker:
        assert tracker.run_id == run_id
        assert tracker.log_metrics({"loss": 1}, 5) is False
        assert tracker.log_training_artifacts(checkpoint) == {"checkpoint": False}
    synced(outbox)
    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"  # it was joined
    assert history(client, run, "loss") == [(5, 1.0)]
    assert "checkpoint/model.bin" in artifacts(server, run)
    assert "stagesink.local_run_id" not in run.data.tags


@pytest.mark.once
def test_the_same_run_goes_to_several_servers(
    mlflow_s3_server: MlflowServer,
    mlflow: Any,
    server: MlflowServer,
    client: Any,
    outbox: Outbox,
    checkpoint: Path,
    experiment: str,
    offline: None,
    tmp_path: Path,
) -> None:
    with MLflowTrainingTracker(sink=server.sink_uri, experiment=experiment) as tracker:
        tracker.log_metrics({"loss": 1}, 1)
        upload_training_artifacts(checkpoint, run_id=tracker.run_id, sink=mlflow_s3_server.sink_uri)
        upload_training_artifacts(checkpoint, run_id=tracker.run_id, sink=f"file:{tmp_path}/store")
    synced(outbox)
    other = mlflow.MlflowClient(mlflow_s3_server.url)
    for here in (client, other):
        run = the_run(here, experiment, tracker.run_id)
        assert run.info.status == "FINISHED"
        assert history(here, run, "loss") == [(1, 1.0)]
    assert "checkpoint/model.bin" in artifacts(mlflow_s3_server, run)
    assert (tmp_path / "store" / str(tracker.run_id) / "checkpoint" / "model.bin").read_bytes() == b"weights"
    assert synced(outbox) == []


# -- no server at the start, or later ----------------------------------------------------------------------------------


def test_when_the_server_does_not_answer_the_run_begins_here_and_goes_on_there(
    server: MlflowServer,
    client: Any,
    outbox: Outbox,
    checkpoint: Path,
    experiment: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with FaultProxy(server.port) as proxy:
        sink = f"mlflow+http://127.0.0.1:{proxy.port}"
        with gone(proxy):
            tracker = MLflowTrainingTracker(sink=sink, experiment=experiment)
            with caplog.at_level(logging.WARNING, logger="stagesink"):
                tracker.__enter__()
            (line,) = caplog.messages
            assert f"run {tracker.run_id} waits in {outbox.path} until `stagesink sync`" in line
            assert tracker.log_metrics({"loss": 1}, 1) is False
        local_id = tracker.run_id
        # The server is back, but knows no such run: nothing is asked of it.
        assert tracker.log_training_artifacts(checkpoint) == {"checkpoint": False}
        synced_runs = RunSync(outbox)
        with Sync(outbox, open_sink, OPTIONS, run_of=synced_runs.run_of) as sync:
            assert [each.error for each in synced_runs.everything(sync)] == [None, None]
        run = the_run(client, experiment, local_id)
        assert run.info.status == "RUNNING"
        # Now it does: uploads of the same process go to the run there.
        (checkpoint / "model.bin").write_bytes(b"newer")
        assert tracker.log_training_artifacts(checkpoint) == {"checkpoint": True}
        assert tracker.log_metrics({"loss": 0.5}, 2) is False
        tracker.__exit__(None, None, None)
        synced(outbox)
    run = client.get_run(run.info.run_id)
    assert run.info.status == "FINISHED"
    assert history(client, run, "loss") == [(1, 1.0), (2, 0.5)]
    landed = server.downloaded(run.info.run_id, checkpoint.parent, "checkpoint/model.bin")
    assert landed["checkpoint/model.bin"] == b"newer"


@pytest.mark.parametrize("fault", [Reset(), Answer(401)], ids=["gone", "the login has expired"])
def test_what_the_server_does_not_take_meanwhile_waits(
    server: MlflowServer,
    client: Any,
    outbox: Outbox,
    experiment: str,
    caplog: pytest.LogCaptureFixture,
    fault: Reset | Answer,
) -> None:
    with FaultProxy(server.port) as proxy:
        sink = f"mlflow+http://127.0.0.1:{proxy.port}"
        with MLflowTrainingTracker(sink=sink, experiment=experiment) as tracker:
            assert tracker.log_metrics({"loss": 1}, 1) is True
            with gone(proxy, fault):
                assert tracker.log_metrics({"loss": 0.5}, 2) is False
                assert tracker.log_params({"late": 1}) is False
            assert tracker.log_metrics({"loss": 0.25}, 3) is True
            proxy.plan(DropReply(), path="log-batch")
            assert tracker.log_metrics({"loss": 0.125}, 4) is False  # it has arrived, but nobody said so
        synced(outbox)
    run = client.get_run(tracker.run_id)
    assert history(client, run, "loss") == [(1, 1.0), (2, 0.5), (3, 0.25), (4, 0.125)]
    assert run.data.params == {"late": "1"}
    assert run.info.status == "FINISHED"
    assert len([line for line in caplog.messages if "waits in" in line]) == 1


def test_a_tracker_that_is_used_again_keeps_its_runs_apart(
    server: MlflowServer, client: Any, outbox: Outbox, experiment: str
) -> None:
    with FaultProxy(server.port) as proxy:
        tracker = MLflowTrainingTracker(sink=f"mlflow+http://127.0.0.1:{proxy.port}", experiment=experiment)
        ids = []
        for value in (1, 2):
            with tracker:
                ids.append(tracker.run_id)
                with gone(proxy):
                    assert tracker.log_metrics({"loss": value}, 1) is False
        synced(outbox)
    assert len(set(ids)) == 2
    assert [history(client, client.get_run(each), "loss") for each in ids] == [[(1, 1.0)], [(1, 2.0)]]


@pytest.mark.parametrize("fault", [Reset(), Answer(401)], ids=["gone", "the login has expired"])
def test_an_end_that_the_server_did_not_hear_waits(
    server: MlflowServer, client: Any, outbox: Outbox, experiment: str, fault: Reset | Answer
) -> None:
    with FaultProxy(server.port) as proxy:
        tracker = MLflowTrainingTracker(sink=f"mlflow+http://127.0.0.1:{proxy.port}", experiment=experiment)
        tracker.__enter__()
        with gone(proxy, fault):
            tracker.__exit__(None, None, None)
        assert client.get_run(tracker.run_id).info.status == "RUNNING"
        synced(outbox)
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


# -- syncs that are killed, or lose answers, or run side by side -------------------------------------------------------

_KILLED = """
    import os, signal, sys
    import mlflow
    from mlflow import MlflowClient
    from stagesink import ArtifactUploader
    from stagesink.runs import sync as run_sync
    from stagesink.outbox.local_runs import LocalRun
    from stagesink.outbox.settings import OutboxSettings
    from stagesink.outbox.store import Outbox
    from stagesink.outbox.sync import Sync
    from stagesink.runs.server import MlflowRuns
    from stagesink.sinks import open_sink
    from stagesink.trackers import MLflowSweepTracker
    from stagesink.transfer import TransferOptions

    sink, experiment, model, folder, how = sys.argv[1:]
    run_sync.MOST_POINTS = 2  # so that there are several batches

    def begin():
        with MLflowSweepTracker(sink=sink, experiment=experiment) as sweep, sweep.trial(1) as trial:
            trial.log_params({"lr": 0.1})
            for step in range(5):
                trial.log_metrics({"loss": step / 7, "odd": float("nan" if step % 2 else "inf")}, step)
            trial.set_tags({"colour": "blue"})
            with ArtifactUploader(trial.run_id, sink=sink) as uploader:
                uploader.upload_file(model)
        return trial.run_id

    def sync(path, killed_at):
        calls = 0

        def step():
            nonlocal calls
            if calls == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1

        def with_steps(kind, name):
            call = getattr(kind, name)

            def stepping(*arguments, **named):
                step()
                result = call(*arguments, **named)
                step()
                return result

            setattr(kind, name, stepping)

        for kind, name in [(LocalRun, "note"), (Outbox, "remove"), *((MlflowRuns, n) for n in ("make", "log", "end"))]:
            with_steps(kind, name)
        outbox = Outbox(OutboxSettings(path=path))
        runs = run_sync.RunSync(outbox)
        with Sync(outbox, open_sink, TransferOptions(attempts=1), run_of=runs.run_of) as work:
            for outcome in runs.everything(work):
                assert outcome.error is None, outcome.error
        assert not outbox.rows()
        assert not outbox.runs.waiting()

    def in_a_child(work):
        child = os.fork()
        if child == 0:
            try:
                work()
                os._exit(0)
            finally:
                os._exit(1)  # after a traceback
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL), code
        return code == 0

    def begun(number):
        path = os.environ["STAGESINK_OUTBOX_PATH"] = f"{folder}/{number}"
        return path, begin()

    if how == "each step":
        number, ended = 0, False
        while not ended:
            path, run_id = begun(number)
            ended = in_a_child(lambda: sync(path, number))
            assert ended or in_a_child(lambda: sync(path, -1))
            print(run_id, number)
            number += 1
    else:  # each sync gets a bit further than the one before, until one comes to its end
        for stride in (1, 3):
            path, run_id = begun(stride)
            killed = 0
            while not in_a_child(lambda: sync(path, killed * stride)):
                killed += 1
            print(run_id, killed)
"""


@pytest.mark.once
@pytest.mark.parametrize(
    "how", ["again and again", pytest.param("each step", marks=[pytest.mark.long, pytest.mark.timeout(900)])]
)
def test_syncs_that_are_killed_bring_everything_once(
    server: MlflowServer, client: Any, experiment: str, checkpoint: Path, tmp_path: Path, how: str
) -> None:
    done = python(
        _KILLED,
        *(server.sink_uri, experiment, checkpoint / "model.bin", tmp_path / "outboxes", how),
        timeout=600,
        STAGESINK_MODE="offline",
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
    )
    told = dict(line.split() for line in done.stdout.splitlines())
    assert len(told) >= 2
    assert max(map(int, told.values())) > 5
    for local_id in told:
        run = the_run(client, experiment, local_id)
        assert run.info.status == "FINISHED"
        assert run.data.params == {"lr": "0.1"}
        assert run.data.tags["colour"] == "blue"
        assert history(client, run, "loss") == [(step, step / 7) for step in range(5)]
        assert [step for step, _ in history(client, run, "odd")] == [0, 1, 2, 3, 4]
        assert artifacts(server, run) == {"model.bin", "model.bin.manifest.json"}
        assert client.get_run(run.data.tags["mlflow.parentRunId"]).data.tags["stagesink.stage"] == "hpo"
    # Each pair was made once.
    assert len(client.search_runs([run.info.experiment_id], max_results=1000)) == 2 * len(told)


@pytest.mark.parametrize("call", ["runs/create", "runs/log-batch", "runs/update"])
def test_an_answer_that_is_lost_doubles_nothing(
    server: MlflowServer, client: Any, outbox: Outbox, experiment: str, offline: None, call: str
) -> None:
    with FaultProxy(server.port) as proxy:
        sink = f"mlflow+http://127.0.0.1:{proxy.port}"
        with MLflowTrainingTracker(sink=sink, experiment=experiment) as tracker:
            tracker.log_metrics({"loss": 1}, 1)
        proxy.plan(DropReply(), path=call)
        runs = RunSync(outbox)
        with Sync(outbox, open_sink, OPTIONS, run_of=runs.run_of) as sync:
            (outcome,) = runs.everything(sync)
        assert isinstance(outcome.error, TransientSinkError)
        synced(outbox)
    run = the_run(client, experiment, tracker.run_id)
    assert run.info.status == "FINISHED"
    assert history(client, run, "loss") == [(1, 1.0)]


@pytest.mark.filterwarnings("ignore")  # MLflow has come to warn of stores in files
def test_a_batch_that_may_have_arrived_is_not_doubled_where_metrics_are_files(
    mlflow: Any, outbox: Outbox, offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = f"file://{tmp_path}/mlruns"
    with MLflowTrainingTracker(sink=f"mlflow+{store}", experiment="in files") as tracker:
        for step in range(3):
            tracker.log_metrics({"loss": step / 7, "odd": math.nan}, step)
    log = MlflowRuns.log

    def log_and_lose_the_answer(runs: MlflowRuns, run_id: str, logged: Logged) -> None:
        log(runs, run_id, logged)
        raise TransientSinkError("The answer was lost.")

    with monkeypatch.context() as lost:
        lost.setattr(MlflowRuns, "log", log_and_lose_the_answer)
        runs = RunSync(outbox)
        with Sync(outbox, open_sink, OPTIONS, run_of=runs.run_of) as sync:
            (outcome,) = runs.everything(sync)
        assert isinstance(outcome.error, TransientSinkError)
    synced(outbox)
    client = mlflow.MlflowClient(store)
    run = the_run(client, "in files", tracker.run_id)
    assert history(client, run, "loss") == [(step, step / 7) for step in range(3)]
    assert [step for step, _ in history(client, run, "odd")] == [0, 1, 2]


def test_two_syncs_at_once_make_it_once(
    server: MlflowServer, client: Any, outbox: Outbox, experiment: str, offline: None
) -> None:
    with MLflowTrainingTracker(sink=server.sink_uri, experiment=experiment) as tracker:
        for step in range(50):
            tracker.log_metrics({"loss": step}, step)
    barrier = threading.Barrier(3)

    def sync(_: int) -> list[RunOutcome]:
        here = Outbox(outbox.settings)
        barrier.wait()
        try:
            return synced(here)
        finally:
            here.close()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(sync, range(3)))
    run = the_run(client, experiment, tracker.run_id)
    assert history(client, run, "loss") == [(step, float(step)) for step in range(50)]


# -- what servers refuse -----------------------------------------------------------------------------------------------


def test_what_a_server_never_takes_does_not_keep_the_rest_from_it(
    server: MlflowServer, client: Any, outbox: Outbox, experiment: str, offline: None, caplog: pytest.LogCaptureFixture
) -> None:
    with MLflowTrainingTracker(sink=server.sink_uri, experiment=experiment) as tracker:
        tracker.log_params({"good": 1, "b*d": 2})
        tracker.log_metrics({"loss": 1, "l*ss": 2}, 1)
    synced(outbox)
    run = the_run(client, experiment, tracker.run_id)
    assert run.data.params == {"good": "1"}
    assert run.data.metrics == {"loss": 1}
    assert any("b*d" in line and "l*ss" in line for line in caplog.messages)


def test_a_run_that_was_deleted_on_the_server_is_not_made_again(
    server: MlflowServer, client: Any, outbox: Outbox, experiment: str, offline: None
) -> None:
    with MLflowTrainingTracker(sink=server.sink_uri, experiment=experiment) as tracker:
        pass
    synced(outbox)
    server.delete_run(the_run(client, experiment, tracker.run_id).info.run_id)
    with MLflowTrainingTracker(tracker.run_id, sink=server.sink_uri) as again:
        again.log_metrics({"loss": 1})
    runs = RunSync(outbox)
    with Sync(outbox, open_sink, OPTIONS, run_of=runs.run_of) as sync:
        (outcome,) = runs.everything(sync)
    assert isinstance(outcome.error, RunNotFound)
    assert "mlflow runs restore" in outcome.error.hint
    assert [run.run_id for run, _ in outbox.runs.waiting()] == [tracker.run_id]


def test_a_parent_that_is_not_on_the_server_is_no_obstacle(
    server: MlflowServer, client: Any, outbox: Outbox, offline: None
) -> None:
    with MLflowTrainingTracker(sink=server.sink_uri, parent_run_id="0" * 32) as tracker:
        pass
    (outcome,) = synced(outbox)
    assert client.get_run(outcome.server_run_id).data.tags["stagesink.local_run_id"] == tracker.run_id


# -- the commands ------------------------------------------------------------------------------------------------------


def test_status_shows_what_waits_and_sync_says_what_it_is_called_now(
    server: MlflowServer, client: Any, outbox: Outbox, experiment: str, offline: None, checkpoint: Path
) -> None:
    with MLflowTrainingTracker(sink=server.sink_uri, experiment=experiment) as tracker:
        tracker.log_metrics({"loss": 1}, 1)
        upload_training_artifacts(None, checkpoint / "model.bin", run_id=tracker.run_id, sink=server.sink_uri)
    with MLflowTrainingTracker(sink="mlflow+http://127.0.0.1:1") as elsewhere:
        pass

    def command(*arguments: str, code: int) -> Any:
        answer = CliRunner().invoke(app, [*arguments, "--json"])
        assert answer.exit_code == code, answer.output
        return json.loads(answer.stdout)

    before = {each["run_id"]: each for each in command("status", code=0)["runs"]}
    assert before.keys() == {tracker.run_id, elsewhere.run_id}
    assert all(each["run_waits"] for each in before.values())
    assert (before[tracker.run_id]["uploads"], before[elsewhere.run_id]["uploads"]) == (1, 0)
    done = command("sync", "--run-id", str(tracker.run_id), code=0)
    run = the_run(client, experiment, tracker.run_id)
    assert run.info.status == "FINISHED"
    assert "metrics.json" in artifacts(server, run)
    assert [(each["run_id"], each["server_run_id"]) for each in done["runs"]] == [(tracker.run_id, run.info.run_id)]
    done = command("sync", code=5)
    assert (done["waiting"], done["waiting_runs"]) == (0, 1)
    (left,) = command("status", code=0)["runs"]
    assert left["run_id"] == elsewhere.run_id
    assert "127.0.0.1:1" in left["why"]
    answer = CliRunner().invoke(app, ["sync"])
    assert "Still waiting: 1 run. `stagesink status` says why." in answer.stdout
