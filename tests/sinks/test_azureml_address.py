"""Which workspace, and what of it, a URI means."""

from __future__ import annotations

import pytest

pytest.importorskip("urllib3", reason="comes with the extra azureml")

from stagesink.errors import ConfigError
from stagesink.sinks.azureml.address import Address, Datastore, Workspace, address_of

HOST = "westeurope.api.azureml.ms"
WORKSPACE = "subscriptions/s-1/resourceGroups/my group/providers/Microsoft.MachineLearningServices/workspaces/ws"
TRACKING = f"azureml://{HOST}/mlflow/v1.0/{WORKSPACE}".replace(" ", "%20")
MINE = Workspace(f"https://{HOST}", "s-1", "my group", "ws")
JOB = {
    "AZUREML_RUN_ID": "run-1",
    "AZUREML_ARM_SUBSCRIPTION": "s-1",
    "AZUREML_ARM_RESOURCEGROUP": "my group",
    "AZUREML_ARM_WORKSPACE_NAME": "ws",
    "AZUREML_ARM_PROJECT_NAME": "training",
    "AZUREML_SERVICE_ENDPOINT": f"https://{HOST}",
}


@pytest.mark.parametrize(
    ("environ", "experiments"),
    [
        (JOB, (("run-1", "training"),)),
        ({**JOB, "AZUREML_SERVICE_ENDPOINT": HOST}, (("run-1", "training"),)),
        ({**JOB, "AZUREML_SERVICE_ENDPOINT": f"https://{HOST}/a/path"}, (("run-1", "training"),)),
        ({**JOB, "AZUREML_SERVICE_ENDPOINT": "", "MLFLOW_TRACKING_URI": TRACKING}, (("run-1", "training"),)),
        ({**JOB, "AZUREML_ARM_WORKSPACE_NAME": "", "MLFLOW_TRACKING_URI": TRACKING}, (("run-1", "training"),)),
        ({**JOB, "AZUREML_ARM_PROJECT_NAME": "", "MLFLOW_EXPERIMENT_NAME": "e"}, (("run-1", "e"),)),
        ({**JOB, "AZUREML_ARM_PROJECT_NAME": ""}, ()),
        ({"MLFLOW_TRACKING_URI": TRACKING}, ()),
        ({"MLFLOW_TRACKING_URI": TRACKING.replace("azureml", "AzureML", 1)}, ()),
    ],
)
@pytest.mark.parametrize("uri", ["azureml:", "azureml://"])
def test_the_environment_names_it(uri: str, environ: dict[str, str], experiments: object) -> None:
    assert address_of(uri, environ) == Address(MINE, experiments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rest", "experiments"),
    [
        ("", ()),
        ("/", ()),
        ("/experiments/a%20b", ()),
        ("/experiments/a%20b/runs/r1", (("r1", "a b"),)),
        ("/experiments/a%20b/runs/r1/", (("r1", "a b"),)),
        ("/experiments/a%20b/runs/r1/artifacts", (("r1", "a b"),)),
    ],
)
def test_a_workspace_and_a_run_by_their_uris(rest: str, experiments: object) -> None:
    assert address_of(TRACKING + rest, {}) == Address(MINE, experiments)  # type: ignore[arg-type]


def test_a_uri_goes_before_the_environment_whose_run_is_known_too() -> None:
    other = TRACKING.replace("/ws", "/other")
    found = address_of(f"{other}/experiments/e/runs/r", JOB)
    assert found.workspace.name == "other"
    assert dict(found.experiments) == {"run-1": "training", "r": "e"}


@pytest.mark.parametrize("group", ["resourceGroups", "resourcegroups"])
@pytest.mark.parametrize(
    "provider", ["/providers/Microsoft.MachineLearningServices", "", "/providers/microsoft.machinelearningservices"]
)
@pytest.mark.parametrize("host", ["", f"{HOST}/", f"{HOST}/mlflow/v2.0/"])
def test_a_datastore(host: str, provider: str, group: str) -> None:
    uri = (
        f"azureml://{host}subscriptions/s-1/{group}/my%20group{provider}/workspaces/ws/datastores/blobs/paths/a%20b/c/"
    )
    found = address_of(uri, JOB)
    assert found.workspace == MINE
    assert found.datastore == Datastore("blobs", "a b/c")


@pytest.mark.parametrize(
    ("rest", "store"),
    [
        ("blobs", Datastore("blobs", "")),
        ("blobs/", Datastore("blobs", "")),
        ("blobs/paths", Datastore("blobs", "")),
        ("blobs/paths/", Datastore("blobs", "")),
        ("blobs/paths/a/b", Datastore("blobs", "a/b")),
    ],
)
def test_a_datastore_of_the_environments_workspace(rest: str, store: Datastore) -> None:
    assert address_of(f"azureml://datastores/{rest}", JOB).datastore == store
    assert address_of(f"{TRACKING}/datastores/{rest}", {}).datastore == store
    # The job's run, by which its token is renewed.
    assert address_of(f"{TRACKING}/datastores/{rest}", JOB).experiments == address_of("azureml:", JOB).experiments


def test_an_emulator_may_speak_plain_http() -> None:
    environ = {**JOB, "AZUREML_SERVICE_ENDPOINT": "http://127.0.0.1:5000"}
    assert address_of("azureml:", environ).workspace.service == "http://127.0.0.1:5000"
    uri = f"azureml://127.0.0.1:5000/mlflow/v1.0/{WORKSPACE}"
    assert address_of(uri, environ).workspace.service == "http://127.0.0.1:5000"
    assert address_of(uri, JOB).workspace.service == "https://127.0.0.1:5000"


def test_what_is_shown_leads_back() -> None:
    assert MINE.tracking_uri == TRACKING
    assert address_of(MINE.tracking_uri, {}).workspace == MINE


@pytest.mark.parametrize(
    ("uri", "environ", "says"),
    [
        ("azureml:", {}, "Nothing names the Azure ML workspace."),
        ("azureml:", {"MLFLOW_TRACKING_URI": "http://mlflow"}, "Nothing names the Azure ML workspace."),
        ("azureml:", {"MLFLOW_TRACKING_URI": "azureml://h.x/ws"}, "azureml://h.x/ws names no Azure ML workspace."),
        ("azureml://datastores/x", {}, "Nothing names the Azure ML workspace."),
        ("azureml://datastores/", JOB, "names no datastore."),
        ("azureml://datastores/x/a/b", JOB, "names no datastore."),
        ("azureml:something", JOB, "names no Azure ML workspace."),
        ("azureml://jobs/j/outputs/artifacts", JOB, "names no Azure ML workspace."),
        ("azureml://[::1/x", JOB, "is no URL."),
        (f"{TRACKING}?sig=s3cret", JOB, "names no Azure ML workspace."),
        (f"{TRACKING}#s3cret", JOB, "names no Azure ML workspace."),
        (f"{TRACKING}/models/m", JOB, "names neither a run nor a datastore."),
        (f"{TRACKING}/experiments/e/runs/r/artifacts/a/b", JOB, "names neither a run nor a datastore."),
        (f"azureml://{WORKSPACE}/datastores/x", {}, "names no host, and the environment does not either."),
        (TRACKING.replace("://", "://me:s3cret@"), JOB, f"The address of {HOST} holds a login"),
        ("azureml:", {**JOB, "AZUREML_SERVICE_ENDPOINT": f"https://me:s3cret@{HOST}"}, "holds a login"),
        ("azureml:", {"MLFLOW_TRACKING_URI": TRACKING.replace("://", "://me:s3cret@")}, "holds a login"),
    ],
)
def test_what_names_nothing(uri: str, environ: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        address_of(uri, environ)
    assert says in str(caught.value)
    assert caught.value.hint
    assert "s3cret" not in str(caught.value)
