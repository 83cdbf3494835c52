"""Each shape an MLflow run's artifacts can have, on a real server of the version that is installed.

What a server cannot give is exempted by name; a newer server may give it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from mlflow_servers import MlflowServer, mlflow_version
from servers import PAGE, S3Server, closed_port

pytest.importorskip("urllib3", reason="comes with the extra mlflow")

from stagesink.sinks.mlflow import MlflowSink
from stagesink.sinks.protocol import ArtifactSink
from stagesink.testing import SinkConformance

Exemptions = dict[str | int, str]

VERSION = mlflow_version()

_NAMES = "the server decodes %-sequences again and refuses '#', so the sink refuses such names"
_HEADER = "before MLflow 3.13 the server gives no object whose name is not Latin: it puts it into a header as it is"
_CUT = "before MLflow 3 the server takes an upload that was cut off for a whole one"
_IN_PLACE = "before MLflow 3.15 a folder is written in place, so readers see a part of an object"

THROUGH_A_SERVER: Exemptions = {
    "test_clause_09_names[percent]": _NAMES,
    "test_clause_09_names[hash]": _NAMES,
    "test_clause_09_names_that_look_alike_are_apart": _NAMES,
}
if VERSION < (3, 13):
    not_latin = ["umlaut (NFD)", "chinese", "right to left", "emoji"]
    THROUGH_A_SERVER |= {f"test_clause_09_names[{name}]": _HEADER for name in not_latin}
if VERSION < (3, 16):
    THROUGH_A_SERVER["test_clause_05_delete_removes_one_object"] = (
        "before MLflow 3.16 stores remove what begins with the object's name too, so the sink refuses"
    )
if VERSION < (3, 0):
    THROUGH_A_SERVER |= {
        "test_clause_01_a_source_that_fails_leaves_nothing": _CUT,
        "test_clause_01_a_source_that_fails_leaves_the_old_object": _CUT,
        "test_clause_01_a_put_stopped_by_its_callback_leaves_nothing": _CUT,
    }

BY_COPYING: Exemptions = {}
if VERSION < (3, 15):
    BY_COPYING |= {
        "test_clause_01_readers_see_old_or_new_and_never_a_part": _IN_PLACE,
        "test_clause_01_readers_of_many_parts_see_one_object": _IN_PLACE,
        "test_clause_01_two_writers_of_one_key_leave_one_whole_object": _IN_PLACE,
        "test_clause_04_nothing_half_written_is_listed": _IN_PLACE,
        "test_clause_06_an_object_and_a_folder_of_one_name": (
            "before MLflow 3.15 an object that goes where a folder stands lands in that folder"
        ),
    }
INTO_A_FOLDER: Exemptions = THROUGH_A_SERVER | BY_COPYING

INTO_S3: Exemptions = {
    **THROUGH_A_SERVER,
    "test_clause_06_an_object_and_a_folder_of_one_name": (
        "S3 keeps both, and the server then fails to give the object, which the sink says"
    ),
    "test_clause_09_names[255 bytes of unicode]": "the server reads it through a file whose name is 9 bytes longer",
}


class MlflowConformance(SinkConformance):
    """Every test gets a run of its own in one experiment, made over REST."""

    many = 40  # MLflow's listings have no pages
    overwrites = 10
    large_bytes = 24 << 20
    memory_bytes = 12 << 20
    server: MlflowServer
    experiment: str = "0"

    @pytest.fixture
    def run_id(self, sink: ArtifactSink) -> str:
        """Nobody clears it up: the server ends with the session."""
        return self.new_run(sink)

    def new_run(self, sink: ArtifactSink, near: str = "") -> str:
        return self.server.run(self.experiment)

    @pytest.fixture
    def unreachable_sink(self) -> MlflowSink:
        return MlflowSink(f"mlflow+http://127.0.0.1:{closed_port()}")


class TestProxiedFolder(MlflowConformance):
    exemptions: ClassVar = INTO_A_FOLDER
    deletes = VERSION >= (2, 17)

    @pytest.fixture
    def sink(self, mlflow_server: MlflowServer) -> MlflowSink:
        self.server = mlflow_server
        return MlflowSink(mlflow_server.sink_uri)


@pytest.mark.once
class TestProxiedS3(MlflowConformance):
    exemptions: ClassVar = INTO_S3

    @pytest.fixture
    def sink(self, mlflow_s3_server: MlflowServer) -> MlflowSink:
        self.server = mlflow_s3_server
        return MlflowSink(mlflow_s3_server.sink_uri)


@pytest.mark.long
class TestProxiedS3InParts(MlflowConformance):
    """As above, with every object that is not tiny sent past the server."""

    exemptions: ClassVar = INTO_S3 | dict.fromkeys((4, 5, 6, 7, 9), "what is small does not go in parts: see above")
    large_bytes = 96 << 20
    memory_bytes = 60 << 20  # five parts of eight MiB here

    @pytest.fixture
    def sink(self, mlflow_s3_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> MlflowSink:
        self.server = mlflow_s3_server
        monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "true")
        monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", "40000")
        monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE", str(self.part_bytes))
        return MlflowSink(mlflow_s3_server.sink_uri)


@pytest.mark.once
class TestDirectFolder(MlflowConformance):
    @pytest.fixture
    def sink(self, mlflow_server: MlflowServer, tmp_path: Path) -> MlflowSink:
        self.server, self.experiment = mlflow_server, mlflow_server.experiment((tmp_path / "a b%20c").as_uri())
        return MlflowSink(mlflow_server.sink_uri)


@pytest.fixture(scope="module")
def direct_s3(mlflow_server: MlflowServer, mlflow_moto: S3Server) -> tuple[MlflowSink, str, str]:
    """A sink and two runs. Tests share them and clear them up: each run has a client, which takes half a second."""
    experiment = mlflow_server.experiment("s3://mlflow/direct")
    sink = MlflowSink(mlflow_server.sink_uri, mlflow_moto.options())
    return sink, mlflow_server.run(experiment), mlflow_server.run(experiment)


@pytest.mark.once
class TestDirectS3(SinkConformance):
    exemptions: ClassVar = {
        "test_clause_09_names[version]": "s3fs cuts '?versionId=' off a name, so the sink refuses it"
    }
    many = PAGE + 5
    overwrites = 10
    large_bytes = 112 << 20
    memory_bytes = 80 << 20

    @pytest.fixture
    def sink(self, direct_s3: tuple[MlflowSink, str, str]) -> MlflowSink:
        sink, *self.runs = direct_s3
        return sink

    def new_run(self, sink: ArtifactSink, near: str = "") -> str:
        return self.runs[bool(near)]


LONG_WITH_MLFLOW_3 = [pytest.mark.long] if VERSION >= (3, 0) else []
"""The suite has them with MLflow 2, whose client has the older ways; with MLflow 3 `make long` has them."""


@pytest.mark.once
class TestOwnClient(MlflowConformance):
    """What ``artifacts.engine: mlflow`` goes through, with a folder for its store: the client's own ways are slow.

    Its ways with names are its own: which it cuts, decodes or refuses differs from one version and store to the next.
    """

    pytestmark = LONG_WITH_MLFLOW_3
    exemptions: ClassVar = BY_COPYING | dict.fromkeys(
        ("test_clause_09_names", "test_clause_09_names_that_look_alike_are_apart"),
        "mlflow's client has its own way",
    )
    deletes = False
    many = 20

    @pytest.fixture
    def sink(self, mlflow_server: MlflowServer, tmp_path: Path) -> Iterator[MlflowSink]:
        self.server, self.experiment = mlflow_server, mlflow_server.experiment(tmp_path.as_uri())
        with mlflow_server.client():  # imported without its warnings
            yield MlflowSink(mlflow_server.sink_uri, own_client=True)
