"""Real MLflow servers of the version that is installed, each started once for all processes of a test session."""

from __future__ import annotations

import base64
import fcntl
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import tempfile
import urllib.request
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlencode

import pytest
from servers import S3Server, installed

HOST = "127.0.0.1"
AUTH_CONFIG = Path(__file__).with_name("mlflow_auth.ini")


def mlflow_version() -> tuple[int, int]:
    """Major and minor version of mlflow, or (0, 0) where it is not installed."""
    for name in ("mlflow", "mlflow-skinny"):
        try:
            major, minor, *_ = importlib.metadata.version(name).split(".")
        except importlib.metadata.PackageNotFoundError:
            continue
        return int(major), int(minor)
    return 0, 0


@dataclass(frozen=True)
class MlflowServer:
    """One server, asked by means that are not ours: its REST API as anybody calls it, and mlflow's own client.

    Attributes
    ----------
    port : int
    folder : Path
        Holds its ``log``, and what it keeps.
    user, password : str
        Empty where it asks for none.
    """

    port: int
    folder: Path
    user: str = ""
    password: str = ""

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def url_with_login(self) -> str:
        """Its URL with user and password, as mlflow's client takes them."""
        return f"http://{self.user}:{self.password}@{HOST}:{self.port}" if self.user else self.url

    @property
    def sink_uri(self) -> str:
        return f"mlflow+{self.url_with_login}"

    # -- REST ----------------------------------------------------------------------------------------------------------

    def rest(self, method: str, call: str, **arguments: Any) -> dict[str, Any]:
        """Make a call under ``/api/2.0/mlflow/``, or of a path that begins with a slash."""
        url = self.url + (call if call.startswith("/") else f"/api/2.0/mlflow/{call}")
        body = None
        if method == "GET":
            url += f"?{urlencode(arguments)}"
        else:
            body = json.dumps(arguments).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method=method)
        if self.user:
            login = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
            request.add_header("Authorization", f"Basic {login}")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return dict(json.load(answer))

    def experiment(self, artifact_location: str | None = None) -> str:
        """Make an experiment, whose artifacts lie where it says, and return its id."""
        where = {} if artifact_location is None else {"artifact_location": artifact_location}
        made = self.rest("POST", "experiments/create", name=uuid.uuid4().hex, **where)
        return str(made["experiment_id"])

    def run(self, experiment: str = "0") -> str:
        """Make a run and return its id."""
        made = self.rest("POST", "runs/create", experiment_id=experiment, start_time=1)
        return str(made["run"]["info"]["run_id"])

    def finish(self, run_id: str, status: str = "FINISHED") -> None:
        self.rest("POST", "runs/update", run_id=run_id, status=status, end_time=2)

    def delete_run(self, run_id: str) -> None:
        self.rest("POST", "runs/delete", run_id=run_id)

    def info(self, run_id: str) -> dict[str, Any]:
        """Return the run's id, status, artifact URI and so on."""
        return dict(self.rest("GET", "runs/get", run_id=run_id)["run"]["info"])

    def seen_in_ui(self, run_id: str, folder: str = "") -> dict[str, int | None]:
        """Return what the run's page shows in a folder, asked as it asks: sizes by path, None for a folder."""
        path = {"path": folder} if folder else {}
        answer = self.rest("GET", "/ajax-api/2.0/mlflow/artifacts/list", run_uuid=run_id, **path)
        entries = answer.get("files", [])
        return {each["path"]: None if each.get("is_dir") else int(each.get("file_size", 0)) for each in entries}

    def opened_in_ui(self, run_id: str, path: str) -> bytes:
        """Return what the run's page gets when one clicks on an artifact."""
        with urllib.request.urlopen(f"{self.url}/get-artifact?{urlencode({'path': path, 'run_uuid': run_id})}") as body:
            return bytes(body.read())

    # -- mlflow's own client -------------------------------------------------------------------------------------------

    @contextmanager
    def client(self) -> Iterator[Any]:
        """Yield mlflow's own client. It may warn: old ones use what newer packages have deprecated."""
        # Before mlflow 2.10 the artifacts of a server are found by this variable alone.
        with warnings.catch_warnings(), patch.dict(os.environ, MLFLOW_TRACKING_URI=self.url_with_login):
            warnings.simplefilter("ignore")
            from mlflow import MlflowClient

            yield MlflowClient()

    def listed(self, run_id: str) -> dict[str, int]:
        """Return the sizes of a run's artifacts by path, as mlflow's client lists them."""
        found = {}
        folders = [""]
        with self.client() as client:
            while folders:
                for entry in client.list_artifacts(run_id, folders.pop() or None):
                    if entry.is_dir:
                        folders.append(entry.path)
                    else:
                        found[entry.path] = int(entry.file_size or 0)
        return found

    def downloaded(self, run_id: str, folder: Path, path: str = "") -> dict[str, bytes]:
        """Download a run's artifacts, or those under ``path``, by mlflow's client; contents by path in the run."""
        with self.client() as client:
            client.download_artifacts(run_id, path, str(folder))
        return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class Launcher:
    """A connection to the process that runs the servers; they live as long as one connection does.

    With pytest-xdist the first worker that needs a server starts the process, and all of them share it.

    Parameters
    ----------
    folder : Path
        The same in every process of the test session.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with (folder / "mlflow.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._connection = self._connect() or self._start()
        self._stream = self._connection.makefile("rw")

    def ask(self, name: str, *options: str, **environment: str) -> tuple[int, Path]:
        """Return port and folder of the server called ``name``, started if it does not run yet."""
        self._stream.write(json.dumps({"name": name, "options": options, "environment": environment}) + "\n")
        self._stream.flush()
        answer = json.loads(self._stream.readline())
        if "failure" in answer:
            pytest.fail(f"The server {name} did not start:\n{answer['failure']}", pytrace=False)
        return answer["port"], Path(answer["folder"])

    def close(self) -> None:
        self._stream.close()
        self._connection.close()

    def _connect(self) -> socket.socket | None:
        try:
            return socket.create_connection((HOST, int((self._folder / "mlflow.port").read_text())))
        except OSError:  # none was started, or it has ended with its last user
            return None

    def _start(self) -> socket.socket:
        folder = tempfile.mkdtemp(prefix="mlflow-", dir=self._folder)
        ours = ("COV", "MLFLOW_", "STAGESINK_", "AWS_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        program = Path(__file__).with_name("mlflow_launcher.py")
        started = subprocess.run(
            [sys.executable, str(program), folder], env=environment, stdout=subprocess.PIPE, check=True
        )
        (self._folder / "mlflow.port").write_text(started.stdout.decode())
        connection = self._connect()
        assert connection is not None
        return connection


def launcher(request: pytest.FixtureRequest) -> Launcher:
    """Return this process's connection; skips where the servers are not installed."""
    installed("moto", "flask", "boto3")
    try:
        importlib.metadata.version("mlflow")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("MLflow's server comes with the package mlflow, which the environments mlflow2 and mlflow3 have")
    if _LAUNCHER not in request.config.stash:
        folder: Path = request.getfixturevalue("tmp_path_factory").getbasetemp()
        found = Launcher(folder.parent if hasattr(request.config, "workerinput") else folder)
        request.config.stash[_LAUNCHER] = found
        request.config.add_cleanup(found.close)
    return request.config.stash[_LAUNCHER]


_LAUNCHER = pytest.StashKey[Launcher]()


def s3_environment(moto: S3Server) -> dict[str, str]:
    """What a process sets to keep its artifacts there."""
    return {
        "MLFLOW_S3_ENDPOINT_URL": moto.endpoint,
        "AWS_ACCESS_KEY_ID": moto.key,
        "AWS_SECRET_ACCESS_KEY": moto.secret,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def workers() -> tuple[str, str]:
    """As few processes as will do: before MLflow 3 each serves one request at a time, and streams may be held open."""
    return "--workers", "1" if mlflow_version() >= (3, 0) else "4"
