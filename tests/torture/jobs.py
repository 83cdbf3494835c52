"""Jobs for a worker, and when it is killed at them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torture.boundaries import MOMENTS
from torture.stores import Run

Step = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Kill:
    """When a worker dies: at a call that matters, or after a time.

    Attributes
    ----------
    at : int
        Number of the call, from 1; 0 for none.
    moment : {"before", "torn", "after"}
    seconds : float, optional
        After the start of the work.
    workers : int
        Threads that upload. With one, the calls come in the same order each time.
    client : str
        What carries the bytes, where the store has a choice.
    """

    at: int = 0
    moment: str = "before"
    seconds: float | None = None
    workers: int = 1
    client: str = "own"

    def __str__(self) -> str:
        when = f"{self.moment}:{self.at}" if self.seconds is None else f"time:{self.seconds:.4f}"
        return f"{when}:{self.workers}:{self.client}"

    @classmethod
    def parse(cls, text: str) -> Kill:
        """Read what ``str`` gives."""
        when, number, workers, client = text.split(":")
        if when == "time":
            return cls(seconds=float(number), workers=int(workers), client=client)
        if when not in MOMENTS:
            raise ValueError(f"{when!r} is none of {MOMENTS}.")
        return cls(int(number), when, workers=int(workers), client=client)


@dataclass(frozen=True)
class Answer:
    """What became of a job.

    Attributes
    ----------
    ended : {"done", "killed", "failed"}
    seconds : float
    boundaries : int
        Calls that matter; of a killed job those up to its end, 0 when it was killed by time.
    names : list of str
        Those calls, of a job that was done.
    at : str or None
        The call it died at.
    why : str
        Of a job that failed.
    """

    ended: str
    seconds: float
    boundaries: int = 0
    names: Sequence[str] = ()
    at: str | None = None
    why: str = ""


@dataclass
class Worker:
    """A process that does jobs, each in a child of its own."""

    _process: subprocess.Popen[str] = field(repr=False)
    _log: Path

    def do(self, run: Run, steps: Sequence[Step], folder: Path, kill: Kill) -> Answer:
        """Have a job done, or begun."""
        job = {
            **asdict(kill),
            "steps": steps,
            "folder": str(folder),
            "run_id": run.run_id,
            "environment": {**run.environment, "STAGESINK_SINK": run.sink},
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return Answer(**self._said())

    def _said(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The worker has ended:\n{self._log.read_text()[-3000:]}")
        return dict(json.loads(line))


@contextmanager
def start_worker(log: Path) -> Iterator[Worker]:
    """Run a worker until the block ends."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    with (
        log.open("ab") as errors,
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        ) as process,
    ):
        try:
            worker = Worker(process, log)
            worker._said()
            yield worker
        finally:
            process.kill()
