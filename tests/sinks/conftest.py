"""Servers that the sink tests share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/servers.py, tests/faults/proxy.py

from servers import FtpServer, S3Server, ftp_server, installed, moto_server, shared


@pytest.fixture(scope="session")
def moto(request: pytest.FixtureRequest) -> S3Server:
    installed("s3fs", "moto", "flask")
    return shared(request, "moto", moto_server)


@pytest.fixture(scope="session")
def bucket(moto: S3Server) -> str:
    moto.boto3().create_bucket(Bucket="stagesink")
    return "stagesink"


@pytest.fixture(scope="session")
def ftp(request: pytest.FixtureRequest) -> FtpServer:
    installed("pyftpdlib")
    return shared(request, "ftp", ftp_server)
