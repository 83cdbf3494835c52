"""How far a transfer has come, and the ways to show it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TextIO, cast

_CALL_SECONDS = 0.1  # between two calls of a callback
_OBJECT_BYTES = 64 << 10  # what an object costs besides its bytes, in bytes: a round trip is worth about that much
_LINE_SECONDS = 30.0  # between two lines where no terminal redraws them

ProgressStyle = Literal["auto", "bar", "lines", "none"]


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of a transfer.

    Parameters
    ----------
    label : str
        What is moved, for people.
    files_done, files_total : int
    bytes_done : int
        Bytes sent; falls when an attempt has to start again.
    bytes_total : int or None
        None when the size is known only after reading, as with archives made on the fly.
    seconds : float
        Since the transfer began.
    finished : bool
        True in the last call, and only there.
    """

    label: str
    files_done: int
    files_total: int
    bytes_done: int
    bytes_total: int | None
    seconds: float
    finished: bool = False


ProgressCallback = Callable[[Progress], None]


class ProgressCounter:
    """Counts for many threads, and tells one callback about ten times a second."""

    def __init__(self, label: str, files: int, size: int | None, callback: ProgressCallback | None) -> None:
        self._label = label
        self._files_total = files
        self._bytes_total = size
        self._callback = callback
        self._lock = threading.Lock()
        self._files = 0
        self._bytes = 0
        self._start = time.monotonic()
        self._told = self._start
        self._finished = False

    def add_bytes(self, count: int) -> None:
        with self._lock:
            self._bytes += count
        self.tick()

    def add_file(self) -> None:
        with self._lock:
            self._files += 1

    def moved(self) -> float:
        """Return how much was done so far: bytes, and for each object what it costs to send one."""
        return self._bytes + self._files * _OBJECT_BYTES

    def tick(self) -> None:
        """Tell the callback, unless it was told just now."""
        if self._callback is None or time.monotonic() - self._told < _CALL_SECONDS:
            return
        self._tell(finished=False)

    def finish(self) -> None:
        if self._callback is not None:
            self._tell(finished=True)

    def _tell(self, *, finished: bool) -> None:
        assert self._callback is not None
        with self._lock:
            now = time.monotonic()
            if self._finished or (not finished and now - self._told < _CALL_SECONDS):
                return  # a thread that Ctrl-C could not wait for; or another thread was faster
            self._told = now
            self._finished = finished
            self._callback(
                Progress(
                    self._label,
                    self._files,
                    self._files_total,
                    self._bytes,
                    self._bytes_total,
                    now - self._start,
                    finished,
                )
            )


def progress_callback(style: ProgressStyle, stream: TextIO | None = None) -> ProgressCallback | None:
    """Return what shows progress on ``stream`` (standard error).

    ``bar`` draws a bar, ``lines`` writes one line each 30 seconds, ``none`` shows nothing, and ``auto`` is a bar on a
    terminal and lines elsewhere, so that the log of a job does not fill with redrawn bars.
    """
    stream = stream if stream is not None else sys.stderr
    if style == "none" or stream is None:
        return None
    screen = _Screen(stream)
    if style == "auto":
        style = "bar" if screen.isatty() else "lines"
    return _Bar(screen) if style == "bar" else _Lines(screen)


class _Screen:
    """A text stream that shows what it can: a terminal that went away is no reason to stop an upload."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        with suppress(OSError, ValueError):
            return self._stream.isatty()
        return False

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # ValueError: it was closed, or cannot hold these characters
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


class _Lines:
    def __init__(self, stream: _Screen) -> None:
        self._stream = stream
        self._next = _LINE_SECONDS

    def __call__(self, progress: Progress) -> None:
        if progress.finished:
            self._next = _LINE_SECONDS
        elif progress.seconds >= self._next:
            self._next = progress.seconds + _LINE_SECONDS
            print(f"stagesink: {describe(progress)}", file=self._stream, flush=True)


class _Bar:
    def __init__(self, stream: _Screen) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TaskID,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[files]} files"),
        )
        self._rich = RichProgress(*columns, console=Console(file=cast("TextIO", stream)), transient=True)
        self._task: TaskID | None = None

    def __call__(self, progress: Progress) -> None:
        files = f"{progress.files_done}/{progress.files_total}"
        if self._task is None:
            self._rich.start()
            self._task = self._rich.add_task(progress.label, total=progress.bytes_total, files=files)
        self._rich.update(self._task, completed=progress.bytes_done, files=files)
        if progress.finished:
            self._rich.stop()
            self._rich.remove_task(self._task)
            self._task = None


def describe(progress: Progress) -> str:
    """Return one line for people: ``checkpoint: 3/8 files, 210.5 of 577.0 MB, 12 s``."""
    done = f"{progress.bytes_done / 1e6:.1f}"
    total = f" of {progress.bytes_total / 1e6:.1f}" if progress.bytes_total is not None else ""
    files = f"{progress.files_done}/{progress.files_total} files"
    return f"{progress.label}: {files}, {done}{total} MB, {progress.seconds:.0f} s"
