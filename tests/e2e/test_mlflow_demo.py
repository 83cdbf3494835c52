"""The demo into a real MLflow server: what a person sees there who opens its pages, asked as the pages ask."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from mlflow_servers import MlflowServer
from servers import installed

from stagesink.pipeline.demo import run_demo
from stagesink.pipeline.report import DemoReport

pytestmark = pytest.mark.timeout(300)  # eight processes, several of which import mlflow

EXPERIMENT = f"the demo's {uuid.uuid4()}"  # each worker has its own, should the tests be spread
STAGES = ["hpo", "training", "conversion", "benchmark"]


@pytest.fixture(scope="module", autouse=True)
def demo() -> None:
    installed("sklearn", "optuna", "skl2onnx", "onnxruntime")


@pytest.fixture(scope="module")
def report(mlflow_server: MlflowServer, mlflow: Any, tmp_path_factory: pytest.TempPathFactory) -> DemoReport:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("STAGESINK_", "MLFLOW_", "AZUREML_"))]:
            patch.delenv(name)
        patch.setenv("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        return run_demo(mlflow_server.sink_uri, tmp_path_factory.mktemp("demo") / "work", n_trials=2)


@pytest.fixture
def runs(mlflow_server: MlflowServer, report: DemoReport) -> dict[str, Any]:
    """The experiment's runs by name, as its page asks for them."""
    experiment = mlflow_server.rest("GET", "experiments/get-by-name", experiment_name=EXPERIMENT)["experiment"]
    found = mlflow_server.rest(
        "POST", "/ajax-api/2.0/mlflow/runs/search", experiment_ids=[experiment["experiment_id"]], max_results=100
    )["runs"]
    return {run["info"]["run_name"]: run for run in found}


def tags_of(run: Any) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in run["data"]["tags"]}


def test_there_is_a_run_for_each_stage_and_one_for_each_trial_under_the_search(runs: dict[str, Any]) -> None:
    assert runs.keys() == {*(f"demo {name}" for name in ("search", *STAGES[1:])), "trial-0", "trial-1"}
    assert {run["info"]["status"] for run in runs.values()} == {"FINISHED"}
    parents = {name: tags_of(run).get("mlflow.parentRunId") for name, run in runs.items()}
    search = runs["demo search"]["info"]["run_id"]
    assert {name for name, parent in parents.items() if parent == search} == {"trial-0", "trial-1"}
    assert {name for name, parent in parents.items() if parent is None} == runs.keys() - {"trial-0", "trial-1"}


def test_each_stage_says_what_it_stands_on(runs: dict[str, Any]) -> None:
    ids = {name: run["info"]["run_id"] for name, run in runs.items()}
    lineage = {
        name: {key: value for key, value in tags_of(run).items() if key.endswith("_run_id")}
        for name, run in runs.items()
    }
    assert lineage["demo training"] == {"stagesink.sweep_run_id": ids["demo search"]}
    assert lineage["demo conversion"] == {"stagesink.training_run_id": ids["demo training"]}
    assert lineage["demo benchmark"] == {
        "stagesink.training_run_id": ids["demo training"],
        "stagesink.conversion_run_id": ids["demo conversion"],
    }


def test_each_run_has_its_parameters_and_metrics(runs: dict[str, Any], mlflow_server: MlflowServer) -> None:
    metrics = {name: {each["key"] for each in run["data"]["metrics"]} for name, run in runs.items()}
    assert metrics == {
        "demo search": {"best_validation_accuracy"},
        "trial-0": {"validation_accuracy"},
        "trial-1": {"validation_accuracy"},
        "demo training": {"loss", "validation_accuracy"},
        "demo conversion": {"onnx_bytes"},
        "demo benchmark": {"accuracy", "latency_ms_p50", "latency_ms_p95"},
    }
    params = {each["key"]: each["value"] for each in runs["demo training"]["data"]["params"]}
    assert params.keys() == {"hidden_units", "learning_rate", "l2", "epochs"}
    run_id = runs["demo training"]["info"]["run_id"]
    history = mlflow_server.rest("GET", "metrics/get-history", run_id=run_id, metric_key="loss")["metrics"]
    assert [int(each.get("step", 0)) for each in history] == list(range(1, int(params["epochs"]) + 1))


def test_each_run_shows_its_artifacts_and_a_trial_none(
    runs: dict[str, Any], mlflow_server: MlflowServer, report: DemoReport
) -> None:
    shown = {name: set(mlflow_server.seen_in_ui(run["info"]["run_id"])) for name, run in runs.items()}
    shown = {name: {path for path in paths if not path.endswith("manifest.json")} for name, paths in shown.items()}
    # Of the notes of writers a server over a plain folder keeps the folder, with nothing in it.
    assert all(mlflow_server.seen_in_ui(run["info"]["run_id"], ".stagesink") == {} for run in runs.values())
    assert {name: paths - {".stagesink"} for name, paths in shown.items()} == {
        "demo search": {"best_trial_checkpoint.tar.gz"},
        "trial-0": set(),
        "trial-1": set(),
        "demo training": {"checkpoint", "metrics.json"},
        "demo conversion": {"onnx_model", "conversion_log.txt"},
        "demo benchmark": {"benchmark_results.json"},
    }
    run_id = runs["demo conversion"]["info"]["run_id"]
    made = Path(report.workdir) / "conversion" / "model.onnx"
    assert mlflow_server.seen_in_ui(run_id, "onnx_model")["onnx_model/model.onnx"] == made.stat().st_size
    assert mlflow_server.opened_in_ui(run_id, "onnx_model/model.onnx") == made.read_bytes()


def test_the_report_says_where_to_look(runs: dict[str, Any], mlflow_server: MlflowServer, report: DemoReport) -> None:
    named = dict(zip(STAGES, ("demo search", *(f"demo {name}" for name in STAGES[1:])), strict=True))
    for each in report.runs:
        info = runs[named[each.stage]]["info"]
        assert each.run_id == info["run_id"]
        page = f"{mlflow_server.url}/#/experiments/{info['experiment_id']}/runs/{each.run_id}"
        assert each.url == page
    assert [each.stage for each in report.runs] == STAGES
    assert {landed.stage for landed in report.landed} == set(STAGES)
    assert {landed.proof for landed in report.landed} == {"sha256 ok"}
    assert report.predictions == 360


@pytest.mark.long
def test_a_named_run_gets_all_of_it_and_stdout_is_the_report_alone(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    named = mlflow_server.run()
    mlflow_server.finish(named)
    command = "import sys; from stagesink.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", command, "demo", "--sink", "mlflow:", "-r", named, "--trials", "1", "--json"],
        env={**os.environ, "MLFLOW_TRACKING_URI": mlflow_server.url},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {run["run_id"] for run in json.loads(done.stdout)["runs"]} == {named}
    assert mlflow_server.info(named)["status"] == "FINISHED"
    assert {path for path in mlflow_server.seen_in_ui(named) if not path.endswith("manifest.json")} == {
        "best_trial_checkpoint.tar.gz",
        "checkpoint",
        "metrics.json",
        "onnx_model",
        "conversion_log.txt",
        "benchmark_results.json",
    }
