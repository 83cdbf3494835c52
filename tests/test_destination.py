from __future__ import annotations

import pytest

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
