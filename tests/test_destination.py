from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from outside import python
from servers import installed

from stagesink.config import load_config
from stagesink.destination import choose_sink
from stagesink.errors import ConfigError
from stagesink.sinks.registry import is_registered

AZURE_JOB = {"AZUREML_RUN_ID": "r1", "AZUREML_ARM_WORKSPACE_NAME": "ws"}
MLFLOW = {"MLFLOW_TRACKING_URI": "http://localhost:5000"}


@pytest.fixture
def choose(tmp_path):
    def choose(argument=None, environ=None, yaml=""):
        (tmp_path / "mlflow.yaml").write_text(yaml)
        return choose_sink(load_config(tmp_path, environ or {}), argument, environ or {})

    return choose


@pytest.mark.parametrize(
    ("argument", "variable", "yaml", "uri", "why"),
    [
        ("memory:a", "memory:b", "memory:c", "memory:a", "set by argument"),
        (None, "memory:b", "memory:c", "memory:b", "set by STAGESINK_SINK"),
        (None, "", "memory:c", "memory:c", "set by {file}:1"),
        (None, "", "auto", "file:./artifacts", "nothing names a sink, an Azure ML job or an MLflow server"),
        (
            "auto",
            "memory:b",
            "memory:c",
            "file:./artifacts",
            "nothing names a sink, an Azure ML job or an MLflow server",
        ),
        (None, "auto", "memory:c", "file:./artifacts", "nothing names a sink, an Azure ML job or an MLflow server"),
    ],
)
def test_precedence_is_argument_environment_file_auto(choose, tmp_path, argument, variable, yaml, uri, why):
    choice = choose(argument, {"STAGESINK_SINK": variable}, f"artifacts: {{sink: '{yaml}'}}")
    assert (choice.uri, choice.why) == (uri, why.format(file=tmp_path / "mlflow.yaml"))


def test_an_explicit_sink_wins_inside_an_azure_ml_job(choose):
    assert choose("file:/data", {**AZURE_JOB, **MLFLOW}).uri == "file:/data"


@pytest.mark.parametrize(
    ("environ", "uri", "why"),
    [
        (AZURE_JOB, "azureml:", "this is an Azure ML job (AZUREML_RUN_ID is set)"),
        ({**AZURE_JOB, **MLFLOW}, "azureml:", "this is an Azure ML job (AZUREML_RUN_ID is set)"),
        (
            {"AZUREML_RUN_ID": "r1", "MLFLOW_TRACKING_URI": "azureml://h/ws"},
            "azureml:",
            "this is an Azure ML job (AZUREML_RUN_ID is set)",
        ),
        ({"MLFLOW_TRACKING_URI": "azureml://h/ws"}, "azureml:", "MLFLOW_TRACKING_URI is 'azureml://h/ws'"),
        ({"AZUREML_RUN_ID": "r1", **MLFLOW}, "mlflow:", "MLFLOW_TRACKING_URI is 'http://localhost:5000'"),
        ({"AZUREML_ARM_WORKSPACE_NAME": "ws", **MLFLOW}, "mlflow:", "MLFLOW_TRACKING_URI is 'http://localhost:5000'"),
        ({"MLFLOW_TRACKING_URI": "databricks"}, "mlflow:", "MLFLOW_TRACKING_URI is 'databricks'"),
        (
            {"MLFLOW_TRACKING_URI": "https://me:pa55@h/x?token=t0ken"},
            "mlflow:",
            "MLFLOW_TRACKING_URI is 'https://***@h/x?***'",
        ),
    ],
)
def test_auto_takes_what_the_surroundings_call_for(choose, environ, uri, why):
    choice = choose(None, environ)
    assert (choice.uri, choice.why) == (uri, why)


@pytest.mark.parametrize(
    "environ", [{"AZUREML_RUN_ID": "r1"}, {name: "" for name in (*AZURE_JOB, *MLFLOW)}, {"MLFLOW_RUN_ID": "r1"}]
)
def test_half_an_azure_ml_job_and_empty_variables_do_not_count(choose, environ):
    assert choose(None, environ).uri == "file:./artifacts"


def test_why_holds_no_password(choose):
    assert "pa55" not in choose(None, {"MLFLOW_TRACKING_URI": "https://me:pa55@host"}).why


def test_fsspecs_own_implementation_of_a_scheme_is_not_a_sink_for_auto():
    assert is_registered("file")
    assert is_registered("memory")
    assert not is_registered("s3")


def test_an_empty_argument_is_an_error_and_not_the_working_folder(choose):
    with pytest.raises(ConfigError, match=r"^The sink is empty\. Name one"):
        choose("")


def test_a_choice_shows_no_secret(choose):
    choice = choose("s3://key:se/cret@bucket/x")
    assert choice.uri == "s3://key:se/cret@bucket/x"
    assert "cret" not in f"{choice!r} {choice.shown} {choice.why}"


# -- the run that is active --------------------------------------------------------------------------------------------


@pytest.fixture
def active(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """Stand in for an mlflow that has a run and this tracking URI."""

    def active(tracking_uri: str | None, run_id: str | None = "run") -> None:
        mlflow = types.ModuleType("mlflow")
        run = types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))
        mlflow.active_run = lambda: run if run_id else None  # type: ignore[attr-defined]
        if tracking_uri is not None:
            mlflow.get_tracking_uri = lambda: tracking_uri  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "mlflow", mlflow)

    return active


@pytest.mark.parametrize(
    ("tracking_uri", "environ", "uri"),
    [
        ("sqlite:///mlflow.db", {}, "mlflow+sqlite:///mlflow.db"),
        ("file:///x/mlruns", MLFLOW, "mlflow+file:///x/mlruns"),
        ("/x/my runs", {}, "mlflow+file:///x/my%20runs"),
        ("databricks", {}, "mlflow+databricks:"),
        ("http://other:5000", MLFLOW, "mlflow+http://other:5000"),
        ("http://localhost:5000", MLFLOW, "mlflow:"),
        ("http://localhost:5000/", MLFLOW, "mlflow:"),
        ("http://other:5000", {**AZURE_JOB, **MLFLOW}, "azureml:"),
        ("azureml://h/ws", {"MLFLOW_TRACKING_URI": "azureml://h/ws"}, "azureml:"),
        ("azureml://h/ws", MLFLOW, "azureml://h/ws"),
    ],
)
def test_auto_takes_the_store_of_the_active_run(choose, active, tracking_uri, environ, uri):
    active(tracking_uri)
    choice = choose(None, environ)
    assert choice.uri == uri
    if "+" in uri:
        assert choice.why == f"an MLflow run is active in {tracking_uri!r}"


def test_the_active_runs_store_is_shown_without_its_password(choose, active):
    active("http://me:pa55@other:5000")
    choice = choose()
    assert choice.uri == "mlflow+http://me:pa55@other:5000"
    assert "pa55" not in f"{choice!r} {choice.shown} {choice.why}"
    active("http://me:pa55@other:5000")
    assert "pa55" not in choose(None, {"MLFLOW_TRACKING_URI": "http://me:pa55@other:5000"}).why


def test_an_mlflow_without_a_run_or_without_a_store_says_nothing(choose, active):
    active("sqlite:///mlflow.db", run_id=None)
    assert choose().uri == "file:./artifacts"
    active(None)
    assert choose().uri == "file:./artifacts"
    assert choose(None, MLFLOW).uri == "mlflow:"


def test_a_relative_folder_of_runs_is_that_of_this_working_folder(choose, active):
    active("./mlruns")
    assert choose().uri == f"mlflow+{(Path.cwd() / 'mlruns').as_uri()}"


@pytest.mark.parametrize("store", [None, "sqlite:///here.db", "file:./runs"])
def test_artifacts_land_in_the_active_run_where_no_variable_names_its_store(mlflow, tmp_path, store):
    installed("sqlalchemy")
    (tmp_path / "metrics.json").write_text("{}")
    program = """
        import os, sys, mlflow
        from stagesink import log_artifact_safe
        os.chdir(sys.argv[1])
        if sys.argv[2:]:
            mlflow.set_tracking_uri(sys.argv[2])
            os.environ.pop("MLFLOW_TRACKING_URI", None)  # set by MLflow 3 alone
        with mlflow.start_run() as run:
            print(log_artifact_safe("metrics.json", "reports"))
        print(*(found.path for found in mlflow.MlflowClient().list_artifacts(run.info.run_id, "reports")))
    """
    done = python(program, tmp_path, *([store] if store else []), MLFLOW_ALLOW_FILE_STORE="true")
    assert done.stdout.splitlines() == ["True", "reports/metrics.json reports/metrics.json.manifest.json"]
    assert not (tmp_path / "artifacts").exists()
