"""The tracking API, asked one thing: where a run's artifacts lie."""

from __future__ import annotations

import os
from functools import partial
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from stagesink.errors import MissingExtra, RunNotFound, SinkError
from stagesink.sinks._backend_errors import translating
from stagesink.sinks._http.client import HttpClient, json_of
from stagesink.sinks.mlflow import connection
from stagesink.sinks.mlflow.address import Address
from stagesink.sinks.mlflow.answers import error_of
from stagesink.sinks.mlflow.patience import trying_once


def _run_hint() -> str:
    """Say what to check. A server answers the same for a workspace that it does not know."""
    workspace = "MLFLOW_WORKSPACE, " if os.environ.get("MLFLOW_WORKSPACE") else ""
    return f"Check the run id, {workspace}and that this is the server it was made on."


class Tracking(Protocol):
    """A tracking server or store."""

    def artifact_root(self, run_id: str) -> str:
        """Return the URI under which the run's artifacts lie.

        Raises
        ------
        RunNotFound
            The server knows no such run, or it is deleted.
        SinkError
            The server cannot be asked.
        """
        ...


def http_client(address: Address) -> HttpClient:
    """Return what sends requests to the server, in the way of mlflow's own client."""
    return HttpClient(
        urlsplit(address.server).netloc if address.is_http else address.shown,
        lambda: connection.pool_manager(address),
        lambda: connection.headers(address),
        connection.HINTS,
    )


class RestTracking:
    """A server that is asked over REST, so that mlflow need not be imported.

    ``GET /api/2.0/mlflow/runs/get``: https://mlflow.org/docs/latest/rest-api.html#get-run
    """

    def __init__(self, address: Address, http: HttpClient) -> None:
        self._address = address
        self._http = http

    def artifact_root(self, run_id: str) -> str:
        doing = f"Run {run_id} could not be looked up"
        url = f"{self._address.server}/api/2.0/mlflow/runs/get?run_id={quote(run_id, safe='')}"
        response = self._http.request("GET", url, doing)
        answer = json_of(response)
        if response.status in (400, 404) and "error_code" in answer:
            # 400 is for what can be no run id.
            raise RunNotFound(f"{self._address.shown} knows no run {run_id}.", hint=_run_hint())
        error = error_of(response, doing, self._http.name, missing=SinkError)
        info = answer.get("run", {}).get("info", {}) if isinstance(answer.get("run", {}), dict) else {}
        root = info.get("artifact_uri") if isinstance(info, dict) else None
        if (error is None or type(error) is SinkError) and not (isinstance(root, str) and root):
            raise SinkError(
                f"{doing}: {self._http.name} answered {response.status}, and not as an MLflow server does.",
                hint="Check the address: http or https, host, port, and the prefix it is served under.",
            )
        if error is not None:
            raise error
        check_living(run_id, str(info.get("lifecycle_stage")))
        return str(root)


def reach(address: Address) -> None:
    """Knock at the server once, since mlflow's own client would knock for minutes. What it answers does not matter.

    Raises
    ------
    SinkError
        Nobody answers, or not in HTTP.
    """
    if address.is_http:
        http = http_client(address)
        try:
            http.request("GET", f"{address.server}/health", f"{address.shown} was asked whether it is there")
        finally:
            http.close()


class ClientTracking:
    """Any store that mlflow's own client knows: sqlite, Databricks, plug-ins."""

    def __init__(self, address: Address) -> None:
        self._address = address

    def artifact_root(self, run_id: str) -> str:
        client = client_of(self._address)
        doing = f"Run {run_id} could not be looked up in {self._address.shown}"
        try:
            with (
                translating(doing, missing=RunNotFound, secrets=partial(connection.secrets, self._address)),
                trying_once(),
            ):
                info = client.get_run(run_id).info
        except RunNotFound as error:
            error.hint = _run_hint()
            raise
        check_living(run_id, info.lifecycle_stage)
        return str(info.artifact_uri)


def client_of(address: Address) -> Any:
    """Return mlflow's own client for the server.

    Parameters
    ----------
    address : Address

    Raises
    ------
    MissingExtra
        mlflow, or what it needs, is not installed.
    """
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        missing = error.name or "a part of it"  # mlflow itself, or what it imports
        raise MissingExtra(
            f"{address.shown} is reached through mlflow's own client, and {missing} is not installed.",
            hint="pip install 'stagesink[mlflow]'",
        ) from error
    try:
        with translating(f"{address.shown} could not be opened", secrets=partial(connection.secrets, address)):
            return MlflowClient(tracking_uri=address.tracking_uri)
    except SinkError as error:
        error.hint = (
            "Check the address. A database takes all of mlflow (pip install mlflow), not mlflow-skinny alone, "
            "and others take a plug-in, such as azureml-mlflow for azureml://."
        )
        raise


def check_living(run_id: str, lifecycle_stage: str) -> None:
    """Raise :class:`~stagesink.errors.RunNotFound` for a run that is deleted."""
    if lifecycle_stage == "deleted":
        raise RunNotFound(f"Run {run_id} is deleted.", hint=f"Restore it: `mlflow runs restore --run-id {run_id}`.")
