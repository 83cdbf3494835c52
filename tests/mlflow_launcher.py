"""A process that runs the servers of one test session: python mlflow_launcher.py FOLDER

Importing mlflow's server takes up to nine seconds of CPU, once for the command `mlflow server` and once more for the
process that it starts. This one imports it once and forks for each server; in the fork the command runs as it is, but
for its last step, where it would start a new Python.

It prints its port and goes into the background. Who connects asks for a server with one line of JSON, and gets its port
when it answers; each server is started once. When the last connection closes, as it does when its owner is killed too,
the servers and this process end.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import runpy
import selectors
import shutil
import signal
import socket
import sys
import time
import traceback
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NoReturn

HOST = "127.0.0.1"
UNUSED_SECONDS = 60
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven more processes, for what no test here is about
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "testing",
    "NO_PROXY": HOST,
    "OPENBLAS_NUM_THREADS": "1",  # no threads where we fork
}


def main(folder: Path) -> None:
    os.environ.update(ENVIRONMENT)
    listener = socket.create_server((HOST, 0))
    if os.fork():
        print(listener.getsockname()[1])
        return
    os.setsid()  # a process group of our own, to be ended as one
    _log_to(folder / "launcher.log")
    try:
        _serve(listener, Servers(folder))
    except BaseException:
        traceback.print_exc()
    os.killpg(0, signal.SIGKILL)


def _serve(listener: socket.socket, servers: Servers) -> None:
    """Answer until the last connection closes, or until nobody comes."""
    clients: dict[Any, Any] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while ready := selector.select(None if clients else UNUSED_SECONDS):
            for key, _ in ready:
                client: Any = key.fileobj
                if client is listener:
                    client, _ = listener.accept()
                    clients[client] = client.makefile("rw")
                    selector.register(client, selectors.EVENT_READ)
                elif question := _line(clients[client]):
                    clients[client].write(json.dumps(servers.answer(**json.loads(question))) + "\n")
                    clients[client].flush()
                else:
                    selector.unregister(client)
                    del clients[client]
            if not clients:
                return


def _line(stream: Any) -> str:
    try:
        return str(stream.readline())
    except ConnectionError:
        return ""


class Servers:
    """The servers that were asked for.

    Parameters
    ----------
    folder : Path
        Each gets a folder of its name in it, for its log and what it keeps.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._migrated = folder / "runs.sqlite"
        self._answers: dict[str, dict[str, Any]] = {}

    def answer(self, name: str, options: list[str], environment: dict[str, str]) -> dict[str, Any]:
        """Return the port of the server called ``name``, or the log of one that did not start."""
        if name not in self._answers:
            self._answers[name] = self._start(name, options, environment)
        return self._answers[name]

    def _start(self, name: str, options: list[str], environment: dict[str, str]) -> dict[str, Any]:
        folder = self._folder / name
        folder.mkdir()
        database, port = folder / "runs.sqlite", _free_port()
        for module in ["moto.server"] if name == "moto" else ["mlflow.cli", "mlflow.server"]:
            try:
                importlib.import_module(module)  # here, so that the forks need not
            except ImportError:
                return {"failure": traceback.format_exc()}
        if self._migrated.exists():
            shutil.copy(self._migrated, database)  # migrating an empty one takes more than a second
        process = os.fork()
        if not process:
            os.environ.update(environment)
            _run(name, folder, [*options, "--backend-store-uri", f"sqlite:///{database}"], port)
        if not _answers(process, port):
            return {"failure": (folder / "log").read_text()[-5000:]}
        if database.exists() and not self._migrated.exists():
            shutil.copy(database, self._migrated)
        return {"port": port, "folder": str(folder)}


def _run(name: str, folder: Path, options: list[str], port: int) -> NoReturn:
    """Become the server; in the fork."""
    try:
        os.closerange(3, 256)  # connections and selector are the parent's
        _log_to(folder / "log")
        os.chdir(folder)
        if name == "moto":
            import moto.server

            moto.server.main(["-H", HOST, "-p", str(port)])
        else:
            import mlflow.cli
            import mlflow.server

            mlflow.server._exec_cmd = _become
            mlflow.cli.cli(["server", "--host", HOST, "--port", str(port), *options])
    finally:
        sys.stderr.flush()
        os._exit(1)


def _become(command: list[str], *, extra_env: dict[str, str], **_: object) -> NoReturn:
    """Run ``python -m MODULE ARGUMENTS``, with which `mlflow server` ends, in this process."""
    python, flag, module, *arguments = command
    assert (python, flag) == (sys.executable, "-m"), command
    os.environ.update(extra_env)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    raise SystemExit


def _log_to(path: Path) -> None:
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, standard in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, standard)
    os.close(log)
    os.close(null)


def _free_port() -> int:
    """Below those that outgoing connections are given, and another process's own: the server takes seconds to start."""
    lowest = 20_000 + os.getpid() % 60 * 200
    while True:
        port = random.SystemRandom().randrange(lowest, lowest + 200)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port


def _answers(process: int, port: int) -> bool:
    """Wait until the server answers a request; False when its process is dead, or silent for a minute."""
    for _ in range(1200):
        try:
            urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5).close()
        except urllib.error.HTTPError:
            return True  # moto has no such page, basic-auth wants a password
        except OSError:
            if os.waitpid(process, os.WNOHANG) != (0, 0):
                return False
            time.sleep(0.05)
        else:
            return True
    return False


if __name__ == "__main__":
    main(Path(sys.argv[1]))
