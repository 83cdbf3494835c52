"""Running many jobs of known size on a few threads, so that one Ctrl-C ends them all."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from stagesink.interrupts import interrupts_whole
from stagesink.transfer.level import Level

Job = Callable[[], None]

_QUICK_JOBS = 1000  # a second; jobs quicker than that are bound by the interpreter, and more threads only fight for it
_FIRST_LOOK_SECONDS = 0.005
_TICK_SECONDS = 0.1
_STOP_SECONDS = 0.8  # how long Ctrl-C waits for the jobs to clean up after themselves
_SMALL_EVERY = 4  # one pick in so many takes the smallest job left
_SMALL_BYTES = 1 << 20  # no more than a thread's own buffer: many of these at once cost no memory to speak of
_MORE_OF_SMALL = 4  # times as many threads for those, where a thread gets through few, to begin with
_NEAR_SECONDS = 0.001  # an answer that comes sooner is this machine's own
_PATIENCE_SECONDS = 0.25  # with the first job there, which may have more to do than the others
_SLOW_JOBS = 50  # a second in one thread: it waits for answers, not for the interpreter
_MORE_OF_FAR = 9  # times as many threads for small jobs, where it is known from the start that each will wait
_MOST = 72


def run_jobs(
    jobs: Sequence[tuple[int, Job]],
    *,
    workers: int,
    cancel: threading.Event,
    tick: Callable[[], None] | None = None,
    moved: Callable[[], float] | None = None,
    answer: float = 0.0,
) -> None:
    """Run all jobs; return when the last has ended.

    Large ones go first, since the last large one decides when all is done; every fourth pick takes the smallest left,
    so that small ones are not starved by a few huge ones. Threads start when there is something to wait for: one thread
    that gets through small local files at more than a thousand a second is left alone, since a second would slow it
    down; the first of them, before which a manifest may have to go, tells nothing of the others. Where each answer
    takes long, as over a wide area network, small jobs get four times as many threads, or nine times where that was
    known before, and from there on :class:`.Level` seeks the number that gets most done. There are no more than it
    takes to be done in as many rounds: a last round of a few jobs would take as long as the others.

    Parameters
    ----------
    jobs : sequence of (int, callable)
        Size in bytes, and what to do. A job keeps its own failures; an exception out of one is a defect, ends the rest
        and is raised here.
    workers : int
        Large jobs at once at most; of jobs up to 1 MiB up to 72 where that gets more done. 1 means one. Even one job
        has a thread of its own: the calling one must be free to leave a hanging store on Ctrl-C.
    cancel : threading.Event
        Set here on Ctrl-C; jobs look at it.
    tick : callable, optional
        Called about ten times a second from the calling thread.
    moved : callable, optional
        Returns how much was done so far. Without it the number of jobs at once stays as it began.
    answer : float
        Seconds that the backend took for an answer just now; 0 where that is not known.
    """
    queue = deque(sorted(jobs, key=lambda sized: -sized[0]))
    if queue:
        _Crew(queue, workers, cancel, moved, answer).run(tick or (lambda: None))


@contextmanager
def stepping_aside() -> Iterator[None]:
    """Leave one's place to another job until the block ends: what waits before it tries again is not at work."""
    crew: _Crew | None = getattr(_here, "crew", None)
    if crew is None:
        yield
        return
    crew.leave()
    try:
        yield
    finally:
        crew.come_back()


_here = threading.local()


def _evenly(jobs: int, at_once: int) -> int:
    """Return how many at once get as many jobs done in as many rounds."""
    rounds = -(-jobs // max(at_once, 1))
    return -(-jobs // max(rounds, 1))


class _Crew:
    def __init__(
        self,
        queue: deque[tuple[int, Job]],
        workers: int,
        cancel: threading.Event,
        moved: Callable[[], float] | None,
        answer: float,
    ) -> None:
        self._queue = queue
        self._workers = min(workers, len(queue))
        small = sum(size <= _SMALL_BYTES for size, _ in queue) if workers > 1 else 0
        self._far = answer * _SLOW_JOBS > 1
        self._near = 0 < answer < _NEAR_SECONDS and queue[0][0] <= _SMALL_BYTES
        self._first_ended: float | None = None
        more = min((_MORE_OF_FAR if self._far else _MORE_OF_SMALL) * workers, _MOST)
        with_large = min(self._workers, len(queue) - small)
        for_small = _evenly(small, more - with_large)
        self._helpers = max(0, for_small - (self._workers - with_large))
        self._most = self._workers + min(small, max(0, _MOST - self._workers))
        self._cancel = cancel
        self._moved = moved
        self._level: Level | None = None
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._running = 0
        self._aside = 0
        self._picks = 0
        self._busy = 0
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._threads: list[threading.Thread] = []

    def run(self, tick: Callable[[], None]) -> None:
        start = time.monotonic()
        wait = _FIRST_LOOK_SECONDS
        try:
            self._hire(self._workers if self._far else 1)
            if self._far:
                self._hire(self._helpers, most_bytes=_SMALL_BYTES)
            while not self._is_done(wait):
                tick()
                hired, now = len(self._threads), time.monotonic()
                if self._near and self._first_ended is None and now - start < _PATIENCE_SECONDS:
                    continue
                since = (self._near and self._first_ended) or start
                done_a_second = (self._picks - hired) / max(now - since, 0.001)
                wait = 4 * _FIRST_LOOK_SECONDS
                if self._level is not None:
                    self._adjust(self._level)
                    wait = _TICK_SECONDS
                elif hired < self._workers:
                    if done_a_second <= _QUICK_JOBS:
                        self._hire(self._workers - hired)
                elif hired == self._workers and self._helpers and done_a_second < _SLOW_JOBS * hired:
                    self._hire(self._helpers, most_bytes=_SMALL_BYTES)
                else:
                    wait = _TICK_SECONDS
                    if self._moved is not None and self._most > 1:
                        self._level = Level(hired, self._most, self._moved, time.monotonic())
        except BaseException:
            self._cancel.set()
            self._wake()
            deadline = time.monotonic() + _STOP_SECONDS
            for thread in self._threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            raise
        if self._error is not None:
            raise self._error

    def _is_done(self, seconds: float) -> bool:
        with interrupts_whole():
            return self._done.wait(seconds)

    def _adjust(self, level: Level) -> None:
        """Let as many jobs run at once as the level says, whoever of the threads is there to run them."""
        with self._lock:
            level.observe(time.monotonic())
            more = min(level.limit + self._aside, 2 * _MOST) - len(self._threads)
            small_left = bool(self._queue) and self._queue[-1][0] <= _SMALL_BYTES
            self._changed.notify_all()
        if more > 0 and small_left:
            self._hire(more, most_bytes=_SMALL_BYTES)

    @property
    def _full(self) -> bool:
        return self._level is not None and self._running >= self._level.limit and not self._cancel.is_set()

    def _wake(self) -> None:
        with self._lock:
            self._changed.notify_all()

    def leave(self) -> None:
        with self._lock:
            self._running -= 1
            self._aside += 1
            if self._level is not None:
                self._level.refused()
            self._changed.notify()

    def come_back(self) -> None:
        with self._lock:
            while self._full:
                self._changed.wait()
            self._running += 1
            self._aside -= 1

    def _pick(self, most_bytes: int | None, *, after_one: bool) -> Job | None:
        """Take the next job: a large one, and now and then the smallest. None when all are taken."""
        with self._lock:
            self._running -= after_one
            while self._full and self._queue:
                self._changed.wait()
            none_left = not self._queue or (most_bytes is not None and self._queue[-1][0] > most_bytes)
            if none_left or self._cancel.is_set():
                self._changed.notify_all()  # whoever waits for its turn will find none, or may be the one that can
                return None
            self._picks += 1
            self._running += 1
            smallest = most_bytes is not None or self._picks % _SMALL_EVERY == 0
            return (self._queue.pop() if smallest else self._queue.popleft())[1]

    def _hire(self, count: int, most_bytes: int | None = None) -> None:
        with self._lock:
            self._busy += count
        for _ in range(count):
            # Daemons: a thread stuck in a dead connection must not keep the interpreter from leaving after Ctrl-C.
            # Being cut off in the middle of a put is safe, by the first clause of the sink contract.
            thread = threading.Thread(
                target=self._work, args=[most_bytes], name=f"stagesink-{len(self._threads)}", daemon=True
            )
            thread.start()
            self._threads.append(thread)  # only now: Ctrl-C joins what is here, and only a started thread can be joined

    def _work(self, most_bytes: int | None) -> None:
        after_one = False
        _here.crew = self
        try:
            while (job := self._pick(most_bytes, after_one=after_one)) is not None:
                after_one = True
                job()
                self._first_ended = self._first_ended or time.monotonic()
        except BaseException as error:
            if not self._cancel.is_set():  # afterwards it is only what cancelling does to a job
                self._error = error
                self._cancel.set()
        finally:
            with self._lock:
                self._busy -= 1
                self._changed.notify_all()
                if self._busy == 0:
                    self._done.set()
