"""Running many jobs of known size on a few threads, so that one Ctrl-C ends them all."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

Job = Callable[[], None]

_STOP_SECONDS = 0.8  # how long Ctrl-C waits for the jobs to clean up after themselves
_SMALL_EVERY = 4  # one pick in so many takes the smallest job left


def run_jobs(
    jobs: Sequence[tuple[int, Job]], *, workers: int, cancel: threading.Event, tick: Callable[[], None] | None = None
) -> None:
    """Run all jobs; return when the last has ended.

    Large ones go first, since the last large one decides when all is done; every fourth pick takes the smallest left, so
    that small ones are not starved by a few huge ones.

    Parameters
    ----------
    jobs : sequence of (int, callable)
        Size in bytes, and what to do. A job keeps its own failures; an exception out of one is a defect, ends the rest and
        is raised here.
    workers : int
        Threads at most; one job, or one worker, runs in the calling thread.
    cancel : threading.Event
        Set here on Ctrl-C; jobs look at it.
    tick : callable, optional
        Called about ten times a second from the calling thread.
    """
    queue = deque(job for _, job in sorted(jobs, key=lambda sized: -sized[0]))
    if min(workers, len(queue)) <= 1:
        for job in queue:
            job()
        return
    _Crew(queue, workers, cancel).run(tick or (lambda: None))


class _Crew:
    def __init__(self, queue: deque[Job], workers: int, cancel: threading.Event) -> None:
        self._queue = queue
        self._cancel = cancel
        self._lock = threading.Lock()
        self._picks = 0
        self._left = min(workers, len(queue))
        self._done = threading.Event()
        self._error: BaseException | None = None
        # Daemons: a thread stuck in a dead connection must not keep the interpreter from leaving after Ctrl-C. Being cut
        # off in the middle of a put is safe, by the first clause of the sink contract.
        self._threads = [
            threading.Thread(target=self._work, name=f"stagesink-{i}", daemon=True) for i in range(self._left)
        ]

    def run(self, tick: Callable[[], None]) -> None:
        for thread in self._threads:
            thread.start()
        try:
            while not self._done.wait(0.1):
                tick()
        except BaseException:
            self._cancel.set()
            deadline = time.monotonic() + _STOP_SECONDS
            for thread in self._threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            raise
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            while not self._cancel.is_set() and (job := self._pick()) is not None:
                job()
        except BaseException as error:
            if not self._cancel.is_set():  # afterwards it is only what cancelling does to a job
                self._error = error
                self._cancel.set()
        finally:
            with self._lock:
                self._left -= 1
                if self._left == 0:
                    self._done.set()

    def _pick(self) -> Job | None:
        with self._lock:
            if not self._queue:
                return None
            self._picks += 1
            return self._queue.pop() if self._picks % _SMALL_EVERY == 0 else self._queue.popleft()
