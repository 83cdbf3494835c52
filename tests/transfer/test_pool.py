"""Running jobs on a few threads: the order, the defects, and Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

import pytest

from stagesink.transfer.pool import run_jobs

LARGE = 1 << 21
"""Bytes of a job of which there are never more at once than workers."""


def void(_: object) -> None:
    """Be the end of an expression whose value nobody wants."""


def ordered(sizes: list[int], *, workers: int) -> list[int]:
    """Run jobs of these sizes; the first to be picked keeps its thread busy until all others have run."""
    order: list[int] = []
    rest = threading.Event()
    lock = threading.Lock()

    def job(size: int) -> Callable[[], None]:
        def run() -> None:
            with lock:
                order.append(size)
                first = len(order) == 1
                if len(order) == len(sizes):
                    rest.set()
            if first and workers > 1:
                rest.wait()

        return run

    run_jobs([(size * LARGE, job(size)) for size in sizes], workers=workers, cancel=threading.Event())
    return order


def test_large_ones_go_first_and_every_fourth_pick_takes_the_smallest() -> None:
    assert ordered([3, 9, 1, 7, 5, 8, 2, 6, 4], workers=2) == [9, 8, 7, 1, 6, 5, 4, 2, 3]


def test_one_worker_takes_them_in_the_same_order() -> None:
    assert ordered([3, 9, 1, 7, 5, 8, 2, 6, 4], workers=1) == [9, 8, 7, 1, 6, 5, 4, 2, 3]


def test_small_ones_are_not_starved_by_large_ones_that_never_end() -> None:
    small_ran, picked = threading.Event(), []

    def large() -> None:
        picked.append("large")
        if len(picked) > 1:
            assert small_ran.wait(60)

    # Two large ones block both threads from the second pick on, unless a small one gets its turn.
    run_jobs(
        [(100 * LARGE, large), *[(100 * LARGE, lambda: None)] * 2, (100 * LARGE, large), (LARGE, small_ran.set)],
        workers=2,
        cancel=threading.Event(),
    )
    assert small_ran.is_set()


@pytest.mark.parametrize("workers", [-1, 0, 1, 2, 8, 1000])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_every_job_runs_exactly_once_whatever_the_number_of_workers(count: int, workers: int) -> None:
    ran: list[int] = []
    jobs = [(n % 7, lambda n=n: ran.append(n)) for n in range(count)]  # type: ignore[misc]
    run_jobs(jobs, workers=workers, cancel=threading.Event())
    assert sorted(ran) == list(range(count))


@pytest.mark.parametrize("answer", [0.0, 0.05])
def test_no_more_jobs_run_at_once_than_there_are_workers(answer: float) -> None:
    lock, running, most = threading.Lock(), 0, 0
    both = threading.Barrier(3, timeout=60)

    def job() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        both.wait()  # passes only when three run at the same time
        with lock:
            running -= 1

    run_jobs([(LARGE, job)] * 9, workers=3, cancel=threading.Event(), answer=answer)
    assert most == 3


@pytest.mark.parametrize(("workers", "most"), [(2, 8), (8, 32), (50, 72)])
def test_of_small_ones_that_wait_more_run_at_once(workers: int, most: int) -> None:
    together = threading.Barrier(most, timeout=60)  # passes only when so many run at the same time
    run_jobs([(1, lambda: void(together.wait()))] * most, workers=workers, cancel=threading.Event())


@pytest.mark.parametrize(("workers", "most"), [(2, 18), (8, 72), (50, 72)])
def test_of_small_ones_that_are_known_to_wait_still_more_run_at_once(workers: int, most: int) -> None:
    together = threading.Barrier(most, timeout=60)
    jobs = [(1, lambda: void(together.wait()))] * most
    run_jobs(jobs, workers=workers, cancel=threading.Event(), answer=0.05)


@pytest.mark.parametrize(("large", "small", "threads"), [(0, 10, 10), (0, 74, 37), (0, 201, 67), (2, 72, 38)])
def test_small_ones_that_wait_go_in_full_rounds(large: int, small: int, threads: int) -> None:
    there, all_there = set(), threading.Event()

    def job() -> None:
        there.add(threading.get_ident())
        if len(there) >= threads:
            all_there.set()
        all_there.wait(60)
        time.sleep(0.05)

    jobs = [(LARGE, job)] * large + [(1, job)] * small
    run_jobs(jobs, workers=8, cancel=threading.Event(), answer=0.05)
    assert len(there) == threads


def test_a_slow_first_job_on_a_store_that_is_near_hires_nobody() -> None:
    """Before the first change an old manifest is taken away, which waits for the disk; the rest is quick."""

    def hired() -> int:
        threads = set()

        def job(number: int) -> None:
            threads.add(threading.get_ident())
            if number == 0:
                time.sleep(0.05)

        jobs = [(1, lambda number=number: job(number)) for number in range(200)]  # type: ignore[misc]
        run_jobs(jobs, workers=8, cancel=threading.Event(), answer=0.0001)
        return len(threads)

    # On a busy machine the quick ones may be slow, too: once is enough.
    assert 1 in (hired() for _ in range(5))


def test_one_that_hangs_there_does_not_stop_the_others() -> None:
    rest, done = threading.Event(), []

    def job(number: int) -> None:
        if number == 0:
            assert rest.wait(60)  # the first waits for the last
        done.append(number)
        if len(done) == 199:
            rest.set()

    jobs = [(1, lambda number=number: job(number)) for number in range(200)]  # type: ignore[misc]
    run_jobs(jobs, workers=8, cancel=threading.Event(), answer=0.0001)
    assert sorted(done) == list(range(200))


def test_one_job_gets_one_thread_however_long_answers_take() -> None:
    before, threads = set(threading.enumerate()), []

    def job() -> None:
        threads.extend(set(threading.enumerate()) - before)

    run_jobs([(1, job)], workers=8, cancel=threading.Event(), answer=0.05)
    assert len(threads) == 1


def test_one_worker_means_one_also_for_small_ones() -> None:
    running = threading.Lock()

    def job() -> None:
        assert running.acquire(blocking=False)
        time.sleep(0.02)  # so slow that more would be hired
        running.release()

    run_jobs([(1, job)] * 5, workers=1, cancel=threading.Event())


def test_the_additional_ones_leave_large_ones_alone() -> None:
    lock, running, most = threading.Lock(), 0, 0
    small = threading.Barrier(7, timeout=60)

    def large() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        small.wait()
        with lock:
            running -= 1

    # Two large ones hold both workers until five small ones run beside them.
    jobs = [(LARGE, large)] * 2 + [(1, lambda: void(small.wait()))] * 5 + [(LARGE, lambda: None)] * 3
    run_jobs(sorted(jobs, key=lambda sized: sized[1] is not large), workers=2, cancel=threading.Event())
    assert most == 2


@pytest.mark.parametrize("workers", [1, 4])
def test_a_defect_in_a_job_is_raised_and_ends_the_rest(workers: int) -> None:
    cancel = threading.Event()
    ran = []

    def job(n: int) -> None:
        if n == 99:
            raise ZeroDivisionError("a defect")
        ran.append(n)
        if workers > 1:
            assert cancel.wait(60)  # the others see that they should stop

    with pytest.raises(ZeroDivisionError, match="a defect"):
        run_jobs([(n, lambda n=n: job(n)) for n in range(100)], workers=workers, cancel=cancel)  # type: ignore[misc]
    assert len(ran) < 50


def test_what_stops_the_calling_thread_stops_the_jobs() -> None:
    cancel, started = threading.Event(), threading.Event()
    stopped = []

    def job() -> None:
        started.set()
        stopped.append(cancel.wait(60))

    def tick() -> None:
        if started.is_set():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([(LARGE, job)] * 20, workers=3, cancel=cancel, tick=tick)
    assert cancel.is_set()
    assert all(stopped)
    assert 1 <= len(stopped) <= 3


def test_ctrl_c_is_not_kept_waiting_by_a_job_that_does_not_listen() -> None:
    never, started = threading.Event(), threading.Event()

    def deaf() -> None:
        started.set()
        never.wait(110)  # the test's own time limit is near this

    def tick() -> None:
        if started.is_set():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([(1, deaf)] * 2, workers=2, cancel=threading.Event(), tick=tick)
    never.set()


def test_a_real_ctrl_c_in_the_only_thread_passes_through() -> None:
    def job() -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_jobs([(1, job)], workers=8, cancel=threading.Event())


def test_ticks_come_from_the_calling_thread_while_jobs_run() -> None:
    here, ticked = threading.get_ident(), threading.Event()
    threads = set()

    def tick() -> None:
        threads.add(threading.get_ident())
        ticked.set()

    run_jobs([(1, lambda: ticked.wait(60) and None)] * 2, workers=2, cancel=threading.Event(), tick=tick)
    assert threads == {here}


def test_no_thread_is_left_behind() -> None:
    before = set(threading.enumerate())
    run_jobs([(1, lambda: None)] * 100, workers=8, cancel=threading.Event())
    left = [thread for thread in threading.enumerate() if thread not in before]
    for thread in left:
        thread.join(60)
    assert not any(thread.is_alive() for thread in left)
