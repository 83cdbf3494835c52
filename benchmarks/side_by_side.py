"""Uploads by several clients to one server: each in a process of its own, alternating; time, CPU and memory."""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

ROUND_TRIP = 0.05
DELAY = Path(__file__).resolve().parent.parent / "tests" / "delay.py"
Measured = dict[str, list[dict[str, float]]]


def alternate(
    clients: Mapping[str, list[str]],
    runs: int,
    *,
    environment: Mapping[str, str] | None = None,
    warm: bool = True,
    after: Callable[[], None] = lambda: None,
) -> Measured:
    """Run the clients in turn, ``runs`` times, after one round that does not count unless ``warm`` is false.

    Every second round goes backwards: whoever comes first finds the server as nobody left it.

    Parameters
    ----------
    clients : mapping of str to list of str
        The command of each.
    after : callable
        Called after each run, outside the clock, such as :func:`forget` with the server's folder.
    """
    measured: Measured = {name: [] for name in clients}
    wait_until_idle()
    for turn in range(runs + warm):
        for name, command in list(clients.items())[:: -1 if turn % 2 else 1]:
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
            )
            if turn >= warm:
                measured[name].append(json.loads(done.stdout.splitlines()[-1]))
            after()
    return measured


def forget(folder: Path) -> None:
    """Write what lies in a folder to the disk, and let go of the memory that caches it.

    Without it each run takes memory that was not used before, which a virtual machine may get from its host several
    times slower than its own: after some 7 GB the same 577 MB took 1.3 s to write instead of 0.13 s.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def wait_until_idle(most: float = 120.0) -> None:
    """Wait until this machine has had little to do for two seconds: MLflow's server goes on starting after it answers.

    Parameters
    ----------
    most : float
        Seconds, after which it is measured all the same.
    """
    end = time.monotonic() + most
    while (stat := Path("/proc/stat")).exists() and time.monotonic() < end:
        before = _ticks(stat)
        time.sleep(2)
        busy, idle = (now - then for now, then in zip(_ticks(stat), before, strict=True))
        if busy < idle / 10:
            return


def _ticks(stat: Path) -> tuple[int, int]:
    """Return the time that all processors have worked and idled, in ticks: proc(5)."""
    user, nice, system, idle, iowait, *rest = map(int, stat.read_text().split("\n")[0].split()[1:9])
    return user + nice + system + sum(rest), idle + iowait


def rows(
    title: str, measured: Measured, files: int, table: Callable[..., list[str]], *, whole: bool = False
) -> list[str]:
    """Return the two tables of one workload; ``whole`` counts processes from their start."""
    clock = "whole" if whole else "seconds"
    seconds = {name: [each[clock] for each in every] for name, every in measured.items()}
    return [f"### {title}", "", *table(seconds), "", *_costs(measured, files, whole), ""]


def _costs(measured: Measured, files: int, whole: bool) -> list[str]:
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
def far_from(target: int, room: Path, round_trip: float = ROUND_TRIP, rate: float = 0) -> Iterator[int]:
    """Run a proxy that makes the server far away, and the line to it narrow: ``rate`` bytes a second."""
    port = free_port()
    command = [sys.executable, str(DELAY), str(port), str(target), str(round_trip), str(rate)]
    with running(command, port, room / "delay.log"):
        yield port


@contextmanager
def running(command: list[str], port: int, log: Path) -> Iterator[None]:
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
