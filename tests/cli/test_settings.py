from __future__ import annotations

from pathlib import Path

import pytest


def _write(text: str) -> None:
    Path("config").mkdir(exist_ok=True)
    Path("config/mlflow.yaml").write_text(text)


def test_every_setting_says_where_it_came_from(run, monkeypatch):
    _write("azure_ml: {theirs: 1}\nartifacts:\n  pack: tar.gz\n")
    monkeypatch.setenv("STAGESINK_WORKERS", "3")
    settings = run("config", "--json").json["settings"]
    assert settings["artifacts.pack"]["value"] == "tar.gz"
    assert settings["artifacts.pack"]["origin"].endswith("mlflow.yaml:3")
    assert settings["artifacts.workers"] == {"value": 3, "origin": "STAGESINK_WORKERS"}
    assert settings["artifacts.verify"]["origin"] == "default"
    table = run("config").out
    assert "artifacts.workers" in table
    assert "STAGESINK_WORKERS" in table


def test_sink_and_run_are_told_with_the_reason(run, monkeypatch):
    document = run("config", "--json").json
    assert document["sink"]["uri"] == "file:./artifacts"
    assert document["run"]["run_id"] is None
    assert document["file_found"] is False
    monkeypatch.setenv("MLFLOW_RUN_ID", "r7")
    monkeypatch.setenv("STAGESINK_SINK", "memory:x")
    document = run("config", "--json").json
    assert document["sink"] == {"uri": "memory:x", "why": "set by STAGESINK_SINK"}
    assert document["run"] == {"run_id": "r7", "why": "set by MLFLOW_RUN_ID"}
    assert run("config", "-s", "memory:y", "--json").json["sink"]["uri"] == "memory:y"


def test_auto_without_a_sink_for_it_says_so(run, monkeypatch):
    from stagesink.sinks.registry import is_registered

    if is_registered("mlflow"):
        pytest.skip("this installation has a sink for MLflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    answer = run("config")
    assert answer.code == 2
    assert "MLFLOW_TRACKING_URI" in answer.out
    assert "artifacts.workers" in answer.out
    assert run("config", "--json").json["sink"]["error"]["type"] == "UnknownScheme"


def test_no_secret_is_shown(run, monkeypatch):
    _write("artifacts:\n  sink: sftp://me:hunter2@host/x\n  storage_options: {secret: hunter3}\n")
    for arguments in (["config"], ["config", "--json"], ["config", "-vv"]):
        answer = run(*arguments)
        assert answer.code == 0
        assert "hunter" not in answer.out + answer.err


def test_the_general_switch_is_told(run, monkeypatch):
    monkeypatch.setenv("MLFLOW_SKIP_ARTIFACT_LOGGING", "true")
    assert "MLFLOW_SKIP_ARTIFACT_LOGGING" in run("config").out
    assert run("config", "--json").json["uploads_switched_off"] is True


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("artifacts: {worker: 3}", "workers"),
        ("artifacts:\n\tworkers: 3", "mlflow.yaml:2"),
        ("artifacts: [workers]", "mlflow.yaml:1"),
        ("artifacts: {workers: many}", "workers"),
        ("tracking: {trainnig: {enabled: false}}", "training"),
    ],
)
@pytest.mark.parametrize("command", ["config", "upload config", "ls -r r1", "verify -r r1", "restore -r r1 --to x"])
def test_a_broken_file_is_one_message_for_every_command(run, text, told, command):
    _write(text)
    answer = run(*command.split())
    assert answer.code == 2
    assert answer.err.startswith("error: ")
    assert told in answer.err
    assert not Path("artifacts").exists()


def test_a_config_dir_that_is_a_file(run):
    Path("mine").touch()
    assert run("config", "--config-dir", "mine").code == 2
