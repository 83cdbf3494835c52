"""stagesink beside mlflow's own client, on one real server: the same bytes, each upload in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROUND_TRIP = 0.05
PROGRAM = Path(__file__).with_name("upload_to_mlflow.py")
DELAY = Path(__file__).resolve().parent.parent / "tests" / "delay.py"
Measured = dict[str, list[dict[str, float]]]


def measure(
    runs: int,
    room: Path,
    make_files: Callable[[Path, int, int], None],
    table: Callable[..., list[str]],
    progress: Callable[[str], None],
) -> list[str]:
    """Return the tables; ``make_files`` and ``table`` are those of the other benchmarks."""
    few, many, big, one = (room / name for name in ("few", "many", "big", "one"))
    make_files(few, 200, 16 << 10)
    make_files(many, 2000, 16 << 10)
    make_files(big, 8, 577_000_000 // 8)
    make_files(one, 1, 16 << 10)
    with _server(room) as port, _far_from(port, room) as far:
        workloads = (
            ("200 files of 16 KiB, round trip 50 ms", few, far, ["log_artifacts", "log_artifact x32"]),
            ("2,000 files of 16 KiB, no round trip", many, port, ["log_artifacts", "log_artifact x8"]),
            ("577 MB in 8 files, no round trip", big, port, ["log_artifacts", "log_artifact x8"]),
            ("one file of 16 KiB, the whole process with its imports", one, port, ["log_artifacts"]),
        )
        lines = []
        for title, folder, to, peers in workloads:
            measured = _alternate(["stagesink", *peers], f"http://127.0.0.1:{to}", port, folder, runs)
            whole = folder is one
            clock = "whole" if whole else "seconds"
            seconds = {name: [each[clock] for each in every] for name, every in measured.items()}
            lines += [f"### To an MLflow server: {title}", "", *table(seconds), ""]
            lines += [*_costs(measured, folder, whole), ""]
            progress(f"mlflow, {title}")
        return lines


def _alternate(clients: list[str], url: str, port: int, folder: Path, runs: int) -> Measured:
    measured: Measured = {name: [] for name in clients}
    for turn in range(runs + 1):
        for name in clients:
            command = [sys.executable, str(PROGRAM), name, url, _new_run(port), str(folder)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            if turn:  # the first round does not count
                measured[name].append(json.loads(done.stdout.splitlines()[-1]))
    return measured


def _costs(measured: Measured, folder: Path, whole: bool) -> list[str]:
    files = sum(1 for _ in folder.iterdir())
    cpu = "whole_cpu" if whole else "cpu"
    first = next(iter(measured.values()))
    rows = ["| | client CPU for a file (ms) | stagesink takes | peak memory |", "|---|---|---|---|"]
    for name, every in measured.items():
        each = statistics.median(one[cpu] for one in every) * 1000 / files
        ratio = statistics.median(ours[cpu] / theirs[cpu] for ours, theirs in zip(first, every, strict=True))
        memory = max(one["memory"] for one in every) / 1e6
        rows.append(f"| {name} | {each:.2f} | {'' if every is first else f'{ratio:.2f}x'} | {memory:.0f} MB |")
    return rows


@contextmanager
def _server(room: Path) -> Iterator[int]:
    """Run `mlflow server` as its documentation starts it: artifacts go through it into a folder."""
    port = _free_port()
    folder = room / "server"
    folder.mkdir()
    command = [
        sys.executable, "-m", "mlflow", "server",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination", str(folder / "artifacts"),
        "--host", "127.0.0.1",
        "--port", str(port),
    ]  # fmt: skip
    with _running(command, port, room / "mlflow.log"):
        yield port


@contextmanager
def _far_from(target: int, room: Path) -> Iterator[int]:
    """Run a proxy that makes the server far away."""
    port = _free_port()
    with _running([sys.executable, str(DELAY), str(port), str(target), str(ROUND_TRIP)], port, room / "delay.log"):
        yield port


@contextmanager
def _running(command: list[str], port: int, log: Path) -> Iterator[None]:
    """Run a server, and the processes it starts, until the block ends."""
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        for _ in range(1200):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _new_run(port: int) -> str:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/create",
        b'{"experiment_id": "0", "start_time": 1}',
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return str(json.load(answer)["run"]["info"]["run_id"])
