"""What one upload took, told by the process that made it: one line of JSON on standard output."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from types import TracebackType


class Clock:
    """`seconds` and `cpu` are of the call, with everything imported and opened; `whole` and `whole_cpu` count from
    the start of the block, that is with imports, and of the process; `memory` is its peak, in bytes."""

    def __enter__(self) -> Clock:
        self._start = time.perf_counter()
        self._told: dict[str, float] = {}
        return self

    def measure(self, call: Callable[[], object]) -> None:
        before, cpu = time.perf_counter(), time.process_time()
        call()
        self._told = {"seconds": time.perf_counter() - before, "cpu": time.process_time() - cpu}

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        if kind is None:
            whole = {"whole": time.perf_counter() - self._start, "whole_cpu": time.process_time()}
            print(json.dumps({**self._told, **whole, "memory": peak()}), flush=True)


def peak() -> int:
    """Return this process's peak memory in bytes."""
    # Not getrusage: that counts what this process had before the other was started in its place.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
