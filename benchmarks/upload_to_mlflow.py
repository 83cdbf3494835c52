"""One upload into an MLflow run by one client, in a process of its own: prints what it took as JSON.

    upload_to_mlflow.py CLIENT URL RUN_ID FOLDER

CLIENT is `stagesink`, `log_artifacts`, or `log_artifact xN` for N threads. `seconds` and `cpu` are of the call, with
everything imported; `whole` and `whole_cpu` count from the start of the process; `memory` is its peak, in bytes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any


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


def _peak() -> int:
    # Not getrusage: that counts what this process had before the other was started in its place.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def main() -> None:
    start = time.perf_counter()
    client, url, run_id, folder = sys.argv[1:]
    if client == "stagesink":
        call = stagesink(url, run_id, folder)
    elif client == "log_artifacts":
        call = log_artifacts(url, run_id, folder)
    else:
        call = log_artifact(url, run_id, folder, int(client.rpartition("x")[2]))
    before, cpu_before = time.perf_counter(), time.process_time()
    call()
    after, cpu_after = time.perf_counter(), time.process_time()
    print(
        json.dumps(
            {
                "seconds": after - before,
                "cpu": cpu_after - cpu_before,
                "whole": after - start,
                "whole_cpu": cpu_after,
                "memory": _peak(),
            }
        )
    )


if __name__ == "__main__":
    main()
