"""Making runs that began without the workspace: it takes their ids as they are, and neither mlflow nor its plug-in.

Read off Microsoft's published clients: ``PATCH /history/v1.0/.../experiments/<name>/runs/<id>`` makes the run that is
not there. What is logged goes through the workspace's MLflow API.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

from stagesink.errors import RunNotFound, SinkError
from stagesink.sinks._http.client import HttpClient, json_of
from stagesink.sinks.azureml.address import Address
from stagesink.sinks.azureml.service import Tracking, error_of, experiment_of
from stagesink.sinks.runs import LOCAL_RUN_TAG, Logged, LogRefused, NewRun, Point

_DEFAULT_EXPERIMENT = "Default"
_PARENT_TAG = "mlflow.parentRunId"
_NAME_TAG = "mlflow.runName"


class WorkspaceRuns:
    """The runs of one workspace; see :class:`.RunServer`.

    Parameters
    ----------
    http : HttpClient
        Brings the token.
    address : Address
    """

    def __init__(self, http: HttpClient, address: Address) -> None:
        self._http = http
        self._address = address
        self._tracking = Tracking(http, address.workspace)

    def experiment_of(self, run: NewRun) -> str:
        if run.experiment is not None:
            name = run.experiment
        elif run.parent_run_id is not None:
            name = experiment_of(self._http, self._address.workspace, run.parent_run_id)
        else:
            of_job = next((name for _, name in self._address.experiments), None)
            name = of_job or os.environ.get("MLFLOW_EXPERIMENT_NAME") or _DEFAULT_EXPERIMENT
        self._tracking.experiment_id(name, f"The experiment {name} could not be looked up")
        return name

    def find(self, run: NewRun, experiment: str) -> str | None:
        try:
            self.check(run.local_id)
        except RunNotFound:
            return None
        return run.local_id

    def make(self, run: NewRun, experiment: str) -> str:
        doing = f"Run {run.local_id} could not be made in {self._address.workspace.name}"
        tags = {**run.tags, LOCAL_RUN_TAG: run.local_id}
        wanted: dict[str, Any] = {
            "runId": run.local_id,
            "status": "Running",
            "startTimeUtc": datetime.fromtimestamp(run.time / 1000, timezone.utc).isoformat(),
        }
        if run.parent_run_id is not None:
            wanted["parentRunId"] = tags[_PARENT_TAG] = run.parent_run_id
        if run.name is not None:
            wanted["displayName"] = tags[_NAME_TAG] = run.name
        workspace = self._address.workspace
        of_run = f"experiments/{quote(experiment, safe='')}/runs/{quote(run.local_id, safe='')}"
        url = f"{workspace.service}/history/v1.0/{workspace.path}/{of_run}"
        response = self._http.request("PATCH", url, doing, json={**wanted, "tags": tags})
        error = error_of(response, doing, self._http.name, missing=SinkError)
        if error is not None:
            raise error
        return run.local_id

    def check(self, run_id: str) -> None:
        self._run(run_id)

    def tags(self, run_id: str) -> Mapping[str, str]:
        data = self._run(run_id).get("data")
        found = data.get("tags") if isinstance(data, Mapping) else None
        return {each["key"]: each.get("value", "") for each in found or ()}

    def _run(self, run_id: str) -> Mapping[str, Any]:
        doing = f"Run {run_id} could not be looked up"
        answer = self._tracking.call("GET", f"runs/get?run_id={quote(run_id, safe='')}", doing)
        self._tracking.text(answer, doing, "run", "info", "run_id")
        run: Mapping[str, Any] = answer["run"]
        return run

    def history(self, run_id: str, key: str) -> set[Point]:
        doing = f"What run {run_id} has of {key} could not be looked up"
        found: set[Point] = set()
        token = ""
        while True:
            page = f"&page_token={quote(token, safe='')}" if token else ""
            call = f"metrics/get-history?run_id={quote(run_id, safe='')}&metric_key={quote(key, safe='')}{page}"
            answer = self._tracking.call("GET", call, doing)
            for each in answer.get("metrics", []):
                found.add(Point(key, float(each["value"]), int(each["timestamp"]), int(each.get("step", 0))).shown)
            last, token = token, answer.get("next_page_token") or ""
            if not token or token == last:
                return found

    def log(self, run_id: str, logged: Logged) -> None:
        body = {
            "run_id": run_id,
            "params": [{"key": name, "value": value} for name, value in logged.params],
            "metrics": [
                {"key": each.key, "value": _number(each.value), "timestamp": each.time, "step": each.step}
                for each in logged.points
            ],
            "tags": [{"key": name, "value": value} for name, value in logged.tags],
        }
        doing = f"What waited for run {run_id} could not be logged"
        self._asked("runs/log-batch", doing, body)

    def end(self, run_id: str, status: str, time: int) -> None:
        body = {"run_id": run_id, "status": status, "end_time": time}
        self._asked("runs/update", f"Run {run_id} could not be ended", body)

    def _asked(self, call: str, doing: str, body: Mapping[str, Any]) -> None:
        response = self._tracking.request("POST", call, doing, body)
        error = error_of(response, doing, self._http.name, missing=RunNotFound)
        if error is not None and response.status == 400 and json_of(response):
            raise LogRefused(error.message, hint=error.hint)
        if error is not None:
            raise error


def _number(value: float) -> float | str:
    """Return it as MLflow's API takes it: JSON has no NaN and no infinities."""
    return value if value - value == 0 else {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[repr(value)]
