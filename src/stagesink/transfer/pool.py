"""Running many jobs of known size on a few threads, so that one Ctrl-C ends them all."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

Job = Callable[[], None]

_QUICK_JOBS = 1000  # a second; jobs quicker than that are bound by the interpreter, and more threads only fight for it
_FIRST_LOOK_SECONDS = 0.005
_TICK_SECONDS = 0.1
_STOP_SECONDS = 0.8  # how long Ctrl-C waits for the jobs to clean up after themselves
_SMALL_EVERY = 4  # one pick in so many takes the smallest job left


def run_jobs(
    jobs: Sequence[tuple[int, Job]], *, workers: int, cancel: threading.Event, tick: Callable[[], None] | None = None
) -> None:
    """Run all jobs; return when the last has ended.

    Large ones go first, since the last large one decides when all is done; every fourth pick takes the smallest left,
    so that small ones are not starved by a few huge ones. Threads start when there is something to wait for: one thread
    that gets through small local files at more than a thousand a second is left alone, since a second would slow it
    down.

    Parameters
    ----------
    jobs : sequence of (int, callable)
        Size in bytes, and what to do. A job keeps its own failures; an exception out of one is a defect, ends the rest
        and is raised here.
    workers : int
        Threads at most. Even one job has its own: the calling thread must be free to leave a hanging store on Ctrl-C.
    cancel : threading.Event
        Set here on Ctrl-C; jobs look at it.
    tick : callable, optional
        Called about ten times a second from the calling thread.
    """
    queue = deque(job for _, job in sorted(jobs, key=lambda sized: -sized[0]))
    if queue:
        _Crew(queue, workers, cancel).run(tick or (lambda: None))


class _Crew:
    def __init__(self, queue: deque[Job], workers: int, cancel: threading.Event) -> None:
        self._queue = queue
        self._workers = min(workers, len(queue))
        self._cancel = cancel
        self._lock = threading.Lock()
        self._picks = 0
        self._busy = 0
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._threads: list[threading.Thread] = []

    def run(self, tick: Callable[[], None]) -> None:
        start = time.monotonic()
        wait = _FIRST_LOOK_SECONDS
        try:
            self._hire(1)
            while not self._done.wait(wait):
                tick()
                if len(self._threads) < self._workers:
                    quick = self._picks - 1 > _QUICK_JOBS * (time.monotonic() - start)
                    wait = 4 * _FIRST_LOOK_SECONDS
                    if not quick:
                        self._hire(self._workers - len(self._threads))
                else:
                    wait = _TICK_SECONDS
        except BaseException:
            self._cancel.set()
            deadline = time.monotonic() + _STOP_SECONDS
            for thread in self._threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            raise
        if self._error is not None:
            raise self._error

    def _pick(self) -> Job | None:
        """Take the next job: a large one, and now and then the smallest. None when all are taken."""
        with self._lock:
            if not self._queue:
                return None
            self._picks += 1
            return self._queue.pop() if self._picks % _SMALL_EVERY == 0 else self._queue.popleft()

    def _hire(self, count: int) -> None:
        with self._lock:
            self._busy += count
        for _ in range(count):
            # Daemons: a thread stuck in a dead connection must not keep the interpreter from leaving after Ctrl-C.
            # Being cut off in the middle of a put is safe, by the first clause of the sink contract.
            thread = threading.Thread(target=self._work, name=f"stagesink-{len(self._threads)}", daemon=True)
            thread.start()
            self._threads.append(thread)  # only now: Ctrl-C joins what is here, and only a started thread can be joined

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
                self._busy -= 1
                if self._busy == 0:
                    self._done.set()
