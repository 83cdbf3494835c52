"""Paths that many threads register at once go in few requests, each answered by itself."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from azureml_lines import Job

pytest.importorskip("urllib3", reason="comes with the extra azureml")

from stagesink.artifacts import ArtifactKey, MemorySource, Source, StoredArtifact
from stagesink.errors import SinkAuthError, SinkError, SinkQuotaError, TransientSinkError
from stagesink.sinks.azureml.registrar import Registrar
from stagesink.transfer import Transfer, plan_tree


class Service:
    """Registers what it is sent; each request waits until it may go on."""

    def __init__(self, *, open_at_once: bool = True) -> None:
        self.batches: list[list[str]] = []
        self.at_once = self.most_at_once = 0
        self.fails: dict[str, BaseException] = {}
        self.gate = threading.Event()
        self.arrived = threading.Semaphore(0)
        self._lock = threading.Lock()
        if open_at_once:
            self.gate.set()

    def register(self, paths: Sequence[str]) -> Mapping[str, str]:
        with self._lock:
            self.batches.append(list(paths))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        self.arrived.release()
        assert self.gate.wait(60)
        with self._lock:
            self.at_once -= 1
        for path in paths:
            if path in self.fails:
                raise self.fails[path]
        return {path: f"https://store/{path}" for path in paths if not path.startswith("taken")}


def test_one_path_alone_waits_for_nobody() -> None:
    service = Service()
    assert Registrar(service.register).url("a") == "https://store/a"
    assert service.batches == [["a"]]


def test_a_path_that_is_refused_has_no_url() -> None:
    assert Registrar(Service().register).url("taken") is None


def test_what_waits_while_all_requests_are_on_their_way_goes_together() -> None:
    service = Service(open_at_once=False)
    registrar = Registrar(service.register)
    with ThreadPoolExecutor(128) as pool:
        first = [pool.submit(registrar.url, f"first-{number}") for number in range(8)]
        for _ in range(8):
            assert service.arrived.acquire(timeout=60)
        rest = [pool.submit(registrar.url, f"rest-{number}") for number in range(120)]
        while len(registrar._waiting) < 120:  # until each thread has said what it wants
            pass
        service.gate.set()
        for number, future in enumerate(first):
            assert future.result(60) == f"https://store/first-{number}"
        for number, future in enumerate(rest):
            assert future.result(60) == f"https://store/rest-{number}"
    sizes = [len(batch) for batch in service.batches]
    assert sizes[:8] == [1] * 8
    assert sum(sizes) == 128
    assert max(sizes) == 50
    assert len(sizes) == 11
    assert service.most_at_once <= 8


def test_the_same_path_of_two_threads_goes_once_in_a_batch() -> None:
    service = Service(open_at_once=False)
    registrar = Registrar(service.register)
    with ThreadPoolExecutor(16) as pool:
        first = [pool.submit(registrar.url, f"{number}") for number in range(8)]
        for _ in range(8):
            assert service.arrived.acquire(timeout=60)
        same = [pool.submit(registrar.url, "same") for _ in range(8)]
        while len(registrar._waiting) < 8:
            pass
        service.gate.set()
        assert {future.result(60) for future in same} == {"https://store/same"}
        assert len({future.result(60) for future in first}) == 8
    assert [batch for batch in service.batches if "same" in batch] == [["same"]]


def test_a_batch_that_fails_fails_its_own_paths_alone() -> None:
    service = Service(open_at_once=False)
    registrar = Registrar(service.register)
    service.fails["bad-0"] = SinkAuthError("No.", hint="Log in.")
    with ThreadPoolExecutor(64) as pool:
        first = [pool.submit(registrar.url, f"first-{number}") for number in range(8)]
        for _ in range(8):
            assert service.arrived.acquire(timeout=60)
        bad = [pool.submit(registrar.url, f"bad-{number}") for number in range(10)]
        while len(registrar._waiting) < 10:
            pass
        service.gate.set()
        assert all(future.result(60) for future in first)
        errors = [future.exception(60) for future in bad]
        assert registrar.url("after") == "https://store/after"
    (batch,) = [batch for batch in service.batches if "bad-0" in batch]
    failed = [error for error in errors if error is not None]
    assert len(failed) == len(batch)
    assert {(type(error), str(error)) for error in failed} == {(SinkAuthError, "No. Log in.")}
    assert len({id(error) for error in failed}) == len(failed)  # each thread has one of its own, with its traceback


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a defect")], ids=repr)
def test_what_is_no_answer_leaves_nobody_waiting(error: BaseException) -> None:
    service = Service(open_at_once=False)
    service.fails["bad"] = error
    registrar = Registrar(service.register)
    with ThreadPoolExecutor(16) as pool:
        bad = pool.submit(registrar.url, "bad")
        others = [pool.submit(registrar.url, f"{number}") for number in range(12)]
        service.gate.set()
        assert bad.exception(60) is error
        assert all(future.result(60) for future in others)
    assert registrar.url("after") == "https://store/after"
    assert registrar._on_their_way == 0


def test_threads_that_come_and_go_never_hang() -> None:
    service = Service()
    service.fails = {f"{number}": TransientSinkError("Again.") for number in range(0, 2000, 7)}
    registrar = Registrar(service.register)

    def ask(number: int) -> object:
        try:
            return registrar.url(f"{number}")
        except SinkError as error:
            return error

    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(ask, range(2000), timeout=60))
    assert all(isinstance(found[number], TransientSinkError) for number in range(0, 2000, 7))
    assert sum(len(batch) for batch in service.batches) == 2000
    assert max(len(batch) for batch in service.batches) <= 50


def test_what_is_expected_fills_each_request_up_and_is_there_when_it_is_asked_for() -> None:
    service = Service()
    registrar = Registrar(service.register)
    paths = [f"{number}" for number in range(120)]
    with registrar.expecting(paths):
        assert service.batches == []
        assert [registrar.url(path) for path in paths] == [f"https://store/{path}" for path in paths]
    assert service.batches == [paths[:50], paths[50:100], paths[100:]]


def test_a_path_that_the_service_refuses_takes_none_of_its_request_along() -> None:
    service = Service()
    service.fails["bad"] = SinkError("400")
    registrar = Registrar(service.register)
    with registrar.expecting(["good", "bad"]):
        assert registrar.url("good") == "https://store/good"
        with pytest.raises(SinkError, match="400"):
            registrar.url("bad")
    assert service.batches == [["good", "bad"], ["good"], ["bad"]]


def test_a_service_that_refuses_us_is_not_asked_path_by_path() -> None:
    service = Service()
    service.fails["b"] = SinkAuthError("403")
    registrar = Registrar(service.register)
    with registrar.expecting(["a", "b"]), pytest.raises(SinkAuthError, match="403"):
        registrar.url("a")
    assert service.batches == [["a", "b"]]


def test_what_is_no_longer_expected_is_not_registered_with_something_else() -> None:
    service = Service()
    registrar = Registrar(service.register)
    with registrar.expecting(["a", "b", "a"]):
        pass
    assert registrar.url("c") == "https://store/c"
    assert service.batches == [["c"]]


def test_a_url_is_given_once_though_it_came_ahead() -> None:
    """Whoever writes a second time has to hear that the path is registered: blocks may lie there."""
    service = Service()
    registrar = Registrar(service.register)
    with registrar.expecting(["a", "b"]):
        registrar.url("a")
        registrar.url("b")
        registrar.url("b")
    assert service.batches == [["a", "b"], ["b"]]


def test_a_request_that_failed_is_no_answer_to_those_who_had_not_asked() -> None:
    service = Service()
    registrar = Registrar(service.register)
    service.fails["a"] = TransientSinkError("Again.")
    with registrar.expecting(["a", "b"]):
        with pytest.raises(TransientSinkError):
            registrar.url("a")
        assert registrar.url("b") == "https://store/b"
    assert service.batches == [["a", "b"], ["b"]]


def test_threads_that_ask_for_what_is_on_its_way_wait_for_it() -> None:
    service = Service(open_at_once=False)
    registrar = Registrar(service.register)
    paths = [f"{number}" for number in range(50)]
    with registrar.expecting(paths), ThreadPoolExecutor(50) as pool:
        found = [pool.submit(registrar.url, path) for path in paths]
        assert service.arrived.acquire(timeout=60)
        service.gate.set()
        assert [future.result(60) for future in found] == [f"https://store/{path}" for path in paths]
    assert sum(len(batch) for batch in service.batches) == 50


def test_an_upload_registers_its_files_and_its_manifest_in_full_requests(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(120):
        (tmp_path / f"{number}").write_bytes(b"x")
    requests: dict[str, int] = {}
    put = job.sink.put

    def counting(key: ArtifactKey, source: Source, **how: Any) -> StoredArtifact:
        requests[key.path] = job.service.calls.count("register")
        return put(key, source, **how)

    monkeypatch.setattr(job.sink, "put", counting)
    Transfer(job.sink).run(plan_tree(job.run_id, "checkpoint", tmp_path))
    # 121 in three, with the manifest's; the turn's note; one or two more, where a thread is ahead of an answer.
    assert job.service.calls.count("register") <= 6
    assert requests["checkpoint.manifest.json"] == job.service.calls.count("register")
    assert len(list(job.sink.list(job.run_id, "checkpoint"))) == 120


def test_many_files_take_few_requests(job: Job) -> None:
    job.service.faults.slow(0.2, times=1000, call="register")
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda number: job.sink.put(job.key(f"{number}"), MemorySource(b"x")), range(120)))
    assert job.service.calls.count("register") < 120
    assert set(job.service.calls) == {"register"}
    assert len(job.lines.blobs("PUT")) == 120


def test_a_batch_that_the_service_answers_in_part(job: Job) -> None:
    """Some paths are registered, of the others it says nothing or that it failed: those are asked for again."""
    job.service.faults.partial_batch(0, times=1)
    with pytest.raises(TransientSinkError):
        job.sink.put(job.key(), MemorySource(b"x"))
    job.service.faults.partial_batch(0, code=None, times=1)
    with pytest.raises(TransientSinkError):
        job.sink.put(job.key(), MemorySource(b"x"))
    job.sink.put(job.key(), MemorySource(b"x"))


@pytest.mark.parametrize(
    ("code", "inner", "kind", "says"),
    [
        ("UserError", "BadArgument", SinkError, "answered UserError: BadArgument"),
        ("UserError", "AuthorizationError", SinkAuthError, "answered UserError: AuthorizationError"),
        ("UserError", "QuotaExceeded", SinkQuotaError, "answered UserError: QuotaExceeded"),
        ("ServiceError", None, TransientSinkError, "answered ServiceError"),
        ("UserError", None, TransientSinkError, "answered UserError"),  # as of a conflict whose path was removed since
        ("not a code", None, TransientSinkError, "answered an error"),
    ],
)
def test_a_path_that_is_refused_fails_with_what_the_service_said_of_it(
    job: Job, code: str, inner: str | None, kind: type[SinkError], says: str
) -> None:
    job.service.faults.partial_batch(0, code=code, inner=inner)
    with pytest.raises(SinkError, match=says) as caught:
        job.sink.put(job.key(), MemorySource(b"x"))
    assert type(caught.value) is kind
    assert f"{job.key().path} could not be registered" in str(caught.value)
    job.sink.put(job.key(), MemorySource(b"x"))


def test_a_path_that_is_refused_takes_no_other_of_its_batch_along(job: Job) -> None:
    job.sink.put(job.key("tree/3"), MemorySource(b"x"))  # a conflict from now on
    run = job.sink._run(job.run_id)
    job.service.faults.partial_batch(4, code="UserError", inner="BadArgument")
    paths = [f"tree/{number}" for number in range(5)]
    assert sorted(run.register(paths)) == paths[:3]
    assert run.write_url("tree/3").startswith("http")
    with pytest.raises(SinkError, match=r"tree/4 could not be registered: .* answered UserError: BadArgument"):
        run.write_url("tree/4")


def test_what_was_said_of_a_path_is_not_said_again_later(job: Job) -> None:
    """A conflict is one, whatever was said of the path before."""
    job.sink.put(job.key(), MemorySource(b"x"))
    job.service.faults.partial_batch(0, code="UserError", inner="BadArgument")
    job.sink.put(job.key(), MemorySource(b"y"))  # refused, and registered all the same
    job.sink.delete(job.key())
    job.service.faults.partial_batch(0, code=None)
    with pytest.raises(TransientSinkError):
        job.sink.put(job.key(), MemorySource(b"x"))
