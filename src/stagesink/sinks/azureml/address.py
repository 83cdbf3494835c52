"""Which workspace, and what of it, a sink's URI means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import SplitResult, quote, unquote, urlsplit

from stagesink.errors import ConfigError
from stagesink.redaction import without_secrets

_PROVIDER = "providers/Microsoft.MachineLearningServices"
_WORKSPACE = re.compile(
    r"(?:^|/)subscriptions/(?P<subscription>[^/]+)/resourceGroups/(?P<group>[^/]+)"
    r"(?:/providers/Microsoft\.MachineLearningServices)?/workspaces/(?P<workspace>[^/]+)(?P<rest>/.*)?$",
    re.IGNORECASE,  # as Azure takes them
)
_RUN = re.compile(r"/experiments/(?P<experiment>[^/]+)(?:/runs/(?P<run>[^/]+)(?:/artifacts)?)?/?$")
_DATASTORE = re.compile(r"/datastores/(?P<name>[^/]+)(?:/paths(?:/(?P<path>.*))?)?/?$")
_FORM = (
    "azureml://<host>/mlflow/v1.0/subscriptions/<id>/resourceGroups/<group>/providers/"
    "Microsoft.MachineLearningServices/workspaces/<name>"
)
_SHORT = "azureml://datastores/<name>/paths/<path>"
_HINT = f"Inside a job nothing needs to be set; elsewhere set MLFLOW_TRACKING_URI to the workspace's, {_FORM}"


@dataclass(frozen=True, slots=True)
class Workspace:
    """One workspace and the host of its services.

    Parameters
    ----------
    service : str
        ``https://<host>``, without a slash at its end.
    subscription, group, name : str
        As they stand in URLs, decoded.
    """

    service: str
    subscription: str
    group: str
    name: str

    @property
    def path(self) -> str:
        """``subscriptions/.../workspaces/<name>``, quoted, as every call of its services holds it."""
        parts = (self.subscription, self.group, self.name)
        subscription, group, name = (quote(part, safe="") for part in parts)
        return f"subscriptions/{subscription}/resourceGroups/{group}/{_PROVIDER}/workspaces/{name}"

    @property
    def tracking_uri(self) -> str:
        """What MLflow calls this workspace."""
        return f"azureml://{urlsplit(self.service).netloc}/mlflow/v1.0/{self.path}"


@dataclass(frozen=True, slots=True)
class Datastore:
    """A folder in one of a workspace's datastores."""

    name: str
    path: str


@dataclass(frozen=True, slots=True)
class Address:
    """What a URI names.

    Parameters
    ----------
    workspace : Workspace
    experiments : mapping of str to str
        Experiments by run id, where they need not be asked for.
    datastore : Datastore, optional
        None: the artifacts of runs.
    """

    workspace: Workspace
    experiments: tuple[tuple[str, str], ...] = ()
    datastore: Datastore | None = None


def address_of(uri: str, environ: Mapping[str, str]) -> Address:
    """Read ``azureml:``, which takes everything from the environment, and the ``azureml://`` forms.

    Parameters
    ----------
    uri : str
        A tracking URI, a run's artifact URI (``.../experiments/<name>/runs/<id>/artifacts``), or a datastore's
        (``.../datastores/<name>/paths/<path>``), with or without the service's host; ``azureml://datastores/...`` for
        one of the workspace that the environment names.
    environ : mapping of str to str
        What Azure ML sets in a job: https://learn.microsoft.com/azure/machine-learning/reference-run-environment
        and azureml-mlflow's own ``MLFLOW_TRACKING_URI``.

    Raises
    ------
    ConfigError
        The URI is none of these, or nothing names the workspace or its host.
    """
    rest = uri.partition(":")[2]
    if rest.strip("/") == "":
        return _of_environment(environ)
    if rest.startswith("//datastores/"):
        store = _datastore_of(rest.removeprefix("/"))
        if store is None:
            raise ConfigError(f"{without_secrets(uri)} names no datastore.", hint=f"The form is {_SHORT}.")
        return replace(_of_environment(environ), datastore=store)
    return _parse(uri, environ)


def _of_environment(environ: Mapping[str, str]) -> Address:
    tracking = environ.get("MLFLOW_TRACKING_URI", "")
    return _of_job(environ) or _parse(tracking if _is_azureml(tracking) else "", environ)


def _is_azureml(uri: str) -> bool:
    return uri.lower().startswith("azureml://")


def _of_job(environ: Mapping[str, str]) -> Address | None:
    names = ("AZUREML_ARM_SUBSCRIPTION", "AZUREML_ARM_RESOURCEGROUP", "AZUREML_ARM_WORKSPACE_NAME")
    subscription, group, workspace = (environ.get(name, "") for name in names)
    service = _service(environ)
    if not (service and subscription and group and workspace):
        return None
    return Address(Workspace(service, subscription, group, workspace), _experiments(environ))


def _experiments(environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    run = environ.get("AZUREML_RUN_ID", "")
    experiment = environ.get("AZUREML_ARM_PROJECT_NAME") or environ.get("MLFLOW_EXPERIMENT_NAME", "")
    return ((run, experiment),) if run and experiment else ()


def _service(environ: Mapping[str, str]) -> str:
    endpoint = environ.get("AZUREML_SERVICE_ENDPOINT", "")
    if endpoint:
        parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
        return f"{parts.scheme}://{_without_login(parts)}" if parts.netloc else ""
    tracking = urlsplit(environ.get("MLFLOW_TRACKING_URI", ""))
    if tracking.scheme != "azureml" or "." not in tracking.netloc:
        return ""
    return f"https://{_without_login(tracking)}"


def _parse(uri: str, environ: Mapping[str, str]) -> Address:
    if not uri:
        raise ConfigError("Nothing names the Azure ML workspace.", hint=f"{_HINT}.")
    shown = without_secrets(uri)
    try:
        parts = urlsplit(uri)
    except ValueError:
        raise ConfigError(f"{shown} is no URL.", hint=f"The form is {_FORM}.") from None
    found = _WORKSPACE.search(f"{parts.netloc}{parts.path}")
    if found is None or parts.query or parts.fragment:
        raise ConfigError(f"{shown} names no Azure ML workspace.", hint=f"The form is {_FORM}.")
    long = parts.netloc.lower() != "subscriptions"  # azureml://subscriptions/... leaves the host out
    service = _service_of(_without_login(parts), environ) if long else _service(environ)
    if not service:
        raise ConfigError(f"{shown} names no host, and the environment does not either.", hint=f"{_HINT}.")
    workspace = Workspace(service, *(unquote(found[name]) for name in ("subscription", "group", "workspace")))
    rest = found["rest"] or ""
    if store := _datastore_of(rest):
        return Address(workspace, _experiments(environ), store)  # the job's, which renew its token
    experiments = _experiments(environ)
    if run := _RUN.match(rest):
        if run["run"]:
            experiments = (*experiments, (unquote(run["run"]), unquote(run["experiment"])))
    elif rest.strip("/"):
        raise ConfigError(
            f"{shown} names neither a run nor a datastore.",
            hint="Write .../experiments/<name>/runs/<id>, or .../datastores/<name>/paths/<path>; "
            "an artifact's path is given with the upload.",
        )
    return Address(workspace, experiments)


def _datastore_of(rest: str) -> Datastore | None:
    found = _DATASTORE.match(rest)
    return None if found is None else Datastore(unquote(found["name"]), unquote(found["path"] or "").strip("/"))


def _without_login(parts: SplitResult) -> str:
    """Return host and port. Azure ML takes tokens alone, and what is asked of a host is shown."""
    if "@" in parts.netloc:
        raise ConfigError(
            f"The address of {parts.netloc.rpartition('@')[2]} holds a login, which Azure ML does not take.",
            hint="Leave it out: tokens come from the job, from MLFLOW_TRACKING_TOKEN or from `az login`.",
        )
    return parts.netloc


def _service_of(host: str, environ: Mapping[str, str]) -> str:
    # The endpoint's scheme counts where it is the same host: plain http is what an emulator may speak.
    service = _service(environ)
    return service if urlsplit(service).netloc == host else f"https://{host}"
