"""Azure ML as `stagesink.testing.azureml` plays it, over a real Azurite, and calls to it by plain HTTP."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from servers import azurite_command, installed

from stagesink.testing.azureml import FakeAzureML

PAGE = 7
"""Artifacts on one page of its listings."""


@contextmanager
def azureml_server(folder: Path, **settings: Any) -> Iterator[FakeAzureML]:
    """Run the service, or skip where Azurite is not here."""
    installed("trustme")
    with FakeAzureML.start(folder, command=[azurite_command()], **{"page_size": PAGE, **settings}) as service:
        yield service


@dataclass(frozen=True)
class Caller:
    """Asks the service by plain HTTP."""

    service: FakeAzureML
    run_id: str
    experiment: str = "experiment"

    @property
    def of_run(self) -> str:
        return f"/history/v1.0{self.service.workspace.path}/experiments/{self.experiment}/runs/{self.run_id}/artifacts"

    @property
    def of_store(self) -> str:
        root = f"/artifact/v2.0{self.service.workspace.path}/artifacts"
        return f"{root}/ExperimentRun/dcid.{self.run_id}"

    def ask(
        self, method: str, path: str, body: object = None, /, *, token: str | None = None, **query: str
    ) -> tuple[int, Any]:
        """Return status and JSON of an answer."""
        url = path if "://" in path else f"{self.service.url}{path}"
        headers = {"Authorization": f"Bearer {self.service.token() if token is None else token}"}
        data = json.dumps(body).encode() if body is not None else None
        status, answer = send(
            method, f"{url}?{urlencode(query)}" if query else url, data, headers, self.service.ca_path
        )
        return status, json.loads(answer) if answer else None

    def register(self, *paths: str) -> dict[str, Any]:
        status, answer = self.ask(
            "POST", f"{self.of_run}/batch/metadata", {"paths": [{"path": path} for path in paths]}
        )
        assert status == 200
        return dict(answer)

    def write_url(self, path: str) -> str:
        return str(self.register(path)["artifactContentInformation"][path]["contentUri"])

    def listed(self, call: str = "", **query: str) -> list[Any]:
        """Return what all pages of a listing hold, following their links."""
        found: list[Any] = []
        status, page = self.ask("GET", self.of_run + call, **query)
        while True:
            assert status == 200
            assert len(page["value"]) <= PAGE
            found += page["value"]
            if not page["nextLink"]:
                assert page["continuationToken"] is None
                return found
            status, page = self.ask("GET", page["nextLink"])


def send(
    method: str, url: str, body: bytes | None, headers: Mapping[str, str], ca: Path | None = None
) -> tuple[int, bytes]:
    """Return status and body of an answer, an error too."""
    request = urllib.request.Request(url, method=method, data=body, headers=dict(headers))
    context = ssl.create_default_context(cafile=str(ca)) if ca and url.startswith("https") else None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def put_blob(url: str, data: bytes) -> int:
    return send("PUT", url, data, {"x-ms-blob-type": "BlockBlob", "x-ms-version": "2021-12-02"})[0]


def get_blob(url: str) -> tuple[int, bytes]:
    return send("GET", url, None, {"x-ms-version": "2021-12-02"})
