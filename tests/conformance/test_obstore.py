"""The same stores as in ``test_fsspec``, carried by obstore."""

from __future__ import annotations

from dataclasses import replace

import pytest
from servers import PAGE, S3Server, free_port

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
    large_bytes = 72 << 20

    @pytest.fixture
    def sink(self, moto: S3Server, bucket: str) -> ArtifactSink:
        return opened(f"s3://{bucket}/some/other folder", **moto.options())

    @pytest.fixture
    def unreachable_sink(self, moto: S3Server) -> ArtifactSink:
        return opened("s3://bucket", **moto.options(port=free_port()))


class TestAzure(SinkConformance):
    many = 105  # a page holds 5,000, and neither Azurite nor obstore can be told otherwise
    overwrites = 10
    large_bytes = 72 << 20

    @pytest.fixture
    def sink(self, azurite: Azurite) -> ArtifactSink:
        return opened("az://stagesink/some/other folder", connection_string=azurite.connection_string)

    @pytest.fixture
    def unreachable_sink(self, azurite: Azurite) -> ArtifactSink:
        there = replace(azurite, port=free_port())
        return opened("az://stagesink", connection_string=there.connection_string)


def test_any_order_of_operations_agrees_with_a_dict_on_s3(moto: S3Server, bucket: str) -> None:
    sink = opened(f"s3://{bucket}/obstore-machine", **moto.options())
    check_against_dict(lambda: sink, max_examples=4, steps=8)


def test_any_order_of_operations_agrees_with_a_dict_on_azure(azurite: Azurite) -> None:
    sink = opened("az://stagesink/machine", connection_string=azurite.connection_string)
    check_against_dict(lambda: sink, max_examples=4, steps=8)
