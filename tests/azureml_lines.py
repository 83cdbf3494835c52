"""Azure ML's fake with a proxy before the service and one before its blob store: both see each request, and misbehave
to order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from azureml_servers import azureml_server
from faults.proxy import FaultProxy

from stagesink.artifacts import ArtifactKey
from stagesink.sinks.registry import open_sink
from stagesink.testing.azureml import FakeAzureML

if TYPE_CHECKING:
    from stagesink.sinks.azureml import AzureMLSink


@dataclass(frozen=True)
class Lines:
    """The service (plain http), and the proxies on the way to it and to its blobs."""

    service: FakeAzureML
    front: FaultProxy
    store: FaultProxy

    def environment(self, run_id: str, *, token: str | None = None) -> dict[str, str]:
        """A job's, by way of the proxy."""
        given = self.service.environment(run_id, token=token)
        ports = str(self.service.port), str(self.front.port)
        return {name: value.replace(f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}") for name, value in given.items()}

    def blobs(self, method: str, *, part: str = "") -> list[str]:
        """Targets of the requests that the blob store got."""
        return [target for verb, target in self.store.requests if verb == method and part in target]

    def forget(self) -> None:
        self.front.forget()
        self.store.forget()
        self.service.faults.clear()
        self.service.calls.clear()

    def client(self, key: ArtifactKey) -> Any:
        """Microsoft's own client for the blob, past the proxy."""
        blob_client = pytest.importorskip("azure.storage.blob", reason="comes with the extra az").BlobClient
        azurite = replace(self.service.azurite, port=self.store._target)
        name = f"ExperimentRun/dcid.{key.run_id}/{key.path}"
        return blob_client.from_connection_string(azurite.connection_string, "azureml", name)


@contextmanager
def lines_before(service: FakeAzureML, folder: Path, **settings: Any) -> Iterator[Lines]:
    """Run another service over the same Azurite, with the proxies."""
    with FaultProxy(service.azurite.port) as store:
        azurite = replace(service.azurite, port=store.port)
        with azureml_server(folder, plain=True, azurite=azurite, **settings) as plain, FaultProxy(plain.port) as front:
            yield Lines(plain, front, store)


@dataclass(frozen=True)
class Job:
    """A run, the sink that its environment means, and what is between."""

    lines: Lines
    run_id: str
    sink: AzureMLSink

    @property
    def service(self) -> FakeAzureML:
        return self.lines.service

    def key(self, path: str = "folder/a.bin") -> ArtifactKey:
        return ArtifactKey(self.run_id, path)


@contextmanager
def job_on(lines: Lines, monkeypatch: pytest.MonkeyPatch, **environment: str) -> Iterator[Job]:
    """Set the environment of a job of its own, and open ``azureml:``."""
    lines.forget()
    run_id = lines.service.new_run("an experiment")
    for name, value in {**lines.environment(run_id), **environment}.items():
        monkeypatch.setenv(name, value)
    assert os.environ["AZUREML_RUN_ID"] == run_id
    sink = open_sink("azureml:")
    assert type(sink).__name__ == "AzureMLSink"
    try:
        yield Job(lines, run_id, cast("AzureMLSink", sink))
    finally:
        sink.close()
        lines.forget()
