"""Azure ML as `stagesink.testing.azureml` plays it: the artifacts of runs, and a datastore, over a real Azurite."""

from __future__ import annotations

import uuid
from typing import ClassVar

import pytest
from servers import closed_port, installed

pytest.importorskip("urllib3", reason="comes with the extra azureml")

from stagesink.sinks.protocol import ArtifactSink
from stagesink.sinks.registry import open_sink
from stagesink.testing import SinkConformance
from stagesink.testing.azureml import FakeAzureML


class AzureMLConformance(SinkConformance):
    many = 40  # its pages hold seven
    overwrites = 10
    large_bytes = 80 << 20
    memory_bytes = 60 << 20  # five blocks of eight MiB, or a window for reading twice
    service: FakeAzureML

    @pytest.fixture(autouse=True)
    def _job(self, azureml_service: FakeAzureML, monkeypatch: pytest.MonkeyPatch) -> None:
        self.service = azureml_service
        for name, value in azureml_service.environment(azureml_service.new_run("of the job")).items():
            monkeypatch.setenv(name, value)


class TestRuns(AzureMLConformance):
    """Every test gets a run of its own, whose experiment has to be looked up."""

    @pytest.fixture
    def sink(self) -> ArtifactSink:
        return open_sink("azureml:")

    def new_run(self, sink: ArtifactSink, near: str = "") -> str:
        return self.service.new_run("conformance", f"{near or uuid.uuid4().hex}0")

    @pytest.fixture
    def unreachable_sink(self, monkeypatch: pytest.MonkeyPatch) -> ArtifactSink:
        monkeypatch.setenv("AZUREML_SERVICE_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
        return open_sink("azureml:")


# Without obstore adlfs carries it; the first is aiohttp's advice to adlfs.
@pytest.mark.once
@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")
class TestDatastore(AzureMLConformance):
    exemptions: ClassVar = {
        f"test_clause_09_names[{name}]": "adlfs takes '?' and '#' for the end of a name, so the sink refuses them"
        for name in ("hash", "question mark", "query", "version")
    }

    @pytest.fixture
    def sink(self) -> ArtifactSink:
        installed("adlfs")
        return open_sink("azureml://datastores/workspaceblobstore/paths/conformance/a b")

    @pytest.fixture
    def unreachable_sink(self, monkeypatch: pytest.MonkeyPatch) -> ArtifactSink:
        monkeypatch.setenv("AZUREML_SERVICE_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
        return open_sink("azureml://datastores/workspaceblobstore")
