"""The four stages against a real MLflow server, whatever state their run is in, read back by mlflow's own client."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faults.proxy import FaultProxy, Reset
from mlflow_servers import MlflowServer
from outside import running, said, tell

from stagesink import list_committed, open_sink, verify
from stagesink.config import load_config
from stagesink.keeping import open_outbox
from stagesink.trackers import (
    MLflowBenchmarkTracker,
    MLflowConversionTracker,
    MLflowSweepTracker,
    MLflowTrainingTracker,
)


@dataclass
class Trial:
    number: int


@dataclass
class Study:
    best_trial: Trial


@dataclass(frozen=True)
class Stage:
    """What the code of a user's stage does, and what must then lie in its run, by switch; manifests left out."""

    tracker: Callable[..., Any]
    hand_over: Callable[[Any, Path], Any]
    lands: dict[str, dict[str, str]]
    answers: Callable[[list[bool]], Any]
    """What the tracker answers when these slots landed."""

    @property
    def name(self) -> str:
        return str(self.tracker.stage)  # type: ignore[attr-defined]


STAGES = [
    Stage(
        MLflowSweepTracker,
        lambda tracker, out: tracker.log_best_checkpoint(Study(Trial(7)), out / "sweep"),
        {"log_checkpoint": {"best_trial_checkpoint.tar.gz": ""}},
        all,
    ),
    Stage(
        MLflowTrainingTracker,
        lambda tracker, out: tracker.log_training_artifacts(out / "checkpoint", out / "metrics.json"),
        {
            "log_checkpoint": {
                "checkpoint/model.bin": "checkpoint/model.bin",
                "checkpoint/optimizer/état 1.bin": "checkpoint/optimizer/état 1.bin",
            },
            "log_metrics_json": {"metrics.json": "metrics.json"},
        },
        lambda landed: dict(zip(("checkpoint", "metrics_json"), landed, strict=True)),
    ),
    Stage(
        MLflowConversionTracker,
        lambda tracker, out: tracker.log_conversion_results(out / "model.onnx", out / "conversion.log"),
        {
            "log_onnx_model": {"onnx_model/model.onnx": "model.onnx"},
            "log_conversion_log": {"conversion_log.txt": "conversion.log"},
        },
        all,
    ),
    Stage(
        MLflowBenchmarkTracker,
        lambda tracker, out: tracker.log_benchmark_results(out / "benchmark.json", {"p50_ms": 1.5}),
        {"log_artifacts": {"benchmark_results.json": "benchmark.json"}},
        lambda landed: {"benchmark_json": landed[0]},
    ),
]
each_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)


@pytest.fixture
def server(mlflow_server: MlflowServer, mlflow: Any, monkeypatch: pytest.MonkeyPatch) -> MlflowServer:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("STAGESINK_RETRIES", "1")
    return mlflow_server


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the stages wrote."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    for name, data in {
        "sweep/trial_7/refit/checkpoint/model.bin": b"best trial",
        "checkpoint/model.bin": bytes(range(256)) * 500,
        "checkpoint/optimizer/état 1.bin": b"",
        "metrics.json": b'{"accuracy": 0.9}',
        "model.onnx": b"onnx",
        "conversion.log": b"converted\n",
        "benchmark.json": b'{"p50_ms": 1.5}',
    }.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    return out


def run_stage(stage: Stage, out: Path, **options: Any) -> tuple[str, Any]:
    """Do what the user's code does; return the run's id and what the tracker answered."""
    with stage.tracker(**{"sink": "mlflow:", **options}) as tracker:
        tracker.log_params({"stage": stage.name})
        tracker.log_metrics({"seconds": 1.0})
        answer = stage.hand_over(tracker, out)
    return str(tracker.run_id), answer


def check_landed(server: MlflowServer, run_id: str, stage: Stage, out: Path, off: tuple[str, ...] = ()) -> None:
    """Download the run with mlflow's client: exactly what is switched on lies there, byte for byte, and is whole."""
    on = [files for switch, files in stage.lands.items() if switch not in off]
    wanted = {path: made for files in on for path, made in files.items()}
    (out.parent / "down").mkdir()
    there = server.downloaded(run_id, out.parent / "down") if server.listed(run_id) else {}
    assert {path for path in there if not path.endswith("manifest.json")} == wanted.keys()
    assert all(there[path] == (out / made).read_bytes() for path, made in wanted.items() if made)
    sink = open_sink("mlflow:")
    committed = list_committed(sink, run_id)
    assert len(committed) == len(on)
    assert {check.status for check in verify(sink, committed)} == ({"ok"} if on else set())
    assert [manifest.provenance["stage"] for manifest in committed] == [stage.name] * len(on)
    sink.close()


def logged(server: MlflowServer, run_id: str) -> dict[str, Any]:
    with server.client() as client:
        run = client.get_run(run_id)
    return {"status": run.info.status, "params": run.data.params, "seconds": run.data.metrics.get("seconds")}


# -- which run ---------------------------------------------------------------------------------------------------------


@each_stage
def test_with_no_run_at_all(server: MlflowServer, out: Path, stage: Stage) -> None:
    run_id, answer = run_stage(stage, out)
    assert answer == stage.answers([True] * len(stage.lands))
    check_landed(server, run_id, stage, out)
    assert logged(server, run_id) == {"status": "FINISHED", "params": {"stage": stage.name}, "seconds": 1.0}


@each_stage
def test_inside_an_active_run(server: MlflowServer, out: Path, stage: Stage, mlflow: Any) -> None:
    with mlflow.start_run() as active:
        run_id, answer = run_stage(stage, out)
        assert run_id == active.info.run_id
        assert answer == stage.answers([True] * len(stage.lands))
        assert logged(server, run_id) == {"status": "RUNNING", "params": {"stage": stage.name}, "seconds": 1.0}
        mlflow.log_metric("after", 1)
    check_landed(server, run_id, stage, out)
    assert logged(server, run_id)["status"] == "FINISHED"


@each_stage
@pytest.mark.parametrize("variable", ["MLFLOW_RUN_ID", "STAGESINK_RUN_ID"])
def test_with_a_run_that_the_environment_names(
    server: MlflowServer, out: Path, stage: Stage, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = server.run()
    monkeypatch.setenv(variable, named)
    run_id, answer = run_stage(stage, out)
    assert run_id == named
    assert answer == stage.answers([True] * len(stage.lands))
    check_landed(server, run_id, stage, out)
    assert logged(server, run_id) == {"status": "RUNNING", "params": {"stage": stage.name}, "seconds": 1.0}


@each_stage
def test_with_a_run_that_is_finished(server: MlflowServer, out: Path, stage: Stage) -> None:
    named = server.run()
    server.finish(named)
    run_id, answer = run_stage(stage, out, run_id=named)
    assert answer == stage.answers([True] * len(stage.lands))
    check_landed(server, run_id, stage, out)
    assert logged(server, run_id) == {"status": "FINISHED", "params": {"stage": stage.name}, "seconds": 1.0}


@pytest.fixture(scope="module")
def elsewhere(mlflow_server: MlflowServer) -> Iterator[Callable[[], str]]:
    """Another process, which ends its active run and starts the next one each time it is asked."""
    program = """
        import sys
        import mlflow
        mlflow.set_tracking_uri(sys.argv[1])
        while sys.stdin.readline():
            mlflow.end_run()
            print("run", mlflow.start_run().info.run_id, flush=True)
    """
    with running(program, mlflow_server.url) as process:

        def next_run() -> str:
            tell(process)
            while not (line := said(process)).startswith("run "):  # what mlflow itself prints
                assert process.poll() is None
            return line.removeprefix("run ")

        yield next_run


@each_stage
def test_with_a_run_that_is_active_in_another_process(
    server: MlflowServer, out: Path, stage: Stage, elsewhere: Callable[[], str]
) -> None:
    named = elsewhere()
    run_id, answer = run_stage(stage, out, run_id=named)
    assert answer == stage.answers([True] * len(stage.lands))
    check_landed(server, run_id, stage, out)
    assert logged(server, run_id) == {"status": "RUNNING", "params": {"stage": stage.name}, "seconds": 1.0}
    elsewhere()
    assert logged(server, run_id)["status"] == "FINISHED"


# -- switched off ------------------------------------------------------------------------------------------------------


@each_stage
@pytest.mark.parametrize("active", [True, False])
def test_with_artifacts_switched_off_the_run_is_tracked_all_the_same(
    server: MlflowServer, out: Path, stage: Stage, active: bool, mlflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SKIP_ARTIFACT_LOGGING", "true")
    if active:
        with mlflow.start_run():
            run_id, answer = run_stage(stage, out)
    else:
        run_id, answer = run_stage(stage, out)
    assert answer == stage.answers([False] * len(stage.lands))
    assert server.listed(run_id) == {}
    assert logged(server, run_id) == {"status": "FINISHED", "params": {"stage": stage.name}, "seconds": 1.0}


@pytest.mark.parametrize(
    ("stage", "switch"),
    [(stage, switch) for stage in STAGES for switch in stage.lands],
    ids=lambda part: part if isinstance(part, str) else part.name,
)
@pytest.mark.parametrize("active", [True, False])
def test_each_switch_keeps_back_its_own_alone(
    server: MlflowServer, out: Path, stage: Stage, switch: str, active: bool, mlflow: Any
) -> None:
    config_dir = _configured(out, {stage.name: {switch: False}})
    if active:
        with mlflow.start_run():
            run_id, answer = run_stage(stage, out, config_dir=config_dir)
    else:
        run_id, answer = run_stage(stage, out, config_dir=config_dir)
    assert answer == stage.answers([name != switch for name in stage.lands])
    check_landed(server, run_id, stage, out, off=(switch,))


@pytest.mark.parametrize("active", [False, True])
@each_stage
def test_a_stage_that_is_switched_off_uploads_nothing(
    server: MlflowServer, out: Path, stage: Stage, mlflow: Any, active: bool
) -> None:
    others = {other.name: {"enabled": False} for other in STAGES if other is not stage}
    config_dir = _configured(out, {stage.name: {"enabled": False}})
    with mlflow.start_run() if active else nullcontext():
        run_id, answer = run_stage(stage, out, config_dir=config_dir)
    assert answer == stage.answers([False] * len(stage.lands))
    assert server.listed(run_id) == {}
    run_id, answer = run_stage(stage, out, config_dir=_configured(out, others))
    assert answer == stage.answers([True] * len(stage.lands))
    check_landed(server, run_id, stage, out)


def _configured(out: Path, tracking: dict[str, Any]) -> Path:
    (out / "mlflow.yaml").write_text(json.dumps({"tracking": tracking}))
    return out


# -- the server is gone ------------------------------------------------------------------------------------------------


@each_stage
def test_with_the_server_gone_from_the_start(
    server: MlflowServer, out: Path, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    run_id, answer = run_stage(stage, out, sink="mlflow+http://127.0.0.1:1")
    assert answer == stage.answers([False] * len(stage.lands))
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "cannot be reached" in line
    assert "`stagesink sync` brings it to" in line
    waiting = open_outbox(load_config().artifacts.outbox).rows()
    assert {row.run_id for row in waiting} == {run_id}  # a run of its own, until there is a server to make it on
    assert len(waiting) == len(stage.lands)


@each_stage
@pytest.mark.parametrize("active", [True, False])
def test_with_the_server_gone_before_the_upload(
    server: MlflowServer, out: Path, stage: Stage, active: bool, mlflow: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with FaultProxy(server.port) as proxy:
        run_id = mlflow.start_run().info.run_id if active else None
        with stage.tracker(run_id, sink=f"mlflow+http://127.0.0.1:{proxy.port}") as tracker:
            proxy.plan(Reset(), times=10_000)
            assert stage.hand_over(tracker, out) == stage.answers([False] * len(stage.lands))
        mlflow.end_run()
    assert server.listed(str(tracker.run_id)) == {}
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    uploads = [line for line in errors if "was not uploaded" in line]
    assert len(uploads) == len(stage.lands)
    assert all("try again" in line for line in uploads)
