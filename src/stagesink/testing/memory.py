"""How much memory something takes, all of it."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

_FORGET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class PeakMemory:
    """Most bytes that were taken at a time, beyond what there was before.

    Where Linux tells, it is all memory of the process: large buffers come straight from the system, and clients that
    are not written in Python have a heap of their own. Elsewhere it is what Python's objects took.
    """

    peak = 0

    def __enter__(self) -> PeakMemory:
        gc.collect()
        self._traced = not _forget_peak()
        if self._traced:
            tracemalloc.start()
        self._before = self._now()[0]
        return self

    def __exit__(self, *_: object) -> None:
        self.peak = self._now()[1] - self._before
        if self._traced:
            tracemalloc.stop()

    def _now(self) -> tuple[int, int]:
        """Return what is taken, and the most that was."""
        if self._traced:
            return tracemalloc.get_traced_memory()
        told = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        resident, highest = (int(told[name].split()[0]) << 10 for name in ("VmRSS", "VmHWM"))
        return resident, highest


def _forget_peak() -> bool:
    """Have Linux count this process's peak from now on (proc_pid_clear_refs(5)); False where it cannot."""
    try:
        _FORGET.write_text("5")
    except OSError:
        return False
    return True
