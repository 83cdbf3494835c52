"""Real servers as processes of their own: started on a free port, logged to a file, stopped by their own id."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest

from stagesink.testing.azurite import COMMAND_VARIABLE, Azurite, free_port, start_azurite

T = TypeVar("T")

_AZURITE = os.environ.get(COMMAND_VARIABLE)  # now: within a test there are no settings of the machine

PAGE = 100
"""Objects on one page of moto's listings; 1,000 as on the real S3 would only make the tests slower."""

_HELD: list[socket.socket] = []


def closed_port() -> int:
    """Return a port where nobody listens, and nobody will as long as this process lives."""
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    _HELD.append(held)
    return int(held.getsockname()[1])


@dataclass(frozen=True)
class S3Server:
    """A moto server and what one needs to talk to it."""

    port: int
    key: str = "testing"
    secret: str = "testing-secret"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def options(self, port: int | None = None) -> dict[str, Any]:
        """Storage options for s3fs; another port when a proxy stands in front."""
        return {
            "key": self.key,
            "secret": self.secret,
            "endpoint_url": f"http://127.0.0.1:{port or self.port}",
            "client_kwargs": {"region_name": "us-east-1"},
        }

    def boto3(self) -> Any:
        """A client that is not ours, to look at what we left there."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
        )


@dataclass(frozen=True)
class FtpServer:
    port: int
    folder: Path
    user: str = "tester"
    password: str = "ftp-password"

    @property
    def url(self) -> str:
        return f"ftp://{self.user}:{self.password}@127.0.0.1:{self.port}/store"


@cache
def botocore_session() -> Any:
    """One session for many clients: reading botocore's description of S3 takes half a second."""
    from aiobotocore.session import AioSession

    return AioSession()


@contextmanager
def process(command: list[str], port: int, log: Path, **environment: str) -> Iterator[None]:
    """Run a server until the block ends; it is ready when its port answers."""
    environment = {**{name: value for name, value in os.environ.items() if not name.startswith("COV")}, **environment}
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        ) as server,
    ):
        try:
            _wait(server, port, log)
            yield
        finally:
            server.kill()


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            if server.poll() is None:
                return
        if server.poll() is not None:
            break
    raise RuntimeError(f"{server.args!r} did not start:\n{log.read_text()}")


@contextmanager
def moto_server(folder: Path) -> Iterator[S3Server]:
    """S3 as moto plays it."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with process(command, port, folder / "moto.log", MOTO_S3_DEFAULT_MAX_KEYS=str(PAGE)):
        yield S3Server(port)


@contextmanager
def azurite_server(folder: Path) -> Iterator[Azurite]:
    """Azure's blob store as Azurite plays it, with a container ``stagesink``."""
    with start_azurite(folder, command=[azurite_command()]) as azurite:
        _create_container(azurite, "stagesink")
        yield azurite


def azurite_command() -> str:
    """Find Azurite, or skip: it comes with Node, as tests/node says."""
    local = Path(__file__).with_name("node") / "node_modules" / ".bin" / "azurite-blob"
    command = _AZURITE or (str(local) if local.is_file() else None)
    if command is None or shutil.which("node") is None:
        pytest.skip(f"Azurite is not here: run `npm ci` in tests/node, or name it in {COMMAND_VARIABLE}")
    return command


def _create_container(azurite: Azurite, name: str) -> None:
    from azure.storage.blob import ContainerClient

    with ContainerClient.from_connection_string(azurite.connection_string, name) as container:
        container.create_container()


def google_key(folder: Path) -> Path:
    """Make a service account's key, with which obstore signs for Google's interface as moto plays it."""
    pytest.importorskip("cryptography", reason="comes with moto")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key = rsa.generate_private_key(65537, 2048).private_bytes(*form).decode()
    account = {"type": "service_account", "client_email": "a@b", "private_key": key, "private_key_id": "1"}
    file = folder / "key.json"
    file.write_text(json.dumps(account))
    return file


_FTP = """
import sys
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import ThreadedFTPServer
port, folder, user, password = int(sys.argv[1]), *sys.argv[2:]
FTPHandler.auth_failed_timeout = 0
FTPHandler.authorizer = DummyAuthorizer()
FTPHandler.authorizer.add_user(user, password, folder, perm="elradfmwMT")
server = ThreadedFTPServer(("127.0.0.1", port), FTPHandler)
server.max_cons = 512
server.serve_forever()
"""


@contextmanager
def ftp_server(folder: Path) -> Iterator[FtpServer]:
    """An FTP server over a folder of this machine."""
    store = folder / "ftp"
    store.mkdir()
    server = FtpServer(free_port(), store)
    command = [sys.executable, "-c", _FTP, str(server.port), str(store), server.user, server.password]
    with process(command, server.port, folder / "ftp.log"):
        yield server


def shared(request: pytest.FixtureRequest, name: str, start: Callable[[Path], AbstractContextManager[T]]) -> T:
    """Start a server once per test process, whichever folder's fixture asks first; it stops with pytest."""
    servers: dict[str, Any] = request.config.stash.setdefault(_SERVERS, {})
    if name not in servers:
        folder = request.getfixturevalue("tmp_path_factory").mktemp(name)
        context = start(folder)
        servers[name] = context.__enter__()
        request.config.add_cleanup(lambda: context.__exit__(None, None, None) and None)
    server: T = servers[name]
    return server


_SERVERS = pytest.StashKey[dict[str, Any]]()


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # not even the package that it lies in
        return False


def installed(*packages: str) -> None:
    """Skip, a whole module too, where the environment ``core`` lacks a package on purpose. None is imported for it."""
    for package in packages:
        if not _is_installed(package):
            reason = f"{package} comes with an extra, which the core environment has not"
            pytest.skip(reason, allow_module_level=True)
