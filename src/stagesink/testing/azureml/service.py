"""The fake service as a whole: Azurite, the calls, and what a client needs to find them."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from stagesink.testing.azureml.artifacts import CONTAINER, Artifacts
from stagesink.testing.azureml.blobs import BlobStore
from stagesink.testing.azureml.calls import Calls
from stagesink.testing.azureml.certificates import Certificates, make_certificates
from stagesink.testing.azureml.datastores import Credential, Datastore, Datastores
from stagesink.testing.azureml.faults import Faults
from stagesink.testing.azureml.identity import HOST, Identity
from stagesink.testing.azureml.proxy import tunnelling
from stagesink.testing.azureml.server import serving
from stagesink.testing.azureml.state import State, Workspace
from stagesink.testing.azureml.tokens import Tokens
from stagesink.testing.azureml.tracking import Tracking
from stagesink.testing.azurite import Azurite, start_azurite

_HOST = "127.0.0.1"
_AZURES_NAME = f"{Azurite.account}.blob.core.windows.net"


@dataclass(frozen=True)
class FakeAzureML:
    """Azure ML's run history, artifact and datastore calls over a real blob store; started with :meth:`start`.

    Attributes
    ----------
    port : int
    workspace : Workspace
    azurite : Azurite
        Where the bytes are.
    blobs : BlobStore
    state : State
        Runs and registered paths, to look at and to change.
    faults : Faults
        What is to go wrong.
    certificates : Certificates, optional
        ``None`` where it speaks plain http.
    proxy : str, optional
        With ``azure_names``: what leads to them, for ``HTTPS_PROXY``.
    """

    port: int
    workspace: Workspace
    azurite: Azurite
    blobs: BlobStore
    state: State
    faults: Faults
    certificates: Certificates | None
    proxy: str | None
    _calls: Calls

    @classmethod
    @contextmanager
    def start(
        cls,
        folder: Path,
        *,
        port: int = 0,
        plain: bool = False,
        azurite: Azurite | None = None,
        command: Sequence[str] | None = None,
        page_size: int = 100,
        batch_limit: int | None = None,
        sas_seconds: float = 3600.0,
        token_seconds: float = 3600.0,
        on_disk: bool = False,
        azure_names: bool = False,
        in_front: Callable[[int], int] | None = None,
    ) -> Iterator[FakeAzureML]:
        """Run the service until the block ends.

        Parameters
        ----------
        folder : Path
            Gets certificates, Azurite's log and what it keeps.
        port : int
            Default: a free one.
        plain : bool
            Speak http. https, the default, needs the package ``trustme``.
        azurite : Azurite, optional
            One that runs already. Default: one is started, and ends with the service.
        command : sequence of str, optional
            How to start Azurite, as :func:`~stagesink.testing.azurite.start_azurite` takes it.
        page_size : int
            Artifacts on one page of a listing.
        batch_limit : int, optional
            Refuse to register more paths than this at once.
        sas_seconds : float
            How long a blob's URL gives access, in whole seconds.
        token_seconds : float
            How long the tokens of :meth:`environment` and of the token call are valid.
        on_disk : bool
            Keep the blobs in ``folder`` instead of in memory.
        azure_names : bool
            Give out blob URLs as Azure's are, ``https://<account>.blob.core.windows.net/...``, for clients that take no
            others; ``proxy`` leads there. It starts an Azurite of its own.
        in_front : callable, optional
            Gets the port of a server, puts a proxy before it and returns the proxy's port: that is what clients are
            told. It is asked for Azurite, then for the service.

        Raises
        ------
        RuntimeError
            Azurite or trustme is not installed.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if azure_names and (plain or azurite):
            raise ValueError("azure_names needs https, and an Azurite of its own.")
        with ExitStack() as stack:
            certificates = None if plain else make_certificates(folder, _HOST, "localhost", _AZURES_NAME, HOST)
            shown = (certificates.chain, certificates.key) if certificates and azure_names else None
            azurite = azurite or stack.enter_context(
                start_azurite(folder, command=command, on_disk=on_disk, certificate=shown)
            )
            listener = stack.enter_context(socket.create_server((_HOST, port)))
            own: int = listener.getsockname()[1]
            reached, port = (in_front(azurite.port), in_front(own)) if in_front else (azurite.port, own)
            if certificates and azure_names:
                ways = {f"{_AZURES_NAME}:443": (_HOST, reached), f"{HOST}:443": (_HOST, port)}
                proxy: str | None = stack.enter_context(tunnelling(ways))
                blobs = BlobStore(azurite, f"https://{_AZURES_NAME}", sas_seconds, certificates.client_context())
            else:
                proxy, blobs = None, BlobStore(azurite, replace(azurite, port=reached).endpoint, sas_seconds)
            calls = _calls(blobs, port, "http" if plain else "https", page_size, batch_limit, token_seconds)
            context = certificates.server_context() if certificates else None
            stack.enter_context(serving(calls.answer, listener, context, calls.clock))
            yield cls(
                port, calls.state.workspace, azurite, blobs, calls.state, calls.faults, certificates, proxy, calls
            )

    @property
    def url(self) -> str:
        """Where the service is; what ``AZUREML_SERVICE_ENDPOINT`` says."""
        return f"{'https' if self.certificates else 'http'}://{_HOST}:{self.port}"

    @property
    def tracking_uri(self) -> str:
        return f"azureml://{_HOST}:{self.port}/mlflow/v1.0{self.workspace.path}"

    @property
    def ca_path(self) -> Path | None:
        """The certificate authority to trust, for ``REQUESTS_CA_BUNDLE`` and ``SSL_CERT_FILE``."""
        return self.certificates.authority if self.certificates else None

    @property
    def calls(self) -> list[str]:
        """The calls that were made, in order; :data:`~stagesink.testing.azureml.CALLS` names them."""
        return self._calls.made

    def new_run(self, experiment: str = "experiment", run_id: str | None = None) -> str:
        """Return the id of a new run."""
        return self.state.new_run(self.state.experiment(experiment), run_id).id

    def run_uri(self, run_id: str) -> str:
        """Return the run as ``azureml://.../workspaces/<ws>/experiments/<experiment>/runs/<run>``."""
        experiment = self.state.runs[run_id].experiment.name
        return f"{self.tracking_uri}/experiments/{quote(experiment)}/runs/{run_id}"

    def datastore_uri(self, name: str, path: str = "") -> str:
        """Return a datastore as ``azureml://subscriptions/.../datastores/<name>/paths/<path>``."""
        workspace = self.workspace
        return (
            f"azureml://subscriptions/{workspace.subscription}/resourcegroups/{workspace.resource_group}"
            f"/workspaces/{workspace.name}/datastores/{name}/paths/{quote(path)}"
        )

    def add_datastore(
        self,
        name: str,
        container: str,
        credential: Credential = "Sas",
        *,
        type: str = "AzureBlob",
        older_names: bool = True,
    ) -> None:
        """Make a container, and let the workspace know it by a name.

        Parameters
        ----------
        name, container : str
        credential : {"Sas", "AccountKey", "None"}
            What the service hands out for it.
        type : str
            What the service says it is.
        older_names : bool
            Whether the secret stands under its older names too.
        """
        self._calls.datastores.add(Datastore(name, container, credential, type, older_names))

    def register(self, run_id: str, path: str) -> None:
        """Register a path with no blob behind it, as an upload does that dies half-way."""
        self.state.runs[run_id].artifacts.register(path, {})

    def token(
        self,
        *,
        expires_in: float | None = None,
        valid_in: float = -5.0,
        tenant: str | None = None,
        workspace: str | None = None,
    ) -> str:
        """Return a bearer token.

        Parameters
        ----------
        expires_in, valid_in : float
            Seconds from now; a token that has expired, or is not valid yet, is refused.
        tenant : str, optional
            Another one is refused.
        workspace : str, optional
            Name of another workspace; its token is of no use in this one.
        """
        seconds = self._calls.token_seconds if expires_in is None else expires_in
        mine = self.workspace
        other = Workspace(mine.subscription, mine.resource_group, workspace) if workspace else mine
        return self._calls.identity.tokens.make(other.path, expires_in=seconds, valid_in=valid_in, tenant=tenant)

    def revoke(self, token: str) -> None:
        """Refuse a token from now on, though it has not ended."""
        self._calls.identity.tokens.revoked.add(token)

    def environment(self, run_id: str, *, token: str | None = None) -> dict[str, str]:
        """Return the variables of a job that works on a run, and those with which it trusts this service."""
        token, run = token or self.token(), self.state.runs[run_id]
        return {
            "AZUREML_RUN_ID": run_id,
            "AZUREML_RUN_TOKEN": token,
            "AZUREML_ARM_SUBSCRIPTION": self.workspace.subscription,
            "AZUREML_ARM_RESOURCEGROUP": self.workspace.resource_group,
            "AZUREML_ARM_WORKSPACE_NAME": self.workspace.name,
            "AZUREML_ARM_PROJECT_NAME": run.experiment.name,
            "AZUREML_EXPERIMENT_ID": run.experiment.id,
            "AZUREML_SERVICE_ENDPOINT": self.url,
            "AZUREML_CURRENT_CLOUD": "AzureCloud",
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            "MLFLOW_TRACKING_TOKEN": token,
            "MLFLOW_RUN_ID": run_id,
            "MLFLOW_EXPERIMENT_ID": run.experiment.id,
            "MLFLOW_EXPERIMENT_NAME": run.experiment.name,
            **self._ways(),
        }

    def login(self) -> dict[str, str]:
        """Return the variables of a machine outside a job: a service principal signs in, as azure-identity does it.

        It needs ``azure_names``: the sign-in is at a host name of Microsoft's.
        """
        if not self.proxy:
            raise ValueError("A sign-in needs azure_names=True.")
        identity = self._calls.identity
        return {
            "AZURE_TENANT_ID": identity.tokens.tenant,
            "AZURE_CLIENT_ID": identity.client_id,
            "AZURE_CLIENT_SECRET": identity.client_secret,
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            **self._ways(),
        }

    def _ways(self) -> dict[str, str]:
        trust = {name: str(self.ca_path) for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE") if self.ca_path}
        return {**trust, "HTTPS_PROXY": self.proxy, "NO_PROXY": _HOST} if self.proxy else trust


def _calls(
    blobs: BlobStore, port: int, scheme: str, page_size: int, batch_limit: int | None, token_seconds: float
) -> Calls:
    """Put the parts together."""
    blobs.create_container(CONTAINER)
    state, faults = State(Workspace(str(uuid.uuid4()), "group", "ws")), Faults()
    artifacts = Artifacts(state, blobs, faults, f"{scheme}://{_HOST}:{port}", page_size, batch_limit)
    tracking = Tracking(state, f"azureml://{_HOST}:{port}/mlflow/v2.0{state.workspace.path}")
    identity = Identity(Tokens(str(uuid.uuid4()), faults=faults), state.workspace.path)
    return Calls(state, artifacts, Datastores(blobs), tracking, identity, faults, token_seconds)
