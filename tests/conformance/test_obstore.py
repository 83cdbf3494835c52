"""The same stores as in ``test_fsspec``, carried by obstore."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from servers import PAGE, S3Server, closed_port, google_key

pytest.importorskip("obstore", reason="comes with the extras az, s3 and gs, from Python 3.11 on")

from stagesink.sinks import ArtifactSink, open_sink
from stagesink.sinks.obstore import ObstoreSink
from stagesink.testing import SinkConformance, check_against_dict
from stagesink.testing.azurite import Azurite


def opened(uri: str, **options: object) -> ArtifactSink:
    sink = open_sink(uri, storage_options=options)
    assert isinstance(sink, ObstoreSink)
    return sink


class TestS3(SinkConformance):
    many = 3 * PAGE + 5
    overwrites = 10
    large_bytes = 112 << 20
    memory_bytes = 80 << 20  # six parts of eight MiB, or five of twelve where no size is known

    @pytest.fixture
    def sink(self, moto: S3Server, bucket: str) -> ArtifactSink:
        return opened(f"s3://{bucket}/some/other folder", **moto.options())

    @pytest.fixture
    def unreachable_sink(self, moto: S3Server) -> ArtifactSink:
        return opened("s3://bucket", **moto.options(port=closed_port()))


@pytest.mark.once
class TestAzure(SinkConformance):
    many = 105  # a page holds 5,000, and neither Azurite nor obstore can be told otherwise
    overwrites = 10
    large_bytes = 112 << 20
    memory_bytes = 80 << 20  # six parts of eight MiB, or five of twelve where no size is known

    @pytest.fixture
    def sink(self, azurite: Azurite) -> ArtifactSink:
        return opened("az://stagesink/some/other folder", connection_string=azurite.connection_string)

    @pytest.fixture
    def unreachable_sink(self, azurite: Azurite) -> ArtifactSink:
        there = replace(azurite, port=closed_port())
        return opened("az://stagesink", connection_string=there.connection_string)


@pytest.mark.once
class TestGoogle(SinkConformance):
    """Google's own client code, but no Google: obstore speaks the XML interface, whose form is S3's, so moto answers.

    No emulator in a registry speaks that interface. Signatures and tokens are checked by nobody here.
    """

    exemptions: ClassVar = {
        "test_clause_07_a_forked_child_uses_the_sink": "gcsfs carries it, by an interface that moto has not"
    }
    many = 3 * PAGE + 5
    overwrites = 10
    large_bytes = 112 << 20
    memory_bytes = 80 << 20  # six parts of eight MiB, or five of twelve where no size is known

    @pytest.fixture
    def sink(self, moto: S3Server, bucket: str, key_file: Path) -> ArtifactSink:
        return opened(f"gs://{bucket}/some/google folder", token=str(key_file), endpoint_url=moto.endpoint)

    @pytest.fixture
    def unreachable_sink(self, key_file: Path) -> ArtifactSink:
        return opened("gs://bucket", token=str(key_file), endpoint_url=f"http://127.0.0.1:{closed_port()}")


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return google_key(tmp_path_factory.mktemp("google"))


def test_any_order_of_operations_agrees_with_a_dict_on_s3(moto: S3Server, bucket: str) -> None:
    sink = opened(f"s3://{bucket}/obstore-machine", **moto.options())
    check_against_dict(lambda: sink, max_examples=4, steps=8)


def test_any_order_of_operations_agrees_with_a_dict_on_azure(azurite: Azurite) -> None:
    sink = opened("az://stagesink/machine", connection_string=azurite.connection_string)
    check_against_dict(lambda: sink, max_examples=4, steps=8)
