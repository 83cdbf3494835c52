"""The server that the pipelines upload to."""

from __future__ import annotations

import pytest
from servers import S3Server, installed, moto_server, shared


@pytest.fixture(scope="session")
def moto(request: pytest.FixtureRequest) -> S3Server:
    installed("s3fs", "moto", "flask")
    return shared(request, "moto", moto_server)


@pytest.fixture(scope="session")
def bucket(moto: S3Server) -> str:
    moto.boto3().create_bucket(Bucket="stagesink")
    return "stagesink"
