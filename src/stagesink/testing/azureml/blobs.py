"""The workspace's storage account: where its blobs lie in Azurite, and URLs that give access to them."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPSConnection
from urllib.parse import quote

from stagesink.testing.azureml.faults import BadUrl
from stagesink.testing.azureml.signing import VERSION, account_sas, blob_sas, container_sas
from stagesink.testing.azurite import Azurite

_WRITE = "cw"
_READ = "r"
_ANOTHER_KEY = "bm90IHRoZSBhY2NvdW50J3Mga2V5"


@dataclass(frozen=True)
class BlobStore:
    """Blobs in Azurite.

    Attributes
    ----------
    azurite : Azurite
    endpoint : str
        URL of the account as clients are told it.
    sas_seconds : float
        How long a URL gives access. Azure counts whole seconds.
    tls : ssl.SSLContext, optional
        Where Azurite speaks https: what its certificate is checked with.
    """

    azurite: Azurite
    endpoint: str
    sas_seconds: float
    tls: ssl.SSLContext | None = None

    def write_url(self, container: str, blob: str, bad: BadUrl | None = None) -> str:
        """Return a URL with which a blob can be created and overwritten, and nothing else."""
        return self._url(container, blob, _WRITE, bad)

    def read_url(self, container: str, blob: str, bad: BadUrl | None = None) -> str:
        return self._url(container, blob, _READ, bad)

    def container_token(self, container: str) -> str:
        return container_sas(self.azurite.account, self.azurite.key, container, "racwdl", self.sas_seconds)

    def create_container(self, container: str) -> None:
        status = self._send("PUT", f"/{self.azurite.account}/{container}?restype=container&")
        if status not in (201, 409):
            raise RuntimeError(f"Azurite refused to make the container {container}: HTTP {status}.")

    def delete(self, container: str, blob: str) -> None:
        """Remove a blob, if it is there."""
        status = self._send("DELETE", f"/{self.azurite.account}/{container}/{quote(blob)}?")
        if status not in (202, 404):
            raise RuntimeError(f"Azurite refused to delete a blob: HTTP {status}.")

    def _url(self, container: str, blob: str, permissions: str, bad: BadUrl | None) -> str:
        key, seconds, valid_in = self.azurite.key, self.sas_seconds, 0.0
        match bad and bad.why:
            case "signature":
                key = _ANOTHER_KEY
            case "expired":
                seconds = -60.0
            case "early":
                valid_in = 3600.0
                seconds += valid_in
            case "permission":
                permissions = _READ if permissions == _WRITE else _WRITE
            case "container":
                container = "no-such-container"
        sas = blob_sas(self.azurite.account, key, container, blob, permissions, seconds, valid_in)
        return f"{self.endpoint}/{container}/{quote(blob)}?{sas}"

    def _send(self, method: str, target: str) -> int:
        host, port = "127.0.0.1", self.azurite.port
        connection = HTTPSConnection(host, port, context=self.tls) if self.tls else HTTPConnection(host, port)
        target += account_sas(self.azurite.account, self.azurite.key, "rwdlc", 60.0)
        try:
            connection.request(method, target, headers={"x-ms-version": VERSION, "Content-Length": "0"})
            return connection.getresponse().status
        finally:
            connection.close()
