"""Which call a request is, and who may make it."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from urllib.parse import unquote

from stagesink.testing.azureml.artifacts import Artifacts
from stagesink.testing.azureml.datastores import DEFAULT, Datastores
from stagesink.testing.azureml.faults import Answer, Delay, Faults
from stagesink.testing.azureml.identity import Identity
from stagesink.testing.azureml.messages import JSON, Request, Response, ServiceError, answer, error_body
from stagesink.testing.azureml.state import ORIGIN, Container, State
from stagesink.testing.azureml.tokens import InvalidToken
from stagesink.testing.azureml.tracking import Tracking, TrackingError

_WORKSPACE = re.compile(
    r"/(?P<service>(history|datastore)/v1\.0|artifact/v2\.0|mlflow/v[12]\.0)"
    r"(?P<workspace>/subscriptions/[^/]+/resourcegroups/[^/]+/providers/microsoft\.machinelearningservices"
    r"/workspaces/[^/]+)/(?P<rest>.+)",
    re.IGNORECASE,
)
_RUN = re.compile(r"experiment(?P<ids>ids|s)/(?P<experiment>[^/]+)/runs/(?P<run>[^/]+)/(?P<rest>.+)")
_WHOLE_RUN = re.compile(r"experiments/(?P<experiment>[^/]+)/runs/(?P<run>[^/]+)")
_TRACKING = re.compile(r"api/[23]\.0/mlflow/(.+)")

_OF_RUN = {
    ("POST", "artifacts/batch/metadata"): "register",
    ("GET", "artifacts"): "list",
    ("GET", "artifacts/path"): "list",
    ("GET", "artifacts/contentinfo"): "content",
    ("GET", "artifacts/artifacturi"): "uri",
    ("GET", "artifacts/prefix/contentinfo"): "prefix",
    ("GET", "artifacts/metadata"): "metadata",
    ("GET", "token"): "token",
}
_OF_CONTAINER = {
    ("POST", "batch/metadata"): "register",
    ("GET", ""): "list",
    ("GET", "contentinfo"): "content",
    ("GET", "prefix/contentinfo"): "prefix",
    ("GET", "metadata"): "metadata",
    ("GET", "write"): "write",
    ("DELETE", "metadata"): "delete",
}

CALLS = (
    *sorted({*_OF_RUN.values(), *_OF_CONTAINER.values()}),
    "adopt",
    "datastore",
    "datastores",
    "make",
    "tracking",
)
"""Names of the calls: what :class:`Faults` are ordered for, and what ``service.calls`` counts."""


@dataclass
class Calls:
    """Answers requests."""

    state: State
    artifacts: Artifacts
    datastores: Datastores
    tracking: Tracking
    identity: Identity
    faults: Faults
    token_seconds: float
    made: list[str] = field(default_factory=list)

    def answer(self, request: Request) -> Response:
        """Answer a request, whatever it is."""
        try:
            return self.identity.answer(request, self.token_seconds) or self._answer(request)
        except ServiceError as error:
            return answer(error_body(error.code, error.message, error.inner), error.status)
        except TrackingError as error:
            return error.response()

    def clock(self) -> float:
        """Return what the time is by the service's clock."""
        return time.time() + self.faults.clock_ahead

    def _answer(self, request: Request) -> Response:
        found = _WORKSPACE.fullmatch(request.path)
        if not found:
            raise ServiceError(404, "NotFoundError", "There is no such call.")
        service, rest = found["service"].partition("/")[0].lower(), found["rest"]
        name, arguments = _named(service, request.method, rest)
        self.made.append(name)
        fault = self._fault(name)
        if fault:
            return fault
        self._authorise(request, unquote(found["workspace"]))
        return self._call(name, arguments, request)

    def _fault(self, name: str) -> Response | None:
        delay = self.faults.take(name, Delay)
        if delay:
            time.sleep(delay.seconds)
        fault = self.faults.take(name, Answer)
        if fault is None:
            return None
        headers = {"Retry-After": fault.retry_after} if fault.retry_after is not None else {}
        if fault.body or fault.content_type != "application/json":
            return Response(fault.status, fault.body, fault.content_type, headers)
        code = "ServiceError" if fault.status >= 500 else "UserError"
        body = answer(error_body(code, f"Ordered: HTTP {fault.status}.", None)).body
        return Response(fault.status, body, JSON, headers)

    def _authorise(self, request: Request, workspace: str) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise ServiceError(401, "AuthorizationError", "The request has no bearer token.")
        try:
            allowed = self.identity.tokens.check(token)
        except InvalidToken as error:
            raise ServiceError(401, "AuthorizationError", str(error)) from None
        if workspace.lower() != self.state.workspace.path.lower():
            raise ServiceError(404, "NotFoundError", "The workspace was not found.")
        if allowed.lower() != workspace.lower():
            raise ServiceError(403, "AuthorizationError", "The token gives no access to this workspace.")

    def _call(self, name: str, arguments: tuple[str, ...], request: Request) -> Response:
        if name == "tracking":
            return self.tracking.call(arguments[0], request)
        if name == "datastores":
            return self.datastores.list(request)
        if name == "datastore":
            return self.datastores.get(arguments[0])
        if name == "adopt":
            return self.artifacts.adopt(request)
        if name == "make":
            return self.tracking.make_run(arguments[0], arguments[1], request)
        container = self._container(*arguments)
        if name == "token":
            return self._token()
        made: Response = getattr(self.artifacts, name)(container, request)
        return made

    def _container(self, kind: str, parent: str, name: str) -> Container:
        if kind == "container":
            container = self.state.container(name) if parent == ORIGIN else None
            if container is None:
                raise ServiceError(404, "NotFoundError", f"There is no container {parent}/{name}.")
            return container
        run = self.state.runs.get(name)
        if run is None or parent != (run.experiment.id if kind == "ids" else run.experiment.name):
            raise ServiceError(404, "NotFoundError", f"Run {name} was not found in experiment {parent}.")
        return run.artifacts

    def _token(self) -> Response:
        token = self.identity.tokens.make(self.state.workspace.path, expires_in=self.token_seconds)
        expiry = datetime.fromtimestamp(time.time() + self.token_seconds, timezone.utc)
        return answer({"token": token, "expiryTimeUtc": expiry.isoformat()})


def _named(service: str, method: str, rest: str) -> tuple[str, tuple[str, ...]]:
    """Return the name of a call and what its path says besides."""
    if service == "mlflow":
        tracking = _TRACKING.fullmatch(rest)
        if tracking:
            return "tracking", (tracking[1],)
    elif service == "history":
        whole = _WHOLE_RUN.fullmatch(rest)
        if whole and method == "PATCH":
            return "make", (unquote(whole["experiment"]), unquote(whole["run"]))
        run = _RUN.fullmatch(rest)
        if run and (method, run["rest"]) in _OF_RUN:
            return _OF_RUN[method, run["rest"]], (run["ids"], unquote(run["experiment"]), unquote(run["run"]))
    elif service == "datastore" and method == "GET":
        if rest in ("datastores", "default"):
            return ("datastores", ()) if rest == "datastores" else ("datastore", (DEFAULT,))
        kind, _, name = rest.partition("/")
        if kind == "datastores":
            return "datastore", (unquote(name),)
    elif service == "artifact":
        if (method, rest) == ("POST", "artifacts/register"):
            return "adopt", ()
        _, origin, container, *call = [*rest.split("/", 3), "", ""][:4]
        if (method, call[0]) in _OF_CONTAINER:
            return _OF_CONTAINER[method, call[0]], ("container", unquote(origin), unquote(container))
    raise ServiceError(404, "NotFoundError", "There is no such call.")
