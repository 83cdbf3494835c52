from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import uuid

import pytest

from stagesink.artifacts import ArtifactKey, MemorySource
from stagesink.errors import SinkAuthError, TransientSinkError
from stagesink.sinks import ArtifactSink
from stagesink.sinks.memory import MemorySink
from stagesink.testing import (
    FaultySink,
    GeneratedSource,
    answers_twice,
    corrupts,
    fails,
    loses_object,
    loses_reply,
    short_list,
    slow,
)

KEY = ArtifactKey("run", "a")
BUSY = TransientSinkError("Busy.", retry_after=3)


@pytest.fixture
def inner() -> MemorySink:
    return MemorySink(uuid.uuid4().hex)


def works(sink: ArtifactSink) -> bool:
    try:
        sink.put(KEY, MemorySource(b"x"))
    except TransientSinkError:
        return False
    return True


def test_it_is_a_sink_with_the_address_of_the_one_inside(inner: MemorySink) -> None:
    sink = FaultySink(inner)
    assert isinstance(sink, ArtifactSink)
    assert sink.uri == inner.uri


def test_the_first_calls_fail(inner: MemorySink) -> None:
    sink = FaultySink(inner, fails("put", BUSY, first=2))
    assert [works(sink) for _ in range(4)] == [False, False, True, True]


def test_the_nth_call_fails(inner: MemorySink) -> None:
    sink = FaultySink(inner, fails("put", BUSY, nth=2))
    assert [works(sink) for _ in range(4)] == [True, False, True, True]


def test_every_call_fails(inner: MemorySink) -> None:
    sink = FaultySink(inner, fails("put", BUSY))
    assert not any(works(sink) for _ in range(3))
    assert inner.stat(KEY) is None


def test_errors_keep_what_they_say_and_are_one_of_their_own_each_time(inner: MemorySink) -> None:
    sink = FaultySink(inner, fails("put", BUSY))
    caught = []
    for _ in range(2):
        with pytest.raises(TransientSinkError) as info:
            sink.put(KEY, MemorySource(b"x"))
        caught.append(info.value)
    assert [error.retry_after for error in caught] == [3, 3]
    assert caught[0] is not caught[1]


@pytest.mark.parametrize("operation", ["put", "stat", "open", "list", "delete"])
def test_any_operation_can_fail_and_the_others_do_not(inner: MemorySink, operation: str) -> None:
    inner.put(KEY, MemorySource(b"x"))
    sink = FaultySink(inner, fails(operation, SinkAuthError("No.")))  # type: ignore[arg-type]
    calls = {
        "put": lambda: sink.put(KEY, MemorySource(b"x")),
        "stat": lambda: sink.stat(KEY),
        "open": lambda: sink.open(KEY),
        "list": lambda: list(sink.list("run")),
        "delete": lambda: sink.delete(KEY),
    }
    with pytest.raises(SinkAuthError):
        calls.pop(operation)()
    for call in calls.values():
        call()


def test_a_put_fails_after_so_many_bytes_and_leaves_nothing(inner: MemorySink) -> None:
    sink, counted = FaultySink(inner, fails("put", BUSY, after_bytes=70_000)), list[int]()
    with pytest.raises(TransientSinkError):
        sink.put(KEY, GeneratedSource(100_000), on_bytes=counted.append)
    assert sum(counted) == 70_000
    assert inner.stat(KEY) is None


def test_a_read_fails_after_so_many_bytes(inner: MemorySink) -> None:
    inner.put(KEY, GeneratedSource(100_000))
    stream = FaultySink(inner, fails("open", BUSY, after_bytes=70_000)).open(KEY)
    assert stream.read(70_000) == GeneratedSource(100_000).read()[:70_000]
    with pytest.raises(TransientSinkError):
        stream.read(1)


def test_a_reply_is_lost_after_the_store_did_it(inner: MemorySink) -> None:
    sink = FaultySink(inner, loses_reply("put", BUSY, nth=1))
    assert not works(sink)
    assert inner.open(KEY).read() == b"x"


def test_a_store_does_it_twice(inner: MemorySink) -> None:
    counting = FaultySink(inner)
    counted: list[int] = []
    FaultySink(counting, answers_twice()).put(KEY, MemorySource(b"abc"), on_bytes=counted.append)
    assert counting.calls == {"put": 2}
    assert sum(counted) == 3
    FaultySink(counting, answers_twice("delete")).delete(KEY)
    assert counting.calls["delete"] == 2


def test_a_store_says_yes_and_loses_the_object(inner: MemorySink) -> None:
    sink = FaultySink(inner, loses_object(nth=1))
    assert sink.put(KEY, MemorySource(b"x")).size == 1
    assert sink.stat(KEY) is None
    sink.put(KEY, MemorySource(b"x"))
    assert sink.stat(KEY) is not None


@pytest.mark.parametrize("operation", ["put", "open"])
def test_one_bit_is_turned(inner: MemorySink, operation: str) -> None:
    sink = FaultySink(inner, corrupts(operation))  # type: ignore[arg-type]
    assert sink.put(KEY, MemorySource(b"abc")).size == 3
    assert sink.open(KEY).read() == b"`bc"


def test_a_listing_is_short(inner: MemorySink) -> None:
    for name in "abc":
        inner.put(ArtifactKey("run", name), MemorySource(b"x"))
    sink = FaultySink(inner, short_list(2, nth=1))
    assert [len(list(sink.list("run"))) for _ in range(2)] == [1, 3]


def test_it_is_slow_before_the_call_and_before_each_piece(inner: MemorySink, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("stagesink.testing.faults.time.sleep", waited.append)
    FaultySink(inner, slow("put", 5, per_chunk=0.25)).put(KEY, GeneratedSource(100))
    assert waited[0] == 5
    assert set(waited[1:]) == {0.25}


def test_calls_are_counted_from_many_threads(inner: MemorySink) -> None:
    sink = FaultySink(inner, fails("stat", BUSY, nth=400))
    failed: list[int] = []

    def ask() -> None:
        for _ in range(100):
            try:
                sink.stat(KEY)
            except TransientSinkError:
                failed.append(1)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sink.calls == {"stat": 400}
    assert len(failed) == 1


def test_a_pickled_copy_has_the_same_faults_and_counts_anew(inner: MemorySink) -> None:
    sink = FaultySink(inner, fails("put", BUSY, nth=1))
    assert not works(sink)
    copy = pickle.loads(pickle.dumps(sink))
    assert copy.calls == {}
    assert not works(copy)
    assert works(copy)


def test_it_needs_neither_pytest_nor_hypothesis() -> None:
    program = "import sys, stagesink.testing; sys.exit(sorted({'pytest', 'hypothesis'} & set(sys.modules)) or 0)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_an_unknown_name_is_an_attribute_error() -> None:
    import stagesink.testing

    with pytest.raises(AttributeError, match="no_such_name"):
        stagesink.testing.no_such_name  # noqa: B018
