"""What all trackers share, shown on the one for training."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from faults.proxy import Answer, FaultProxy, Reset
from mlflow_servers import MlflowServer
from outside import python, running, said, tell

from stagesink.config import load_config
from stagesink.errors import RunNotFound, StagesinkError, TransientSinkError
from stagesink.keeping import open_outbox
from stagesink.trackers import (
    MLflowBenchmarkTracker,
    MLflowConversionTracker,
    MLflowSweepTracker,
    MLflowTrainingTracker,
)

TRACKERS = [MLflowSweepTracker, MLflowTrainingTracker, MLflowConversionTracker, MLflowBenchmarkTracker]
NOWHERE = "mlflow+http://127.0.0.1:1"


# -- which run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TRACKERS, ids=lambda kind: kind.stage)
def test_each_stage_gets_a_run_that_says_so_and_where_it_came_from(
    server: MlflowServer, client: Any, kind: type[MLflowTrainingTracker]
) -> None:
    tracker = kind(
        sink=server.sink_uri,
        run_name="a name",
        tags={"team": "vision"},
        sweep_run_id="a",
        training_run_id="b",
        conversion_run_id="c",
    )
    assert tracker.run_id is None
    with tracker:
        assert tracker.run_id is not None
        assert client.get_run(tracker.run_id).info.status == "RUNNING"
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "a name"
    tags = {name: value for name, value in run.data.tags.items() if not name.startswith("mlflow.")}
    assert tags == {
        "team": "vision",
        "stagesink.stage": kind.stage,
        "stagesink.sweep_run_id": "a",
        "stagesink.training_run_id": "b",
        "stagesink.conversion_run_id": "c",
    }


@pytest.mark.parametrize("named_by", ["argument", "STAGESINK_RUN_ID", "active run", "MLFLOW_RUN_ID"])
def test_a_run_that_is_named_is_joined_and_left_open(
    server: MlflowServer, client: Any, mlflow: Any, monkeypatch: pytest.MonkeyPatch, named_by: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    if named_by == "active run":
        run_id = mlflow.start_run().info.run_id
    else:
        run_id = server.run()
        if named_by != "argument":
            monkeypatch.setenv(named_by, run_id)
    with MLflowTrainingTracker(run_id if named_by == "argument" else None, sink="mlflow:") as tracker:
        assert tracker.run_id == run_id
        assert tracker.log_metrics({"loss": 1}) is True
    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.data.metrics == {"loss": 1}
    assert run.data.tags["stagesink.stage"] == "training"
    if named_by == "active run":
        assert mlflow.active_run().info.run_id == run_id
        mlflow.end_run()


def test_a_parent_asks_for_a_new_run_even_where_one_is_named(
    server: MlflowServer, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = server.run()
    monkeypatch.setenv("MLFLOW_RUN_ID", parent)
    with MLflowTrainingTracker(sink=server.sink_uri, parent_run_id=parent) as tracker:
        assert tracker.run_id != parent
    assert client.get_run(tracker.run_id).data.tags["mlflow.parentRunId"] == parent


def test_a_run_shared_by_stages_keeps_the_stage_it_was_made_for(server: MlflowServer, client: Any) -> None:
    with MLflowTrainingTracker(sink=server.sink_uri) as training:
        pass
    with MLflowBenchmarkTracker(training.run_id, sink=server.sink_uri) as benchmark:
        assert client.get_run(training.run_id).info.status == "RUNNING"
    run = client.get_run(benchmark.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["stagesink.stage"] == "training"


@pytest.mark.once
def test_a_run_that_is_active_in_another_process_is_joined(
    server: MlflowServer, client: Any, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    program = """
        import mlflow
        with mlflow.start_run() as run:
            print(run.info.run_id, flush=True)
            input()
            mlflow.log_metric("theirs", 1)
            print("done", flush=True)
            input()
    """
    with running(program) as process:
        run_id = said(process)
        with MLflowTrainingTracker(run_id, sink=server.sink_uri) as tracker:
            assert tracker.log_metrics({"ours": 1}) is True
            tell(process)
            assert said(process) == "done"
            assert tracker.log_training_artifacts(out / "checkpoint") == {"checkpoint": True}
        assert client.get_run(run_id).info.status == "RUNNING"
        tell(process)
        assert process.wait(60) == 0
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"theirs": 1, "ours": 1}
    assert server.listed(run_id).keys() == {"checkpoint/model.bin", "checkpoint.manifest.json"}


def test_the_experiment_is_made_when_it_does_not_exist(server: MlflowServer, client: Any, tmp_path: Path) -> None:
    with MLflowTrainingTracker(sink=server.sink_uri, experiment=f"new {tmp_path}") as tracker:
        pass
    experiment = client.get_experiment(client.get_run(tracker.run_id).info.experiment_id)
    assert experiment.name == f"new {tmp_path}"


# -- how it ends -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("loss is NaN"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(), "FINISHED"),
        (SystemExit(0), "FINISHED"),
        (SystemExit(1), "FAILED"),
        (SystemExit("no data"), "FAILED"),
        (SystemExit(143), "KILLED"),
    ],
    ids=repr,
)
def test_a_run_ends_as_its_block_did_and_the_error_goes_on(
    server: MlflowServer, client: Any, error: BaseException, status: str
) -> None:
    tracker = MLflowTrainingTracker(sink=server.sink_uri)
    with pytest.raises(type(error)) as caught, tracker:
        raise error
    assert caught.value is error
    assert client.get_run(tracker.run_id).info.status == status


def test_an_open_sink_stays_open_and_one_of_its_own_is_closed(
    server: MlflowServer, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stagesink.sinks.mlflow import MlflowSink

    closed: list[MlflowSink] = []
    close = MlflowSink.close
    monkeypatch.setattr(MlflowSink, "close", lambda sink: (closed.append(sink), close(sink)))
    sink = MlflowSink(server.sink_uri)
    with MLflowTrainingTracker(sink=sink) as tracker:
        tracker.log_training_artifacts(None, out / "metrics.json")
    assert sink not in closed
    assert [stored.key.path for stored in sink.list(str(tracker.run_id), "metrics.json")] == ["metrics.json"]
    sink.close()
    with MLflowTrainingTracker(sink=server.sink_uri) as tracker:
        tracker.log_training_artifacts(None, out / "metrics.json")
        own = tracker._sink
        assert isinstance(own, MlflowSink)
        assert own not in closed
    assert own in closed


def test_a_run_that_has_ended_still_takes_artifacts(server: MlflowServer, client: Any, out: Path) -> None:
    with MLflowTrainingTracker(sink=server.sink_uri) as tracker:
        pass
    assert tracker.log_training_artifacts(out / "checkpoint") == {"checkpoint": True}
    assert "checkpoint/model.bin" in server.listed(str(tracker.run_id))
    assert tracker.log_params({"too": "late"}) is False
    assert client.get_run(tracker.run_id).data.params == {}


# -- a tracker kills no training ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("run_id", "outbox"), [(None, "false"), ("0" * 32, "true")], ids=["new", "unknown"])
def test_a_run_that_cannot_be_opened_is_one_line_and_the_training_goes_on(
    server: MlflowServer,
    out: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    run_id: str | None,
    outbox: str,
) -> None:
    monkeypatch.setenv("STAGESINK_OUTBOX_ENABLED", outbox)  # with it, a run that no server can start begins there
    sink = server.sink_uri if run_id else NOWHERE
    with MLflowTrainingTracker(run_id, sink=sink) as tracker:
        assert tracker.log_params({"a": 1}) is False
        assert tracker.log_metrics({"a": 1}) is False
        assert tracker.set_tags({"a": "1"}) is False
        (line,) = [record.getMessage() for record in caplog.records if record.name == "stagesink"]
        assert line.startswith("The stage training has no run: ")
        assert tracker.run_id == run_id
        assert tracker.run_url is None
        assert tracker.log_training_artifacts(out / "checkpoint") == {"checkpoint": False}


def test_whoever_wants_the_error_gets_it(server: MlflowServer) -> None:
    with pytest.raises(TransientSinkError), MLflowTrainingTracker(sink=NOWHERE, on_failure="raise"):
        pytest.fail("the block must not be entered")
    with pytest.raises(RunNotFound), MLflowTrainingTracker("0" * 32, sink=server.sink_uri, on_failure="raise"):
        pytest.fail("the block must not be entered")
    with (
        pytest.raises(StagesinkError, match="no numbers"),
        MLflowTrainingTracker(sink=server.sink_uri, on_failure="raise") as tracker,
    ):
        tracker.log_metrics({"a": "b"})


def test_a_server_that_goes_away_meanwhile_costs_no_more_than_what_is_logged(
    server: MlflowServer,
    client: Any,
    out: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STAGESINK_OUTBOX_ENABLED", "false")  # with it, not even that
    with FaultProxy(server.port) as proxy:
        with MLflowTrainingTracker(sink=f"mlflow+http://127.0.0.1:{proxy.port}") as tracker:
            assert tracker.log_metrics({"before": 1}) is True
            proxy.plan(Reset(), times=1000)
            assert tracker.log_metrics({"after": 1}) is False
            assert tracker.log_training_artifacts(out / "checkpoint") == {"checkpoint": False}
        logged = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert [line.partition(":")[0] for line in logged] == [
        "The stage training",
        "checkpoint was not uploaded",
        f"Run {tracker.run_id} is still shown as running",
    ]
    run = client.get_run(tracker.run_id)
    assert run.data.metrics == {"before": 1}
    assert run.info.status == "RUNNING"


@pytest.mark.once
def test_a_wrong_password_is_said_and_not_shown(
    mlflow_auth_server: MlflowServer, server: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    uri = mlflow_auth_server.sink_uri.replace(mlflow_auth_server.password, "hunter22")
    with MLflowTrainingTracker(sink=uri, on_failure="warn") as tracker:
        assert tracker.run_id is None
    assert "401" in caplog.text
    assert "Check MLFLOW_TRACKING_USERNAME" in caplog.text
    assert "hunter22" not in caplog.text


def test_what_a_login_that_has_expired_would_lose_waits_on_this_disk(
    mlflow_auth_server: MlflowServer, server: MlflowServer, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = mlflow_auth_server.sink_uri.replace(mlflow_auth_server.password, "hunter22")
    with MLflowTrainingTracker(sink=uri) as tracker:
        assert not tracker.log_metrics({"loss": 0.1})
        assert tracker.log_training_artifacts(out / "checkpoint") == {"checkpoint": False}
    assert "401" in caplog.text
    (entry,) = open_outbox(load_config().artifacts.outbox).entries()
    assert (entry.path, entry.run_id) == ("checkpoint", tracker.run_id)
    assert "hunter22" not in caplog.text


@pytest.mark.once
def test_the_right_password_is_not_shown_either(
    mlflow_auth_server: MlflowServer,
    out: Path,
    mlflow: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="stagesink")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_auth_server.url_with_login)  # so that mlflow itself ends the run
    with MLflowTrainingTracker(sink="mlflow:") as tracker:
        mlflow.log_param("theirs", 1)
        assert tracker.log_training_artifacts(out / "checkpoint") == {"checkpoint": True}
        assert mlflow_auth_server.info(str(tracker.run_id))["status"] == "RUNNING"
    assert mlflow_auth_server.info(str(tracker.run_id))["status"] == "FINISHED"
    assert tracker.run_url == f"{mlflow_auth_server.url}/#/experiments/0/runs/{tracker.run_id}"
    output = capfd.readouterr()
    assert mlflow_auth_server.password not in caplog.text + output.out + output.err + repr(tracker)


@pytest.mark.parametrize(
    "wrong",
    [{"run_id": 7}, {"sink": 7}, {"config_dir": 7}, {"tags": {"a": 1}}, {"experiment": ""}],
    ids=str,
)
def test_no_argument_kills_a_training(server: MlflowServer, out: Path, wrong: dict[str, Any]) -> None:
    arguments = {"sink": server.sink_uri, **wrong}
    with MLflowTrainingTracker(arguments.pop("run_id", None), **arguments) as tracker:
        tracker.log_params({"a": 1})
        tracker.log_training_artifacts(out / "checkpoint")


# -- without a server that tracks runs ---------------------------------------------------------------------------------


def test_a_sink_that_tracks_no_runs_gets_the_artifacts_alone(out: Path, tmp_path: Path) -> None:
    with MLflowTrainingTracker("mine", sink=f"file:{tmp_path / 'store'}") as tracker:
        assert tracker.run_id == "mine"
        assert tracker.run_url is None
        assert tracker.log_params({"a": 1}) is False
        assert tracker.log_metrics({"a": 1}) is False
        assert tracker.log_training_artifacts(out / "checkpoint") == {"checkpoint": True}
    assert (tmp_path / "store" / "mine" / "checkpoint" / "model.bin").read_bytes() == b"weights"


def test_stages_without_a_named_run_share_the_one_of_their_process(out: Path, tmp_path: Path) -> None:
    program = """
        import sys
        from stagesink.trackers import MLflowBenchmarkTracker, MLflowSweepTracker
        with MLflowSweepTracker(sink=sys.argv[1]) as sweep, sweep.trial(0) as trial:
            pass
        with MLflowBenchmarkTracker(sink=sys.argv[1]) as benchmark:
            pass
        print(sweep.run_id == trial.run_id == benchmark.run_id, sweep.run_id)
        print("mlflow" in sys.modules)
    """
    done = python(program, f"file:{tmp_path / 'store'}")
    same, run_id, mlflow_imported = done.stdout.split()
    assert same == "True"
    assert mlflow_imported == "False"
    assert done.stderr.count(run_id) == 1  # said once


def test_importing_the_trackers_imports_no_mlflow() -> None:
    done = python("import sys, stagesink.trackers; print(sorted({'mlflow', 'urllib3', 'yaml'} & set(sys.modules)))")
    assert done.stdout.strip() == "[]"


def test_without_mlflow_it_is_said_what_to_install(
    out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("urllib3", reason="comes with the extra mlflow")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with MLflowTrainingTracker(sink="mlflow+sqlite:///none.db") as tracker:
        assert tracker.run_id is None
    assert "pip install 'stagesink[mlflow]'" in caplog.text


def test_what_the_server_refuses_is_one_line(
    server: MlflowServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGESINK_OUTBOX_ENABLED", "false")  # with it, it waits
    with (
        FaultProxy(server.port) as proxy,
        MLflowTrainingTracker(sink=f"mlflow+http://127.0.0.1:{proxy.port}") as tracker,
    ):
        proxy.plan(Answer(403), method="POST", path="log-batch")
        assert tracker.log_params({"a": 1}) is False
        assert tracker.log_params({"a": 1}) is True
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.startswith(f"The stage training: The params could not be logged to run {tracker.run_id}: ")
