"""What the fake Azure ML knows besides artifacts: runs, by MLflow's tracking calls, and datastores."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from azureml_servers import Caller, azureml_server, get_blob, put_blob
from servers import azurite_command

from stagesink.testing.azureml import CALLS, FakeAzureML
from stagesink.testing.azurite import COMMAND_VARIABLE


def _tracking(caller: Caller, name: str, body: object = None, **query: str) -> tuple[int, Any]:
    path = f"/mlflow/v2.0{caller.service.workspace.path}/api/2.0/mlflow/{name}"
    return caller.ask("POST" if body is not None else "GET", path, body, **query)


def test_a_run_is_made_and_what_is_logged_is_kept(caller: Caller) -> None:
    status, experiment = _tracking(caller, "experiments/create", {"name": f"of {caller.run_id}"})
    assert status == 200
    status, created = _tracking(caller, "runs/create", {"experiment_id": experiment["experiment_id"], "run_name": "x"})
    run_id = created["run"]["info"]["run_id"]
    logged = {
        "run_id": run_id,
        "metrics": [
            {"key": "loss", "value": value, "timestamp": step, "step": step} for step, value in enumerate((2, 1))
        ],
        "params": [{"key": "lr", "value": "0.1"}],
        "tags": [{"key": "a", "value": "b"}],
    }
    assert _tracking(caller, "runs/log-batch", logged)[0] == 200
    assert _tracking(caller, "runs/set-tag", {"run_id": run_id, "key": "c", "value": "d"})[0] == 200
    assert _tracking(caller, "runs/update", {"run_id": run_id, "status": "FINISHED", "end_time": 5})[0] == 200
    status, got = _tracking(caller, "runs/get", run_id=run_id)
    assert status == 200
    info, data = got["run"]["info"], got["run"]["data"]
    assert (info["status"], info["end_time"], info["lifecycle_stage"]) == ("FINISHED", 5, "active")
    assert info["artifact_uri"].startswith(f"azureml://127.0.0.1:{caller.service.port}/mlflow/")
    assert info["artifact_uri"].endswith(f"/experiments/of {caller.run_id}/runs/{run_id}/artifacts")
    assert [metric["value"] for metric in data["metrics"]] == [1]
    assert data["params"] == [{"key": "lr", "value": "0.1"}]
    assert {tag["key"] for tag in data["tags"]} == {"a", "c", "mlflow.runName"}
    status, history = _tracking(caller, "metrics/get-history", run_id=run_id, metric_key="loss")
    assert [metric["value"] for metric in history["metrics"]] == [2, 1]
    body = {"experiment_ids": [experiment["experiment_id"]]}
    status, found = _tracking(caller, "runs/search", body)
    assert [run["info"]["run_id"] for run in found["runs"]] == [run_id]


def test_an_experiment_is_found_by_its_name(caller: Caller) -> None:
    status, found = _tracking(caller, "experiments/get-by-name", experiment_name="experiment")
    assert status == 200
    wanted = found["experiment"]["experiment_id"]
    assert _tracking(caller, "experiments/get", experiment_id=wanted) == (status, found)
    status, error = _tracking(caller, "experiments/create", {"name": "experiment"})
    assert (status, error["error_code"]) == (400, "RESOURCE_ALREADY_EXISTS")


@pytest.mark.parametrize(
    ("name", "query", "code"),
    [
        ("runs/get", {"run_id": "no-such-run"}, "RESOURCE_DOES_NOT_EXIST"),
        ("experiments/get", {"experiment_id": "no-such-experiment"}, "RESOURCE_DOES_NOT_EXIST"),
        ("no/such/call", {}, "ENDPOINT_NOT_FOUND"),
    ],
)
def test_tracking_errors_are_mlflows_own(caller: Caller, name: str, query: dict[str, str], code: str) -> None:
    status, answer = _tracking(caller, name, **query)
    assert (status, answer["error_code"]) == (404, code)


@pytest.mark.parametrize("name", ["datastores/workspaceblobstore", "default"])
def test_a_datastore_gives_access_to_its_container(caller: Caller, name: str) -> None:
    status, store = caller.ask("GET", f"/datastore/v1.0{caller.service.workspace.path}/{name}")
    assert status == 200
    assert (store["name"], store["dataStoreType"]) == ("workspaceblobstore", "AzureBlob")
    section = store["azureStorageSection"]
    assert section["credentialType"] == "Sas"
    assert section["sasToken"] == section["credential"]
    url = f"{section['protocol']}://{section['endpoint']}/{section['accountName']}/{section['containerName']}"
    blob = f"{url}/{caller.run_id}?{section['sasToken']}"
    assert put_blob(blob, b"bytes") == 201
    assert get_blob(blob) == (200, b"bytes")


def test_a_datastore_can_have_a_key_or_nothing(caller: Caller) -> None:
    for kind, key in (("AccountKey", caller.service.azurite.key), ("None", None)):
        caller.service.add_datastore(f"with-{kind}", "another-container", kind)  # type: ignore[arg-type]
        _, store = caller.ask("GET", f"/datastore/v1.0{caller.service.workspace.path}/datastores/with-{kind}")
        section = store["azureStorageSection"]
        assert (section["credentialType"], section["accountKey"], section["credential"]) == (kind, key, key)
        assert section["sasToken"] is None


def test_a_datastore_can_be_of_another_type_and_say_its_secret_once(caller: Caller) -> None:
    caller.service.add_datastore("files", "another-container", type="AzureFile", older_names=False)
    _, store = caller.ask("GET", f"/datastore/v1.0{caller.service.workspace.path}/datastores/files")
    section = store["azureStorageSection"]
    assert store["dataStoreType"] == "AzureFile"
    assert (section["sasToken"], section["accountKey"], section["credentialType"]) == (None, None, "Sas")
    assert "sig=" in section["credential"]


def test_datastores_are_listed(caller: Caller) -> None:
    status, page = caller.ask("GET", f"/datastore/v1.0{caller.service.workspace.path}/datastores")
    assert status == 200
    assert {"workspaceblobstore", "workspaceartifactstore"} <= {store["name"] for store in page["value"]}
    assert caller.ask("GET", f"/datastore/v1.0{caller.service.workspace.path}/datastores/nothing")[0] == 404


def test_calls_are_counted(caller: Caller) -> None:
    before = len(caller.service.calls)
    caller.register("a")
    caller.listed()
    assert caller.service.calls[before:] == ["register", "list"]
    assert set(caller.service.calls) <= set(CALLS)


def test_an_environment_is_that_of_a_job(caller: Caller) -> None:
    variables = caller.service.environment(caller.run_id)
    assert variables["AZUREML_RUN_ID"] == variables["MLFLOW_RUN_ID"] == caller.run_id
    assert variables["MLFLOW_TRACKING_URI"] == caller.service.tracking_uri
    assert caller.ask("GET", caller.of_run, token=variables["MLFLOW_TRACKING_TOKEN"])[0] == 200
    assert variables["REQUESTS_CA_BUNDLE"] == str(caller.service.ca_path)


def test_two_runs_keep_apart(azureml_service: FakeAzureML) -> None:
    one, other = (Caller(azureml_service, azureml_service.new_run(name), name) for name in ("one", "other"))
    one.register("a")
    assert other.listed() == []
    with pytest.raises(ValueError, match="already"):
        azureml_service.new_run("one", one.run_id)


def test_it_ends_while_a_client_keeps_its_connection(tmp_path: Path, azureml_service: FakeAzureML) -> None:
    from http.client import HTTPConnection

    with azureml_server(tmp_path, azurite=azureml_service.azurite, plain=True) as service:
        connection = HTTPConnection("127.0.0.1", service.port, timeout=60)
        connection.request("GET", "/")
        assert connection.getresponse().read()
    with pytest.raises(ConnectionError):
        connection.connect()
    connection.close()


def test_as_a_process_it_prints_a_jobs_environment(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stagesink.testing.azureml", "--folder", str(tmp_path), "--experiment", "training"]
    environment = {**os.environ, COMMAND_VARIABLE: azurite_command()}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            variables = {}
            for line in iter(process.stdout.readline, ""):
                if line.startswith("# Ready"):
                    break
                name, _, value = line.removeprefix("export ").strip().partition("=")
                (variables[name],) = shlex.split(value)
            assert variables["AZUREML_ARM_PROJECT_NAME"] == "training"
            assert variables["AZUREML_SERVICE_ENDPOINT"].startswith("http://127.0.0.1:")
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
