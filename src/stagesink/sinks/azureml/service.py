"""The service's calls: it knows which paths a run has, and signs URLs for their blobs.

Read off the published client, azureml-mlflow 1.60 to 1.62: ``/history/v1.0`` keeps what belongs to a run,
``/artifact/v2.0`` is the store of artifacts under it, and ``/mlflow/v1.0`` speaks MLflow's REST API.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from json import loads
from typing import TYPE_CHECKING, Any, TypeGuard
from urllib.parse import quote, unquote

from stagesink.artifacts import ArtifactKey
from stagesink.errors import (
    ArtifactNotFound,
    RunNotFound,
    SinkAuthError,
    SinkError,
    SinkQuotaError,
    TransientSinkError,
)
from stagesink.sinks._http.client import HttpClient, json_of
from stagesink.sinks._http.status import kind_of_status, retry_after_seconds
from stagesink.sinks.azureml.address import Workspace
from stagesink.sinks.azureml.auth import refused

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

_ORIGIN = "ExperimentRun"
_UNEXPECTED = "Check the address; `stagesink doctor` tests it."
# What the service says of one path of a batch, by its innermost code. A conflict has none that is known, so what is not
# named here may be one: it shows by the path being registered.
_OF_PATH: dict[str, type[SinkError]] = {
    "AuthorizationError": SinkAuthError,
    "BadArgument": SinkError,
    "BadRequest": SinkError,
    "QuotaExceeded": SinkQuotaError,
}
_EXPERIMENT = re.compile(r"^azureml://.*/experiments/(?P<name>[^/]+)/runs/")


class Run:
    """One run's artifacts, as the service knows them.

    Parameters
    ----------
    http : HttpClient
        Brings the token.
    workspace : Workspace
    experiment, run_id : str
    """

    def __init__(self, http: HttpClient, workspace: Workspace, experiment: str, run_id: str) -> None:
        self._http = http
        self.run_id = run_id
        of_run = f"experiments/{quote(experiment, safe='')}/runs/{quote(run_id, safe='')}"
        self.uri = f"{workspace.tracking_uri}/{of_run}/artifacts"
        self._history = f"{workspace.service}/history/v1.0/{workspace.path}/{of_run}/artifacts"
        container = f"{_ORIGIN}/dcid.{quote(run_id, safe='')}"
        self._store = f"{workspace.service}/artifact/v2.0/{workspace.path}/artifacts/{container}"
        self._refused: dict[str, SinkError] = {}

    def register(self, paths: Sequence[str]) -> dict[str, str]:
        """Register paths and return the URLs that their blobs are written to.

        A path that was registered before is refused ("Resource Conflict"), also where its blob never came, and is
        missing in the answer: :meth:`write_url` gives a new URL for it, and says what the service said of it if it is
        something else.
        """
        doing = f"{self.uri}/{paths[0]}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        doing += " could not be registered"
        asked = {"paths": [{"path": path} for path in paths]}
        response = self._http.request("POST", f"{self._history}/batch/metadata", doing, json=asked)
        answer = self._checked(response, doing, missing=RunNotFound)
        given = answer.get("artifactContentInformation")
        urls = {path: _uri_of(info) for path, info in given.items()} if isinstance(given, Mapping) else {}
        errors = answer.get("errors")
        for path, said in errors.items() if isinstance(errors, Mapping) else ():
            self._refused[path] = _refusal(said, f"{self.uri}/{path} could not be registered", self._http.name)
        given_urls = {path: url for path, url in urls.items() if url is not None}
        for path in given_urls:
            self._refused.pop(path, None)
        return given_urls

    def write_url(self, path: str) -> str:
        """Return a new URL that the blob of a registered path is written to.

        Raises
        ------
        SinkError
            The path is not registered, for the reason that the service gave when it was to be.
        TransientSinkError
            It gave none, or none that tells it from a conflict: somebody may have removed it since.
        """
        doing = f"{self.uri}/{path} could not be put"
        refusal = self._refused.pop(path, None)
        response = self._http.request("GET", f"{self._store}/write?path={quote(path, safe='')}", doing)
        try:
            return self._url(self._checked(response, doing, missing=ArtifactNotFound), doing)
        except ArtifactNotFound as error:
            raise refusal or TransientSinkError(error.message) from None

    def read_url(self, path: str) -> str | None:
        """Return a URL that the blob is read from, None where no such path is registered."""
        doing = f"{self.uri}/{path} could not be looked up"
        response = self._http.request("GET", f"{self._history}/contentinfo?path={quote(path, safe='')}", doing)
        try:
            return self._url(self._checked(response, doing, missing=ArtifactNotFound), doing)
        except ArtifactNotFound:
            return None

    def read_urls(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the path and the URL of what is registered under names that begin so."""
        doing = f"{self.uri}/{prefix} could not be listed"
        token: str | None = None
        while True:
            url = f"{self._history}/prefix/contentinfo?path={quote(prefix, safe='')}"
            url += f"&continuationToken={quote(token, safe='')}" if token else ""
            response = self._http.request("GET", url, doing)
            try:
                answer = self._checked(response, doing, missing=ArtifactNotFound)
            except ArtifactNotFound:
                self.check()  # an empty listing, or no such run
                return
            page = answer.get("value")
            if not isinstance(page, list):
                raise _no_service(doing, self._http.name)
            for info in page:
                if not isinstance(info, Mapping) or not isinstance(info.get("path"), str):
                    raise _no_service(doing, self._http.name)
                yield info["path"], self._url(info, doing)
            last, token = token, answer.get("continuationToken") or None
            if token is None:
                return
            if token == last:
                raise SinkError(
                    f"{doing}: {self._http.name} gives the same page again and again.",
                    hint="Try again later; if it stays so, the service is at fault.",
                )

    def forget(self, path: str) -> None:
        """Remove the path, and what the service can reach of its blob; silent where it is not registered."""
        doing = f"{self.uri}/{path} could not be removed"
        query = f"path={quote(path, safe='')}&hardDelete=true"
        response = self._http.request("DELETE", f"{self._store}/metadata?{query}", doing)
        error = error_of(response, doing, self._http.name)
        if error is not None and not isinstance(error, ArtifactNotFound):
            raise error

    def check(self) -> None:
        """See that the run is there.

        Raises
        ------
        RunNotFound
        """
        doing = f"{self.uri} could not be listed"
        self._checked(self._http.request("GET", self._history, doing), doing, missing=RunNotFound)

    def _checked(self, response: BaseHTTPResponse, doing: str, *, missing: type[SinkError]) -> dict[str, Any]:
        error = error_of(response, doing, self._http.name, missing=missing)
        if error is not None:
            raise error
        answer = json_of(response)
        if not answer:
            raise _no_service(doing, self._http.name)
        return answer

    def _url(self, info: Mapping[str, Any], doing: str) -> str:
        url = _uri_of(info)
        if url is None:
            raise _no_service(doing, self._http.name)
        return url


def experiment_of(http: HttpClient, workspace: Workspace, run_id: str) -> str:
    """Return the name of the experiment that a run belongs to.

    ``GET api/2.0/mlflow/runs/get``: the run's artifact URI holds it.

    Raises
    ------
    RunNotFound
        The workspace knows no such run.
    """
    key = ArtifactKey(run_id, "any")  # refuses what can be no run id
    doing = f"Run {key.run_id} could not be looked up"
    tracking = Tracking(http, workspace)
    answer = tracking.call("GET", f"runs/get?run_id={quote(run_id, safe='')}", doing)
    found = _EXPERIMENT.search(tracking.text(answer, doing, "run", "info", "artifact_uri"))
    if found is None:
        raise _no_service(doing, http.name)
    return unquote(found["name"])


def new_run(http: HttpClient, workspace: Workspace, experiment: str) -> str:
    """Make a run in an experiment, which is made too where it is not there, and return its id."""
    doing = f"No run could be started in {workspace.name}"
    tracking = Tracking(http, workspace)
    experiment_id = tracking.experiment_id(experiment, doing)
    wanted = {"experiment_id": experiment_id, "run_name": experiment, "start_time": int(time.time() * 1000)}
    return tracking.text(tracking.call("POST", "runs/create", doing, wanted), doing, "run", "info", "run_id")


def delete_run(http: HttpClient, workspace: Workspace, run_id: str) -> None:
    """Delete a run, as MLflow does."""
    Tracking(http, workspace).call("POST", "runs/delete", f"Run {run_id} could not be deleted", {"run_id": run_id})


class Tracking:
    """MLflow's REST API, as the workspace speaks it."""

    def __init__(self, http: HttpClient, workspace: Workspace) -> None:
        self._http = http
        self._base = f"{workspace.service}/mlflow/v1.0/{workspace.path}/api/2.0/mlflow"

    def request(self, method: str, call: str, doing: str, body: Mapping[str, Any] | None = None) -> BaseHTTPResponse:
        return self._http.request(method, f"{self._base}/{call}", doing, json=body)

    def call(self, method: str, call: str, doing: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        response = self.request(method, call, doing, body)
        error = error_of(response, doing, self._http.name, missing=RunNotFound)
        if error is not None:
            raise error
        return json_of(response)

    def experiment_id(self, name: str, doing: str) -> str:
        """Return the id of an experiment, which is made where it is not there."""
        try:
            answer = self.call("GET", f"experiments/get-by-name?experiment_name={quote(name, safe='')}", doing)
            return self.text(answer, doing, "experiment", "experiment_id")
        except RunNotFound:
            answer = self.call("POST", "experiments/create", doing, {"name": name})
            return self.text(answer, doing, "experiment_id")

    def text(self, answer: object, doing: str, *names: str) -> str:
        """Return what an answer holds under these names, one inside the other."""
        for name in names:
            answer = answer.get(name) if isinstance(answer, Mapping) else None
        if not isinstance(answer, str):
            raise _no_service(doing, self._http.name)
        return answer


def renewed_token(http: HttpClient, workspace: Workspace, experiment: str, run_id: str, token: str) -> str | None:
    """Return a newer token than a job's, None where the service gives none.

    Parameters
    ----------
    http : HttpClient
        Brings no token of its own.
    workspace : Workspace
    experiment, run_id : str
        Of the job.
    token : str

    Raises
    ------
    SinkError
        It could not be asked, or refuses.
    """
    doing = "The job's token could not be renewed"
    of_run = f"experiments/{quote(experiment, safe='')}/runs/{quote(run_id, safe='')}"
    url = f"{workspace.service}/history/v1.0/{workspace.path}/{of_run}/token"
    response = http.request("GET", url, doing, headers={"Authorization": f"Bearer {token}"})
    error = error_of(response, doing, http.name, missing=RunNotFound)
    if error is not None:
        raise error
    newer = json_of(response).get("token")
    return newer if isinstance(newer, str) else None


def error_of(
    response: BaseHTTPResponse, doing: str, name: str, *, missing: type[SinkError] = ArtifactNotFound
) -> SinkError | None:
    """Return what an answer of the service means, None when all is well; no text of the service's is shown.

    Parameters
    ----------
    response : urllib3.BaseHTTPResponse
        Read already.
    doing, name : str
        What could not be done, and by which server.
    missing : type of SinkError
        What 404 means here.
    """
    status = response.status
    succeeded = 200 <= status < 300
    if (succeeded or status == 404) and _is_a_page(response):
        return _no_service(doing, name)
    if succeeded:
        return None
    kind = (kind_of_status(status) if status >= 400 else SinkError) or SinkError
    said = json_of(response).get("error")
    code = said.get("code") if isinstance(said, Mapping) else None
    reason = f"{status} ({code})" if _is_shown(code) else str(status)
    if kind is SinkAuthError:
        return refused(doing, name, reason, response.headers.get("Date"))
    message = f"{doing}: {name} answered {reason}."
    if issubclass(kind, TransientSinkError):
        return kind(message, retry_after=retry_after_seconds(response.headers.get("Retry-After")))
    if kind is not ArtifactNotFound:
        return kind(message, hint=_UNEXPECTED if kind is SinkError else None)
    if missing is RunNotFound:
        return RunNotFound(message, hint="Check the run id, and that it is a run of this workspace.")
    return missing(message)


def _refusal(said: object, doing: str, name: str) -> SinkError:
    """Return what the service's word on one path of a batch means."""
    codes: list[str] = []
    inner = said.get("error") if isinstance(said, Mapping) else None
    while isinstance(inner, Mapping):
        codes += [code] if _is_shown(code := inner.get("code")) else []
        inner = inner.get("innerError")
    message = f"{doing}: {name} answered {': '.join(codes) or 'an error'}."
    kind = next((_OF_PATH[code] for code in reversed(codes) if code in _OF_PATH), TransientSinkError)
    return kind(message, hint=_UNEXPECTED if kind is SinkError else None)


def _is_shown(code: object) -> TypeGuard[str]:
    return isinstance(code, str) and code.isalnum() and len(code) < 64


def _is_a_page(response: BaseHTTPResponse) -> bool:
    """Tell what a proxy answers in the service's place: its own answers are JSON, or nothing."""
    body = response.data.strip()
    if not body or body.startswith(b"{"):
        return False
    try:
        loads(body)
    except (ValueError, RecursionError):
        return True
    return False


def _no_service(doing: str, name: str) -> SinkError:
    return SinkError(
        f"{doing}: {name} does not answer as Azure ML does.",
        hint="Check the address, and what stands between: a proxy's page looks like this.",
    )


def _uri_of(info: Any) -> str | None:
    url = info.get("contentUri") if isinstance(info, Mapping) else None
    return url if isinstance(url, str) and url.startswith(("https://", "http://")) else None
