"""One upload into an MLflow run by one client, in a process of its own: prints what it took as JSON.

    upload_to_mlflow.py CLIENT URL SERVER FOLDER

URL is where the client finds the server, SERVER where the run is made before, outside the clock. CLIENT is `stagesink`,
`log_artifacts`, or `log_artifact xN` for N threads. See `measured.py`.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

from measured import Clock


def stagesink(url: str, run_id: str, folder: str) -> Callable[[], object]:
    from stagesink.sinks import open_sink
    from stagesink.transfer import Transfer, plan_tree

    sink = open_sink(f"mlflow+{url}")  # imports its driver, and asks the server nothing yet
    return lambda: Transfer(sink).run(plan_tree(run_id, "checkpoint", folder))


def log_artifacts(url: str, run_id: str, folder: str) -> Callable[[], object]:
    client = _client(url)
    return lambda: client.log_artifacts(run_id, folder, "checkpoint")


def log_artifact(url: str, run_id: str, folder: str, threads: int) -> Callable[[], object]:
    client = _client(url)

    def call() -> None:
        paths = [os.path.join(folder, name) for name in os.listdir(folder)]
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda path: client.log_artifact(run_id, path, "checkpoint"), paths))

    return call


def _client(url: str) -> Any:
    import_module("mlflow.store.artifact.mlflow_artifacts_repo")  # at the first upload otherwise
    client: Any = import_module("mlflow").MlflowClient
    return client(url)


def _new_run(server: str) -> str:
    request = urllib.request.Request(
        f"{server}/api/2.0/mlflow/runs/create",
        b'{"experiment_id": "0", "start_time": 1}',
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return str(json.load(answer)["run"]["info"]["run_id"])


def main() -> None:
    client, url, server, folder = sys.argv[1:]
    run_id = _new_run(server)
    with Clock() as clock:
        if client == "stagesink":
            call = stagesink(url, run_id, folder)
        elif client == "log_artifacts":
            call = log_artifacts(url, run_id, folder)
        else:
            call = log_artifact(url, run_id, folder, int(client.rpartition("x")[2]))
        clock.measure(call)


if __name__ == "__main__":
    main()
