"""The calls about the workspace's datastores: which account and container a name stands for, and what opens them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from stagesink.testing.azureml.artifacts import CONTAINER, DATASTORE
from stagesink.testing.azureml.blobs import BlobStore
from stagesink.testing.azureml.messages import Request, Response, ServiceError, answer

DEFAULT = "workspaceblobstore"

Credential = Literal["Sas", "AccountKey", "None"]


@dataclass(frozen=True)
class Datastore:
    """A blob container that the workspace knows by a name.

    Attributes
    ----------
    name : str
    container : str
    credential : {"Sas", "AccountKey", "None"}
        What the service hands out for it. With ``"None"``, clients show who they are to the storage account.
    type : str
        As the service calls it; a file share's (``"AzureFile"``) looks the same otherwise.
    older_names : bool
        Whether the secret is in ``sasToken`` or ``accountKey`` as well as in ``credential``.
    """

    name: str
    container: str
    credential: Credential = "Sas"
    type: str = "AzureBlob"
    older_names: bool = True


@dataclass
class Datastores:
    """Answers the calls."""

    blobs: BlobStore
    known: dict[str, Datastore] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.add(Datastore(DATASTORE, CONTAINER))
        self.add(Datastore(DEFAULT, "azureml-blobstore"))

    def add(self, datastore: Datastore) -> None:
        self.blobs.create_container(datastore.container)
        self.known[datastore.name] = datastore

    def list(self, request: Request) -> Response:
        wanted = request.query.get("dataStoreNames")
        names = wanted.split(",") if wanted else list(self.known)
        value = [self._shown(self.known[name]) for name in names if name in self.known]
        return answer({"value": value, "continuationToken": None, "nextLink": None})

    def get(self, name: str) -> Response:
        if name not in self.known:
            raise ServiceError(404, "NotFoundError", f"Could not find datastore with name {name}.")
        return answer(self._shown(self.known[name]))

    def _shown(self, datastore: Datastore) -> Mapping[str, object]:
        azurite, kind = self.blobs.azurite, datastore.credential
        sas = self.blobs.container_token(datastore.container) if kind == "Sas" else None
        key = azurite.key if kind == "AccountKey" else None
        url = urlsplit(self.blobs.endpoint)
        # Before a host name, the account is a part of it; before an IP address it cannot be, so it leads the path.
        endpoint = url.netloc.removeprefix(f"{azurite.account}.blob.")
        section = {
            "accountName": azurite.account,
            "containerName": datastore.container,
            "endpoint": endpoint,
            "protocol": url.scheme,
            "credentialType": kind,
            "credential": sas or key,
            "clientCredentials": None,
            "isSas": kind == "Sas",
            "accountKey": key if datastore.older_names else None,
            "sasToken": sas if datastore.older_names else None,
            "areWorkspaceManagedIdentitiesAllowed": False,
            "subscriptionId": None,
            "resourceGroup": None,
        }
        return {
            "name": datastore.name,
            "dataStoreType": datastore.type,
            "hasBeenValidated": True,
            "tags": {},
            "azureStorageSection": section,
        }
