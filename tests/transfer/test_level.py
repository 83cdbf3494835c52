"""How many jobs run at once: models of backends on a clock that the test turns, and the real threads once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from stagesink.errors import TransientSinkError
from stagesink.transfer import TransferOptions
from stagesink.transfer.level import Level
from stagesink.transfer.pool import run_jobs, stepping_aside
from stagesink.transfer.retry import RetryPolicy

TICK = 0.1
"""Seconds between two looks, as the pool takes them."""


class Model:
    """A backend that gets so much done a second with so many at once, and refuses what is above its capacity."""

    def __init__(self, start: int, cap: int, rate: Callable[[int], float], capacity: int | None = None) -> None:
        self.now = self.done = 0.0
        self.rate = rate
        self.capacity = capacity
        self.refusals = 0
        self.level = Level(start, cap, lambda: self.done, self.now)
        self.levels: list[int] = []

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK)):
            self.now += TICK
            running = self.level.limit
            for _ in range(max(0, running - (self.capacity or running))):
                self.refusals += 1
                self.level.refused()
            self.done += self.rate(min(running, self.capacity or running)) * TICK
            self.level.observe(self.now)
            self.levels.append(self.level.limit)

    def typical(self, seconds: float) -> float:
        late = sorted(self.levels[-round(seconds / TICK) :])
        return late[len(late) // 2]


def test_it_climbs_to_the_cap_where_each_one_more_gets_more_done() -> None:
    far = Model(8, 64, lambda running: running * 20)
    far.run(5)
    assert far.typical(1) >= 56


@pytest.mark.parametrize("start", [1, 8, 32, 64])
def test_it_stays_near_the_knee_where_more_bring_nothing(start: int) -> None:
    narrow = Model(start, 64, lambda running: min(running, 10) * 20)
    narrow.run(60)
    assert 8 <= narrow.typical(20) <= 16
    assert narrow.done > 0.9 * 10 * 20 * 55


def test_fewer_run_where_many_are_in_each_others_way() -> None:
    crowded = Model(32, 64, lambda running: running * 20 if running <= 6 else 720 / running)
    crowded.run(60)
    assert crowded.typical(20) <= 9


@pytest.mark.parametrize("capacity", [1, 3, 12, 40])
def test_what_is_refused_is_taken_back_at_once(capacity: int) -> None:
    small = Model(64, 64, lambda running: running * 20, capacity)
    small.run(TICK)
    assert small.level.limit == capacity


@pytest.mark.parametrize("capacity", [2, 10, 40])
def test_it_stays_near_a_capacity_that_is_kept_by_refusals(capacity: int) -> None:
    model = Model(8, 64, lambda running: running * 20, capacity)
    model.run(60)
    assert model.done > 0.85 * capacity * 20 * 57
    assert model.refusals < 0.05 * model.done


def test_it_follows_a_backend_that_warms_up() -> None:
    model = Model(32, 64, lambda running: running * 20, 2)
    for _ in range(5):
        model.run(1)
        assert model.capacity is not None
        model.capacity *= 2
    model.run(2)
    assert model.typical(1) >= 32


def test_a_single_job_at_once_stays_one() -> None:
    model = Model(1, 1, lambda running: running)
    model.run(10)
    model.level.refused()
    model.run(10)
    assert set(model.levels) == {1}


def test_jobs_that_are_refused_are_not_replaced_by_others_at_once() -> None:
    """A real server's view: of 60 quick jobs with room for 3, few are refused once it has said so."""
    lock, running, refused, most_later = threading.Lock(), 0, 0, 0
    retry = RetryPolicy(TransferOptions(attempts=1000, initial=0.05, max_wait=0.1), threading.Event())

    def attempt() -> None:
        nonlocal running, refused, most_later
        with lock:
            running += 1
            here = running
        try:
            time.sleep(0.02)
            if here > 3:
                with lock:
                    refused += 1
                raise TransientSinkError("busy")
        finally:
            with lock:
                running -= 1

    landed: list[int] = []

    def job(number: int) -> None:
        retry.call(attempt)
        landed.append(number)

    jobs = [(1, lambda number=number: job(number)) for number in range(200)]  # type: ignore[misc]
    run_jobs(jobs, workers=8, cancel=threading.Event(), moved=lambda: len(landed))
    assert sorted(landed) == list(range(200))
    assert refused < 200


def test_outside_of_the_pool_there_is_no_place_to_leave() -> None:
    with stepping_aside():
        pass
