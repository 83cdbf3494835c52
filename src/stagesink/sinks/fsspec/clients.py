"""The clients of one sink: one for each process, and one for each operation where they are not thread-safe."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Any

from stagesink.sinks._forks import never_dropped_in_children


class Clients:
    """The fsspec instances of one sink.

    They do not survive a fork, so each process has its own; a child keeps its parent's untouched, since closing them
    would speak on the parent's connection. Async implementations are thread-safe and shared; of the others each
    operation takes one of its own. No lock: a fork could copy it locked, and ``dict.setdefault`` and ``deque.pop`` are
    atomic.
    """

    def __init__(self, connect: Callable[[], Any], *, shared: bool) -> None:
        self._connect = connect
        self._shared = shared
        self._free: dict[int, deque[Any]] = {}

    def take(self) -> Any:
        free = self._free.setdefault(os.getpid(), deque())
        if self._shared:
            if not free:
                free.append(self._connected())
            return free[0]
        try:
            return free.pop()
        except IndexError:
            return self._connected()

    def give_back(self, fs: Any) -> None:
        if not self._shared:
            self._free.setdefault(os.getpid(), deque()).append(fs)

    def close(self) -> None:
        self._free.pop(os.getpid(), None)

    def _connected(self) -> Any:
        return never_dropped_in_children(self._connect())
