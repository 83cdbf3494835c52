"""Which failures are tried again, how often and after what wait. No test here waits for anything."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from stagesink.errors import (
    ArtifactNotFound,
    RunNotFound,
    SinkAuthError,
    SinkConflict,
    SinkError,
    SinkQuotaError,
    SourceChanged,
    SourceNotFound,
    TransferCancelled,
    TransientSinkError,
    VerificationError,
)
from stagesink.transfer import TransferOptions
from stagesink.transfer import retry as retry_module
from stagesink.transfer.retry import RetryPolicy


class Attempts:
    """Raises the errors it was given, one a call, the last for ever; then returns "done"."""

    def __init__(self, *errors: Exception, forever: bool = False, before: Callable[[], None] | None = None) -> None:
        self.errors, self.forever, self.count, self.before = list(errors), forever, 0, before

    def __call__(self) -> str:
        self.count += 1
        if self.before is not None:
            self.before()
        if self.errors:
            raise self.errors[0] if self.forever and len(self.errors) == 1 else self.errors.pop(0)
        return "done"


class Clock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(retry_module, "time", clock)

    def sleep(self: RetryPolicy, seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr(RetryPolicy, "_sleep", sleep)
    return clock


def policy(**options: float) -> RetryPolicy:
    return RetryPolicy(TransferOptions(**options), threading.Event())  # type: ignore[arg-type]


# -- by class ----------------------------------------------------------------------------------------------------------


def test_what_succeeds_is_called_once(waits: list[float]) -> None:
    attempt = Attempts()
    assert policy().call(attempt) == "done"
    assert (attempt.count, waits) == (1, [])


@pytest.mark.parametrize("failures", range(1, 5))
def test_a_transient_error_is_tried_again_until_it_passes(failures: int, waits: list[float]) -> None:
    attempt = Attempts(*[TransientSinkError(f"busy {n}") for n in range(failures)])
    assert policy(attempts=5).call(attempt) == "done"
    assert (attempt.count, len(waits)) == (failures + 1, failures)


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_a_transient_error_that_stays_is_raised_after_exactly_so_many_attempts(
    attempts: int, waits: list[float]
) -> None:
    attempt = Attempts(TransientSinkError("busy"), forever=True)
    with pytest.raises(TransientSinkError, match="busy"):
        policy(attempts=attempts).call(attempt)
    assert (attempt.count, len(waits)) == (attempts, attempts - 1)


def test_ten_failures_then_success_is_a_success_when_so_many_are_allowed(waits: list[float]) -> None:
    attempt = Attempts(*[TransientSinkError("503")] * 10)
    assert policy(attempts=11).call(attempt) == "done"
    assert attempt.count == 11


@pytest.mark.parametrize(
    "kind",
    [SinkAuthError, SinkQuotaError, SinkConflict, RunNotFound, ArtifactNotFound, SinkError, SourceNotFound],
)
def test_an_error_that_would_come_again_is_not_tried_again(kind: type[Exception], waits: list[float]) -> None:
    attempt = Attempts(kind("no"), forever=True)
    with pytest.raises(kind, match="no"):
        policy().call(attempt)
    assert (attempt.count, waits) == (1, [])


def test_an_error_that_is_not_ours_passes_untouched(waits: list[float]) -> None:
    attempt = Attempts(KeyError("a defect"), forever=True)
    with pytest.raises(KeyError, match="a defect"):
        policy().call(attempt)
    assert attempt.count == 1


@pytest.mark.parametrize("kind", [SourceChanged, VerificationError])
def test_bytes_that_changed_are_read_again_up_to_their_own_limit(kind: type[Exception], waits: list[float]) -> None:
    attempt = Attempts(kind("changed"), forever=True)
    with pytest.raises(kind):
        policy(attempts=9, reads=3).call(attempt)
    assert attempt.count == 3


def test_an_error_that_will_not_pass_ends_the_attempts_after_one_that_might(waits: list[float]) -> None:
    attempt = Attempts(TransientSinkError("busy"), SinkAuthError("the token ran out"), forever=True)
    with pytest.raises(SinkAuthError, match="the token ran out"):
        policy().call(attempt)
    assert attempt.count == 2


def test_the_last_error_is_raised_not_the_first(waits: list[float]) -> None:
    attempt = Attempts(*[TransientSinkError(f"no {n}") for n in range(3)])
    with pytest.raises(TransientSinkError, match="no 2"):
        policy(attempts=3).call(attempt)


def test_an_attempt_may_make_another_call_of_its_own(waits: list[float]) -> None:
    retry = policy(attempts=3)
    inner = Attempts(TransientSinkError("inner"))
    outer = Attempts(TransientSinkError("outer"), before=lambda: retry.call(inner))  # type: ignore[arg-type,return-value]
    assert retry.call(outer) == "done"
    assert outer.count == 2


# -- the wait ----------------------------------------------------------------------------------------------------------


def test_waits_are_full_jitter_under_a_bound_that_doubles(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, float]] = []
    monkeypatch.setattr(random, "uniform", lambda low, high: asked.append((low, high)) or high)
    with pytest.raises(TransientSinkError):
        policy(attempts=8, initial=0.5, max_wait=10.0).call(Attempts(TransientSinkError("busy"), forever=True))
    assert asked[: len(waits)] == [(0, bound) for bound in (0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_waits_differ_so_that_clients_do_not_come_back_together(waits: list[float]) -> None:
    for _ in range(20):
        with pytest.raises(TransientSinkError):
            policy(attempts=2, initial=1.0).call(Attempts(TransientSinkError("busy"), forever=True))
    assert len(set(waits)) > 10
    assert all(0 <= wait <= 1.0 for wait in waits)


def test_retry_after_is_honoured_with_jitter_on_top(waits: list[float]) -> None:
    policy(initial=0.5, max_wait=1.0).call(Attempts(TransientSinkError("busy", retry_after=60.0)))
    assert 60.0 <= waits[0] <= 60.5


def test_retry_after_of_zero_still_has_its_jitter(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    policy(initial=0.5).call(Attempts(TransientSinkError("busy", retry_after=0.0)))
    assert waits == [0.5]


def test_thousands_of_attempts_do_not_overflow_the_wait(waits: list[float]) -> None:
    attempt = Attempts(*[TransientSinkError("busy")] * 2000)
    assert policy(attempts=3000, budget=1e9).call(attempt) == "done"
    assert max(waits) <= 30.0


def test_a_stop_ends_the_wait_at_once() -> None:
    cancel = threading.Event()
    retry = RetryPolicy(TransferOptions(budget=1e9), cancel)
    attempt = Attempts(TransientSinkError("busy", retry_after=3600.0), before=cancel.set, forever=True)
    with pytest.raises(TransferCancelled):
        retry.call(attempt)
    assert attempt.count == 1


# -- the budget --------------------------------------------------------------------------------------------------------


def test_retries_end_with_the_budget_when_nothing_moves(clock: Clock) -> None:
    attempt = Attempts(TransientSinkError("gone"), forever=True)
    start = clock.now
    with pytest.raises(TransientSinkError, match="gone"):
        policy(attempts=10_000, budget=100.0, initial=1.0, max_wait=8.0).call(attempt)
    assert clock.now - start <= 100.0
    assert attempt.count > 5


def test_once_the_budget_is_used_up_the_rest_fails_at_once_as_not_tried(clock: Clock) -> None:
    retry = policy(attempts=10_000, budget=100.0)
    with pytest.raises(TransientSinkError):
        retry.call(Attempts(TransientSinkError("gone"), forever=True))
    untried = Attempts()
    with pytest.raises(TransientSinkError, match=r"Not tried.*gone") as caught:
        retry.call(untried)
    assert untried.count == 0
    assert caught.value.hint


def test_each_byte_that_moves_starts_the_budget_anew(clock: Clock) -> None:
    retry = policy(attempts=50, budget=100.0)

    def an_hour_of_upload() -> None:
        clock.now += 3600
        retry.moved()

    attempt = Attempts(*[TransientSinkError("cut off")] * 20, before=an_hour_of_upload)
    assert retry.call(attempt) == "done"
    assert attempt.count == 21


def test_time_spent_before_the_first_failure_is_not_the_backends_fault(clock: Clock) -> None:
    retry = policy(budget=100.0)
    clock.now += 3600  # hashing what is there already, for example
    attempt = Attempts(TransientSinkError("one hiccup"))
    assert retry.call(attempt) == "done"


def test_a_call_that_succeeds_starts_the_budget_anew(clock: Clock) -> None:
    retry = policy(budget=100.0)
    for _ in range(5):
        assert retry.call(Attempts(TransientSinkError("a hiccup"))) == "done"
        clock.now += 90


def test_a_slow_attempt_that_fails_twice_is_tried_a_third_time_within_the_budget(clock: Clock) -> None:
    def slow() -> None:
        clock.now += 40

    attempt = Attempts(*[TransientSinkError("timeout")] * 2, before=slow)
    assert policy(budget=100.0, initial=0.0).call(attempt) == "done"


def test_one_object_told_to_wait_too_long_does_not_fail_the_others_while_bytes_move(clock: Clock) -> None:
    retry = policy(budget=100.0)
    with pytest.raises(TransientSinkError, match="come back"):
        retry.call(Attempts(TransientSinkError("come back in an hour", retry_after=3600.0), forever=True))
    retry.moved()  # another object on its way
    assert retry.call(Attempts()) == "done"
