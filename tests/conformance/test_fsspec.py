"""Stores on servers: those that commit at once (S3, Azure), and one that renames (FTP)."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

import pytest
from servers import PAGE, FtpServer, S3Server, closed_port

from stagesink.sinks.fsspec import FsspecSink
from stagesink.testing import SinkConformance, check_against_dict
from stagesink.testing.azurite import Azurite


@pytest.fixture(scope="module")
def s3(moto: S3Server, bucket: str) -> FsspecSink:
    """One for all tests: botocore takes half a second to read its own description of S3."""
    return FsspecSink(f"s3://{bucket}/some/folder", moto.options())


@pytest.mark.once
class TestS3(SinkConformance):
    exemptions: ClassVar = {
        "test_clause_09_names[version]": "s3fs cuts '?versionId=' off a name, so the sink refuses it"
    }
    many = 3 * PAGE + 5
    overwrites = 10
    large_bytes = 72 << 20

    @pytest.fixture
    def sink(self, s3: FsspecSink) -> FsspecSink:
        return s3

    @pytest.fixture
    def unreachable_sink(self, moto: S3Server) -> FsspecSink:
        return FsspecSink("s3://bucket", moto.options(port=closed_port()))


@pytest.fixture(scope="module")
def az(azurite: Azurite) -> FsspecSink:
    return FsspecSink("az://stagesink/some/folder", {"connection_string": azurite.connection_string})


# aiohttp's advice to adlfs.
@pytest.mark.once
@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")
class TestAzure(SinkConformance):
    exemptions: ClassVar = {
        f"test_clause_09_names[{name}]": "adlfs takes '?' and '#' for the end of a name, so the sink refuses them"
        for name in ("hash", "question mark", "query", "version")
    }
    many = 105  # Azurite takes a page's size from the client, which asks for 5,000
    overwrites = 10
    large_bytes = 72 << 20

    @pytest.fixture
    def sink(self, az: FsspecSink) -> FsspecSink:
        return az

    @pytest.fixture
    def unreachable_sink(self, azurite: Azurite) -> FsspecSink:
        there = replace(azurite, port=closed_port())
        return FsspecSink("az://stagesink", {"connection_string": there.connection_string})


# fsspec's FTP client opens a new connection after a read that was broken off, and leaves the old one to the collector.
@pytest.mark.once
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
class TestFtp(SinkConformance):
    overwrites = 10
    many = 100  # there are no pages, and each stat lists a folder

    @pytest.fixture
    def sink(self, ftp: FtpServer) -> FsspecSink:
        return FsspecSink(ftp.url)

    @pytest.fixture
    def unreachable_sink(self) -> FsspecSink:
        return FsspecSink(f"ftp://127.0.0.1:{closed_port()}/store")

    @pytest.fixture(autouse=True)
    def _collected_here(self) -> Iterator[None]:
        yield
        gc.collect()  # what is left must not be found in another test


def test_any_order_of_operations_agrees_with_a_dict_on_s3(moto: S3Server, bucket: str) -> None:
    sink = FsspecSink(f"s3://{bucket}/machine", moto.options())
    check_against_dict(lambda: sink, max_examples=4, steps=8)
