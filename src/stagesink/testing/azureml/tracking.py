"""MLflow's tracking calls, as far as clients need them around artifacts: experiments, runs, what is logged to them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from stagesink.testing.azureml.messages import Request, Response, answer
from stagesink.testing.azureml.state import Experiment, Run, State


class TrackingError(Exception):
    """An error in MLflow's own words."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    def response(self) -> Response:
        return answer({"error_code": self.code, "message": str(self)}, self.status)


@dataclass(frozen=True)
class Tracking:
    """Answers the calls.

    Attributes
    ----------
    state : State
    artifact_root : str
        What the artifact URIs of runs begin with.
    """

    state: State
    artifact_root: str

    def call(self, name: str, request: Request) -> Response:
        """Answer a call by its name, such as ``"runs/create"``."""
        calls: dict[str, Callable[[dict[str, Any]], Mapping[str, object]]] = {
            "experiments/create": self._create_experiment,
            "experiments/get": self._get_experiment,
            "experiments/get-by-name": self._get_experiment,
            "experiments/search": self._search_experiments,
            "experiments/list": self._search_experiments,
            "runs/create": self._create_run,
            "runs/get": self._get_run,
            "runs/update": self._update_run,
            "runs/delete": self._delete_run,
            "runs/restore": self._restore_run,
            "runs/search": self._search_runs,
            "runs/log-batch": self._log_batch,
            "runs/log-metric": self._log_metric,
            "runs/log-parameter": self._log_parameter,
            "runs/set-tag": self._set_tag,
            "runs/delete-tag": self._delete_tag,
            "metrics/get-history": self._metric_history,
            "logged-models/search": lambda given: {"models": []},  # MLflow 3 asks for them when it lists a run
        }
        if name not in calls:
            raise TrackingError(404, "ENDPOINT_NOT_FOUND", f"This service does not know {name}.")
        return answer(calls[name](dict(request.query) if request.method == "GET" else request.json()))

    def make_run(self, experiment: str, run_id: str, request: Request) -> Response:
        """Make the run that is not there, under the id that the client gives it; change the one that is."""
        given: dict[str, Any] = request.json()
        run = self.state.runs.get(run_id)
        if run is None:
            run = self.state.new_run(self._experiment(experiment), run_id)
        elif run.experiment.name != experiment:
            raise TrackingError(400, "UserError", f"Run {run_id} is one of another experiment.")
        run.tags.update(given.get("tags") or {})
        run.name = given.get("displayName") or run.name
        run.status = str(given.get("status") or run.status).upper()
        if given.get("startTimeUtc"):
            run.started = round(datetime.fromisoformat(given["startTimeUtc"]).timestamp() * 1000)
        return answer({"runId": run.id, "parentRunId": given.get("parentRunId"), "status": run.status})

    # -- experiments ---------------------------------------------------------------------------------------------------

    def _create_experiment(self, given: dict[str, Any]) -> Mapping[str, object]:
        name = given.get("name", "")
        if name in self.state.experiments:
            raise TrackingError(400, "RESOURCE_ALREADY_EXISTS", f"There is an experiment {name!r} already.")
        experiment = self.state.experiment(name)
        experiment.tags.update(_pairs(given.get("tags")))
        return {"experiment_id": experiment.id}

    def _get_experiment(self, given: dict[str, Any]) -> Mapping[str, object]:
        wanted = given.get("experiment_id") or given.get("experiment_name")
        return {"experiment": self._shown_experiment(self._experiment(wanted))}

    def _search_experiments(self, given: dict[str, Any]) -> Mapping[str, object]:
        return {"experiments": [self._shown_experiment(known) for known in list(self.state.experiments.values())]}

    def _experiment(self, wanted: str | None) -> Experiment:
        for known in list(self.state.experiments.values()):
            if wanted in (known.id, known.name):
                return known
        raise TrackingError(404, "RESOURCE_DOES_NOT_EXIST", f"There is no experiment {wanted!r}.")

    def _shown_experiment(self, experiment: Experiment) -> Mapping[str, object]:
        return {
            "experiment_id": experiment.id,
            "name": experiment.name,
            "artifact_location": "",
            "lifecycle_stage": "active",
            "tags": _listed(experiment.tags),
        }

    # -- runs ----------------------------------------------------------------------------------------------------------

    def _create_run(self, given: dict[str, Any]) -> Mapping[str, object]:
        run = self.state.new_run(self._experiment(given.get("experiment_id")))
        run.tags.update(_pairs(given.get("tags")))
        run.name = given.get("run_name") or run.tags.get("mlflow.runName") or run.id
        run.tags.setdefault("mlflow.runName", run.name)
        run.user = given.get("user_id", "")
        run.started = int(given.get("start_time") or run.started)
        return {"run": self._shown(run)}

    def _get_run(self, given: dict[str, Any]) -> Mapping[str, object]:
        return {"run": self._shown(self._run(given))}

    def _update_run(self, given: dict[str, Any]) -> Mapping[str, object]:
        run = self._run(given)
        run.status = given.get("status") or run.status
        if given.get("end_time"):
            run.ended = int(given["end_time"])
        if given.get("run_name"):
            run.name = run.tags["mlflow.runName"] = given["run_name"]
        return {"run_info": self._info(run)}

    def _delete_run(self, given: dict[str, Any]) -> Mapping[str, object]:
        self._run(given).deleted = True
        return {}

    def _restore_run(self, given: dict[str, Any]) -> Mapping[str, object]:
        self._run(given).deleted = False
        return {}

    def _search_runs(self, given: dict[str, Any]) -> Mapping[str, object]:
        wanted = given.get("experiment_ids") or []
        runs = [run for run in list(self.state.runs.values()) if run.experiment.id in wanted and not run.deleted]
        return {"runs": [self._shown(run) for run in runs[: int(given.get("max_results") or 1000)]]}

    def _log_batch(self, given: dict[str, Any]) -> Mapping[str, object]:
        run = self._run(given)
        run.metrics += given.get("metrics") or []
        run.params.update(_pairs(given.get("params")))
        run.tags.update(_pairs(given.get("tags")))
        return {}

    def _log_metric(self, given: dict[str, Any]) -> Mapping[str, object]:
        known = ("key", "value", "timestamp", "step")
        self._run(given).metrics.append({name: given[name] for name in known if name in given})
        return {}

    def _log_parameter(self, given: dict[str, Any]) -> Mapping[str, object]:
        self._run(given).params[given["key"]] = given["value"]
        return {}

    def _set_tag(self, given: dict[str, Any]) -> Mapping[str, object]:
        self._run(given).tags[given["key"]] = given["value"]
        return {}

    def _delete_tag(self, given: dict[str, Any]) -> Mapping[str, object]:
        self._run(given).tags.pop(given["key"], None)
        return {}

    def _metric_history(self, given: dict[str, Any]) -> Mapping[str, object]:
        metrics = self._run(given).metrics
        return {"metrics": [metric for metric in metrics if metric["key"] == given.get("metric_key")]}

    def _run(self, given: dict[str, Any]) -> Run:
        wanted = given.get("run_id") or given.get("run_uuid")
        if wanted not in self.state.runs:
            raise TrackingError(404, "RESOURCE_DOES_NOT_EXIST", f"Run {wanted!r} was not found.")
        return self.state.runs[wanted]

    def _shown(self, run: Run) -> Mapping[str, object]:
        last = {str(metric["key"]): metric for metric in run.metrics}
        data = {"metrics": list(last.values()), "params": _listed(run.params), "tags": _listed(run.tags)}
        return {"info": self._info(run), "data": data, "inputs": {}}

    def _info(self, run: Run) -> Mapping[str, object]:
        info = {
            "run_id": run.id,
            "run_uuid": run.id,
            "run_name": run.name,
            "experiment_id": run.experiment.id,
            "user_id": run.user,
            "status": run.status,
            "start_time": run.started,
            "artifact_uri": f"{self.artifact_root}/experiments/{run.experiment.name}/runs/{run.id}/artifacts",
            "lifecycle_stage": "deleted" if run.deleted else "active",
        }
        return {**info, "end_time": run.ended or int(time.time() * 1000)} if run.status != "RUNNING" else info


def _pairs(given: Any) -> dict[str, str]:
    return {entry["key"]: entry.get("value", "") for entry in given or []}


def _listed(pairs: Mapping[str, str]) -> list[Mapping[str, str]]:
    return [{"key": key, "value": value} for key, value in pairs.items()]
