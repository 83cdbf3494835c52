"""The engine: what it sends, proves, retries and commits, and what a failure leaves behind."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from parts import (
    QUICK,
    RUN,
    Counting,
    DigestListing,
    DigestReporting,
    Failing,
    Hooked,
    Recording,
    everything,
    files_in,
    folder_of,
    held,
    manifest_in,
    one,
    plan,
)

from stagesink.artifacts import ArtifactKey, FileSource, MemorySource, Source, StoredArtifact
from stagesink.errors import (
    DeleteNotSupported,
    SinkAuthError,
    SinkConflict,
    SinkQuotaError,
    SourceChanged,
    SourceNotFound,
    SourceUnreadable,
    TransferError,
    TransientSinkError,
    VerificationError,
)
from stagesink.manifest import Manifest
from stagesink.sinks.local import LocalSink
from stagesink.sinks.memory import MemorySink
from stagesink.sinks.protocol import OnBytes
from stagesink.testing import (
    FaultySink,
    GeneratedSource,
    answers_twice,
    corrupts,
    fails,
    loses_object,
    loses_reply,
    short_list,
)
from stagesink.transfer import Plan, Progress, Transfer, list_committed, plan_file, plan_packed_tree, plan_tree, verify
from stagesink.transfer.read import list_objects
from stagesink.transfer.reader import ReadOnce

MANIFEST = "tree.manifest.json"
FILES = {"a.bin": b"a" * 10, "b.bin": b"b" * 20, "c/d.bin": b"d" * 30, "empty": b""}
BUSY = TransientSinkError("503")


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fail(transfer: Transfer, what: Plan) -> TransferError:
    with pytest.raises(TransferError) as caught:
        transfer.run(what)
    return caught.value


# -- what lands --------------------------------------------------------------------------------------------------------


def test_what_landed_is_what_was_handed_over_and_the_manifest_says_so(memory: MemorySink) -> None:
    Transfer(memory).run(plan(FILES))
    assert held(memory) == {f"tree/{name}": data for name, data in FILES.items()}
    manifest = manifest_in(memory)
    assert manifest is not None
    assert {(f.path, f.size, f.sha256) for f in manifest.files} == {(n, len(d), sha(d)) for n, d in FILES.items()}


def test_receipts_say_what_happened_in_the_plans_order(memory: MemorySink) -> None:
    receipts = Transfer(memory).run(plan(FILES))
    assert [(r.key.path, r.size, r.sha256, r.attempts, r.status, r.error) for r in receipts] == [
        (f"tree/{name}", len(data), sha(data), 1, "uploaded", None) for name, data in FILES.items()
    ]
    assert all(r.uri.endswith(r.key.path) and r.seconds >= 0 for r in receipts)


@pytest.mark.parametrize("workers", [1, 3, 64])
def test_any_number_of_workers_lands_the_same(memory: MemorySink, workers: int) -> None:
    files = {f"{n}": bytes([n]) * n for n in range(100)}
    Transfer(memory, replace(QUICK, workers=workers)).run(plan(files))
    assert held(memory) == {f"tree/{name}": data for name, data in files.items()}


def test_a_plan_without_objects_lands_an_empty_tree(memory: MemorySink) -> None:
    assert Transfer(memory).run(plan({})) == ()
    assert [manifest.files for manifest in list_committed(memory, RUN)] == [()]


def test_an_object_whose_size_is_not_known_before_lands(memory: MemorySink) -> None:
    source = GeneratedSource(3_000_000, sized=False)
    (receipt,) = Transfer(memory).run(one(source))
    assert (receipt.size, receipt.sha256) == (3_000_000, source.digest())


def test_the_sha256_is_taken_while_the_bytes_pass_not_in_a_pass_of_its_own(memory: MemorySink) -> None:
    source = Counting(b"x" * 5000)
    (receipt,) = Transfer(memory).run(one(source))  # type: ignore[arg-type]
    assert source.opened == 1
    assert receipt.sha256 == sha(b"x" * 5000)


def test_one_transfer_serves_many_plans_at_once(memory: MemorySink) -> None:
    transfer = Transfer(memory)
    threads = [
        threading.Thread(target=lambda n=n: transfer.run(plan(FILES, run_id=f"run{n}")))  # type: ignore[misc]
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(list_committed(memory, f"run{n}")) for n in range(8)] == [1] * 8


@pytest.mark.parametrize("files", [4_000, pytest.param(20_000, marks=pytest.mark.long)])
def test_many_files_stay_within_a_few_kilobytes_each(memory: MemorySink, files: int) -> None:
    class Nowhere(Recording):
        """Keeps sizes only, so that what is measured is the engine's own."""

        def __init__(self) -> None:
            super().__init__(memory)
            self.sizes: dict[ArtifactKey, int] = {}

        def put(self, key: ArtifactKey, source: Any, *, on_bytes: Any = None) -> StoredArtifact:
            if key.path == MANIFEST:
                return memory.put(key, source)
            with source.open() as stream:
                self.sizes[key] = len(stream.read())
            return StoredArtifact(key, str(key), self.sizes[key])

        def list(self, run_id: str, prefix: str = "") -> Any:
            return (StoredArtifact(key, str(key), size) for key, size in self.sizes.items())

    what = plan({f"{n:05}": b"x" for n in range(files)})
    sink = Nowhere()
    tracemalloc.start()
    try:
        receipts = Transfer(sink).run(what)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(receipts) == files
    assert peak < files * 3 << 10


# -- failures ----------------------------------------------------------------------------------------------------------


def test_one_failing_file_does_not_stop_the_others(memory: MemorySink) -> None:
    sink = Failing(memory, {"tree/b.bin": [SinkQuotaError("full")]}, forever=True)
    error = fail(Transfer(sink, QUICK), plan(FILES))
    assert set(held(memory)) == {"tree/a.bin", "tree/c/d.bin", "tree/empty"}
    assert list(error.failures) == ["tree/b.bin"]
    assert [r.status for r in error.receipts] == ["uploaded", "failed", "uploaded", "uploaded"]


def test_every_failure_is_reported_not_only_the_first(memory: MemorySink) -> None:
    faults: dict[str, list[Exception]] = {
        "tree/a.bin": [SinkAuthError("who are you")],
        "tree/b.bin": [SinkQuotaError("no room")],
        "tree/c/d.bin": [SinkConflict("a folder is there")],
    }
    error = fail(Transfer(Failing(memory, faults, forever=True), QUICK), plan(FILES))
    assert {path: type(e) for path, e in error.failures.items()} == {
        path: type(errors[0]) for path, errors in faults.items()
    }
    for sentence in ("who are you", "no room", "a folder is there", "3 of 4"):
        assert sentence in str(error)
    assert error.hint


def test_a_failed_receipt_claims_nothing(memory: MemorySink) -> None:
    error = fail(Transfer(FaultySink(memory, fails("put", SinkAuthError("no"))), QUICK), one(b"x"))
    (receipt,) = error.receipts
    assert (receipt.status, receipt.sha256, receipt.verified_by, receipt.error) == ("failed", None, "none", "no")


def test_a_transient_error_that_later_passed_is_not_raised_at_the_end(memory: MemorySink) -> None:
    sink = Failing(memory, {f"tree/{name}": [BUSY, BUSY] for name in FILES})
    receipts = Transfer(sink, QUICK).run(plan(FILES))
    assert {r.status for r in receipts} == {"uploaded"}
    assert {r.error for r in receipts} == {None}
    assert list_committed(memory, RUN)


def test_a_store_that_answers_503_ten_times_and_then_works_is_a_success(memory: MemorySink) -> None:
    sink = FaultySink(memory, fails("put", BUSY, first=10))
    (receipt,) = Transfer(sink, replace(QUICK, attempts=11)).run(one(b"x"))
    assert receipt.attempts == 11


def test_attempts_in_receipts_are_exact(memory: MemorySink) -> None:
    faults: dict[str, list[Exception]] = {"tree/b.bin": [BUSY], "tree/c/d.bin": [BUSY, BUSY]}
    sink = Failing(memory, faults)
    receipts = Transfer(sink, QUICK).run(plan(FILES))
    assert [r.attempts for r in receipts] == [1, 2, 3, 1]
    assert sink.asked("put").count("tree/c/d.bin") == 3


def test_attempts_of_a_file_that_failed_are_exact(memory: MemorySink) -> None:
    faults: dict[str, list[Exception]] = {"tree/a.bin": [BUSY], "tree/b.bin": [SinkAuthError("no")]}
    error = fail(Transfer(Failing(memory, faults, forever=True), replace(QUICK, attempts=4)), plan(FILES))
    assert [r.attempts for r in error.receipts] == [4, 1, 1, 1]


def test_a_permission_error_is_not_tried_again(memory: MemorySink) -> None:
    sink = FaultySink(memory, fails("put", SinkAuthError("no")))
    fail(Transfer(sink, QUICK), one(b"x"))
    assert sink.calls["put"] == 1


def test_a_reply_that_was_lost_costs_a_look_and_no_other_put(memory: MemorySink) -> None:
    sink = FaultySink(memory, loses_reply("put", BUSY, first=4))
    (receipt,) = Transfer(sink, QUICK).run(one(b"x"))
    assert (receipt.attempts, receipt.status, receipt.verified_by) == (1, "uploaded", "readback")
    assert held(memory) == {"one.bin": b"x"}


def test_what_lay_there_before_is_not_taken_for_what_was_sent(memory: MemorySink) -> None:
    memory.put(ArtifactKey(RUN, "one.bin"), MemorySource(b"old"))
    sink = FaultySink(memory, fails("put", BUSY, nth=1, after_bytes=3))
    (receipt,) = Transfer(sink, QUICK).run(one(b"new"))
    assert (receipt.attempts, held(memory)) == (2, {"one.bin": b"new"})


def test_what_arrived_is_sent_again_when_the_file_has_changed_since(memory: MemorySink, tmp_path: Path) -> None:
    path = tmp_path / "one.bin"
    path.write_bytes(b"old")

    class Rewriting(FaultySink):
        def put(self, key: ArtifactKey, source: Source, *, on_bytes: OnBytes | None = None) -> StoredArtifact:
            try:
                return super().put(key, source, on_bytes=on_bytes)
            finally:
                if self.calls.get("put") == 1:
                    path.write_bytes(b"new")
                    os.utime(path, (1, 1))

    sink = Rewriting(memory, loses_reply("put", BUSY, nth=1))
    (receipt,) = Transfer(sink, QUICK).run(plan_file(RUN, "one.bin", path))
    assert (receipt.attempts, held(memory)) == (2, {"one.bin": b"new"})


def test_a_store_that_cannot_remove_gets_an_empty_manifest_first(memory: MemorySink) -> None:
    sink = FaultySink(memory, fails("delete", DeleteNotSupported("no")), fails("put", SinkAuthError("no"), nth=4))
    Transfer(sink, QUICK).run(one(b"old"))
    fail(Transfer(sink, QUICK), one(b"new"))
    assert not list_committed(memory, RUN)
    Transfer(sink, QUICK).run(one(b"newer"))
    assert [manifest.path for manifest in list_committed(memory, RUN)] == ["one.bin"]


def test_a_put_that_the_network_sends_twice_changes_nothing(memory: MemorySink) -> None:
    Transfer(FaultySink(memory, answers_twice("put"), answers_twice("delete")), QUICK).run(plan(FILES))
    assert held(memory) == {f"tree/{name}": data for name, data in FILES.items()}


def test_once_the_backend_is_gone_the_rest_fails_at_once_as_not_tried(memory: MemorySink) -> None:
    sink = Recording(FaultySink(memory, fails("put", TransientSinkError("down", retry_after=3600.0))))
    files = {f"{n}": b"x" for n in range(50)}
    error = fail(Transfer(sink, replace(QUICK, workers=1, budget=60.0)), plan(files))
    assert len(sink.asked("put")) == 1
    assert len(error.failures) == 50
    assert sum("Not tried" in e.message for e in error.failures.values()) == 49
    assert sorted(r.attempts for r in error.receipts) == [0] * 49 + [1]


@pytest.mark.parametrize("operation", ["open", "stat", "list", "delete"])
def test_every_call_of_a_transfer_is_tried_again_not_only_put(memory: MemorySink, operation: Any) -> None:
    Transfer(memory).run(plan(FILES))
    Transfer(FaultySink(memory, fails(operation, BUSY, first=2)), QUICK).run(plan({"a.bin": b"new"}))
    assert held(memory) == {"tree/a.bin": b"new"}


def test_the_old_manifest_that_cannot_be_deleted_is_asked_for_no_more_often_than_a_put(memory: MemorySink) -> None:
    Transfer(memory).run(one(b"old"))
    sink = FaultySink(memory, fails("delete", BUSY))
    fail(Transfer(sink, replace(QUICK, attempts=3)), one(b"new"))
    assert sink.calls["delete"] == 3
    assert held(memory) == {"one.bin": b"old"}


def test_a_store_that_cannot_even_be_asked_gives_one_error_with_all_receipts(memory: MemorySink) -> None:
    error = fail(Transfer(FaultySink(memory, fails("open", SinkAuthError("no"))), QUICK), plan(FILES))
    assert [r.status for r in error.receipts] == ["failed"] * 4
    assert [type(e) for e in error.failures.values()] == [SinkAuthError]


def test_an_error_of_a_transfer_survives_pickling(memory: MemorySink) -> None:
    faults: dict[str, list[Exception]] = {"tree/a.bin": [SinkAuthError("no")], "tree/b.bin": [BUSY]}
    error = fail(Transfer(Failing(memory, faults, forever=True), QUICK), plan(FILES))
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.receipts) == (str(error), error.receipts)
    assert {p: type(e) for p, e in again.failures.items()} == {p: type(e) for p, e in error.failures.items()}


def test_a_defect_in_a_driver_is_not_taken_for_a_failure_of_one_file(memory: MemorySink) -> None:
    with pytest.raises(ZeroDivisionError):
        Transfer(Failing(memory, {"tree/a.bin": [ZeroDivisionError()]}), QUICK).run(plan(FILES))
    assert list_committed(memory, RUN) == ()


# -- files that change while they are read -----------------------------------------------------------------------------


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _rewrite(path: Path) -> None:
    status = path.stat()
    path.write_bytes(os.urandom(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(os.urandom(path.stat().st_size))
    os.replace(other, path)


CHANGES = [_grow, lambda path: os.truncate(path, path.stat().st_size - 1), _rewrite, _replace]
NAMES = ["grows", "shrinks", "is rewritten", "is replaced"]


SIZES = pytest.mark.parametrize("size", [16, 1 << 20], ids=["small", "large"])


@SIZES
@pytest.mark.parametrize("change", CHANGES, ids=NAMES)
def test_a_file_that_keeps_changing_is_an_error_after_the_read_limit_and_the_store_keeps_the_old_one(
    change: Callable[[Path], None], size: int, memory: MemorySink, tmp_path: Path
) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(os.urandom(size))
    memory.put(ArtifactKey(RUN, "one.bin"), MemorySource(b"old"))
    opened = []

    def hook() -> None:
        opened.append(1)
        change(path)

    error = fail(Transfer(memory, replace(QUICK, reads=3)), one(Hooked(path, hook)))
    assert isinstance(error.failures["one.bin"], SourceChanged)
    assert (len(opened), error.receipts[0].attempts) == (3, 3)
    assert everything(memory) == {"one.bin": b"old"}


@SIZES
@pytest.mark.parametrize("change", CHANGES, ids=NAMES)
def test_a_file_that_settles_is_read_again_and_lands(
    change: Callable[[Path], None], size: int, memory: MemorySink, tmp_path: Path
) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(os.urandom(size))
    changes = [change]
    (receipt,) = Transfer(memory, QUICK).run(one(Hooked(path, lambda: changes.pop()(path) if changes else None)))
    assert held(memory) == {"one.bin": path.read_bytes()}
    assert (receipt.attempts, receipt.sha256, receipt.size) == (2, sha(path.read_bytes()), path.stat().st_size)


@SIZES
def test_a_file_that_vanishes_while_it_is_read_is_an_error_at_once(
    size: int, memory: MemorySink, tmp_path: Path
) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(os.urandom(size))
    error = fail(Transfer(memory, QUICK), one(Hooked(path, path.unlink)))
    assert isinstance(error.failures["one.bin"], SourceNotFound)
    assert error.receipts[0].attempts == 1
    assert everything(memory) == {}


def test_a_file_that_changes_does_not_stop_the_others(memory: MemorySink, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"0123456789")
    error = fail(Transfer(memory, QUICK), plan({**FILES, "model.bin": Hooked(path, lambda: _grow(path))}))
    assert list(error.failures) == ["tree/model.bin"]
    assert set(held(memory)) == {f"tree/{name}" for name in FILES}
    assert list_committed(memory, RUN) == ()


def test_a_file_that_vanished_since_the_plan_costs_the_old_upload_nothing(memory: MemorySink, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", FILES)
    Transfer(memory).run(plan_tree(RUN, "tree", folder))
    before = everything(memory)
    later = plan_tree(RUN, "tree", folder)
    (folder / "a.bin").unlink()
    error = fail(Transfer(memory, QUICK), later)
    assert isinstance(error.failures["tree/a.bin"], SourceNotFound)
    assert everything(memory) == before


@SIZES
def test_a_torn_file_never_replaces_the_old_one_in_a_folder(size: int, tmp_path: Path) -> None:
    sink = LocalSink(tmp_path / "store", fsync=False)
    Transfer(sink).run(one(b"old"))
    path = tmp_path / "model.bin"
    path.write_bytes(os.urandom(size))
    fail(Transfer(sink, QUICK), one(Hooked(path, lambda: _grow(path))))
    assert held(sink) == {"one.bin": b"old"}
    assert set(files_in(tmp_path / "store")) <= {"run/one.bin", "run/one.bin.manifest.json"}  # and no temporary file


def test_a_source_that_cannot_be_read_is_reported_as_it_is(memory: MemorySink) -> None:
    source = GeneratedSource(100, fails_after=50, error=SourceUnreadable("the disk is broken"))
    error = fail(Transfer(memory, QUICK), one(source))
    assert "the disk is broken" in str(error)
    assert everything(memory) == {}


# -- proof -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "proof"), [("auto", "size"), ("size", "size"), ("none", "none"), ("full", "readback")]
)
@pytest.mark.parametrize("place", ["memory", "file"])
@pytest.mark.parametrize("files", [{"a": b"x"}, FILES], ids=["one", "four"])
def test_receipts_name_the_proof_that_took_place(
    mode: Any, proof: str, place: str, files: dict[str, bytes], memory: MemorySink, tmp_path: Path
) -> None:
    sink = memory if place == "memory" else LocalSink(tmp_path, fsync=False)
    receipts = Transfer(sink, replace(QUICK, verify=mode)).run(plan(files))
    assert {r.verified_by for r in receipts} == {proof}


@pytest.mark.parametrize(
    ("algorithm", "mode", "proof"),
    [
        ("md5", "auto", "md5"),
        ("sha256", "auto", "sha256"),
        ("crc32c", "auto", "size"),  # a digest that is not taken on the way proves nothing, and is not claimed
        ("md5", "size", "size"),
        ("md5", "full", "readback"),
        ("md5", "none", "none"),
    ],
)
def test_a_digest_of_the_backend_is_compared_where_it_should_be(
    algorithm: str, mode: Any, proof: str, memory: MemorySink
) -> None:
    receipts = Transfer(DigestReporting(memory, algorithm), replace(QUICK, verify=mode)).run(plan(FILES))
    assert {r.verified_by for r in receipts} == {proof}


def test_a_digest_that_was_not_expected_costs_one_more_read_for_the_first_object_only(memory: MemorySink) -> None:
    sources = [Counting(bytes([n]) * 100) for n in range(5)]
    transfer = Transfer(DigestReporting(memory, "md5"), replace(QUICK, workers=1))
    for n, source in enumerate(sources):
        transfer.run(one(source, f"{n}.bin"))  # type: ignore[arg-type]
    assert [source.opened for source in sources] == [2, 1, 1, 1, 1]


def test_a_digest_is_taken_of_what_is_no_larger_than_what_the_backend_reported_it_of(memory: MemorySink) -> None:
    taken: list[set[str]] = []

    class UpTo(DigestReporting):
        def put(self, key: ArtifactKey, source: Source, *, on_bytes: OnBytes | None = None) -> StoredArtifact:
            stored = super().put(key, source, on_bytes=on_bytes)
            if isinstance(source, ReadOnce):  # the manifest is none
                taken.append(set(source.digests()))
            return stored if stored.size <= 100 else replace(stored, digests={})

    transfer = Transfer(UpTo(memory, "md5"), QUICK)
    proofs = [transfer.run(one(b"x" * size, f"{size}.bin"))[0].verified_by for size in (100, 101, 50, 102)]
    assert proofs == ["md5", "size", "md5", "size"]
    assert taken == [{"sha256"}, {"sha256"}, {"sha256", "md5"}, {"sha256"}]


def test_another_digest_than_ours_is_put_again_then_proven(memory: MemorySink) -> None:
    (receipt,) = Transfer(DigestReporting(memory, "md5", wrong_first=1), QUICK).run(one(b"x" * 100))
    assert (receipt.attempts, receipt.verified_by) == (2, "md5")


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_another_digest_than_ours_each_time_is_a_typed_error(algorithm: str, memory: MemorySink) -> None:
    sink = DigestReporting(memory, algorithm, wrong_first=99)
    error = fail(Transfer(sink, replace(QUICK, reads=3)), one(b"x" * 100))
    assert isinstance(error.failures["one.bin"], VerificationError)
    assert algorithm in str(error)
    assert error.receipts[0].attempts == 3
    assert list_committed(memory, RUN) == ()


@pytest.mark.parametrize(
    ("algorithm", "mode", "proof"),
    [
        ("md5", "auto", "md5"),
        ("sha256", "auto", "sha256"),
        ("crc32c", "auto", "size"),
        ("md5", "size", "size"),
        ("md5", "full", "readback"),
        ("md5", "none", "none"),
    ],
)
@pytest.mark.parametrize("files", [{"a": b"x"}, FILES], ids=["one", "four"])
def test_a_digest_that_is_told_with_the_confirmation_is_compared(
    algorithm: str, mode: Any, proof: str, files: dict[str, bytes], memory: MemorySink
) -> None:
    receipts = Transfer(DigestListing(memory, algorithm), replace(QUICK, verify=mode)).run(plan(files))
    assert {r.verified_by for r in receipts} == {proof}
    assert {r.attempts for r in receipts} == {1}


def test_what_is_confirmed_with_a_digest_is_read_once(memory: MemorySink) -> None:
    sources = [Counting(bytes([n]) * size) for n, size in enumerate((100, 101))]
    transfer = Transfer(DigestListing(memory), QUICK)
    proofs = [transfer.run(one(source, f"{n}.bin"))[0].verified_by for n, source in enumerate(sources)]  # type: ignore[arg-type]
    assert proofs == ["md5", "size"]  # of more than 100 bytes it says that it tells none, so none is taken
    assert [source.opened for source in sources] == [1, 1]


def test_a_digest_that_nobody_announced_is_taken_from_the_next_upload_on(memory: MemorySink) -> None:
    class Silent(DigestListing):
        reports: ClassVar = {}

    transfer = Transfer(Silent(memory), QUICK)
    proofs = [transfer.run(one(b"x" * 10, f"{n}.bin"))[0].verified_by for n in range(2)]
    assert proofs == ["size", "md5"]


def test_another_digest_in_the_confirmation_is_put_again_then_proven(memory: MemorySink) -> None:
    receipts = Transfer(DigestListing(memory, wrong_first=1), QUICK).run(plan(FILES))
    assert sorted((r.attempts, r.verified_by) for r in receipts) == [(1, "md5")] * 3 + [(2, "md5")]


def test_another_digest_in_each_confirmation_is_a_typed_error(memory: MemorySink) -> None:
    error = fail(Transfer(DigestListing(memory, wrong_first=99), replace(QUICK, reads=3)), one(b"x" * 100))
    assert isinstance(error.failures["one.bin"], VerificationError)
    assert "reports another md5" in str(error)
    assert [(r.status, r.attempts, r.verified_by) for r in error.receipts] == [("failed", 3, "none")]
    assert list_committed(memory, RUN) == ()


@pytest.mark.parametrize("mode", ["auto", "size", "full"])
@pytest.mark.parametrize("files", [{"a": b"x"}, FILES], ids=["one", "four"])
def test_a_store_that_accepts_and_loses_an_object_is_given_it_again(
    mode: Any, files: dict[str, bytes], memory: MemorySink
) -> None:
    receipts = Transfer(FaultySink(memory, loses_object(nth=1)), replace(QUICK, verify=mode)).run(plan(files))
    assert sorted(r.attempts for r in receipts) == [1] * (len(files) - 1) + [2]
    assert held(memory) == {f"tree/{name}": data for name, data in files.items()}
    assert all(check.status == "ok" for check in verify(memory, list_committed(memory, RUN)))


@pytest.mark.parametrize("mode", ["auto", "size", "full"])
def test_a_store_that_loses_it_each_time_is_a_typed_error(mode: Any, memory: MemorySink) -> None:
    sink = FaultySink(memory, loses_object())
    error = fail(Transfer(sink, replace(QUICK, reads=3, verify=mode)), plan(FILES))
    assert {type(e) for e in error.failures.values()} == {VerificationError}
    assert len(error.failures) == 4
    assert [(r.status, r.attempts, r.verified_by) for r in error.receipts] == [("failed", 3, "none")] * 4


def test_a_lost_object_that_cannot_be_put_again_is_reported_with_why(memory: MemorySink) -> None:
    sink = FaultySink(memory, loses_object(nth=1), fails("put", SinkQuotaError("now it is full"), nth=2))
    error = fail(Transfer(sink, QUICK), one(b"x"))
    assert isinstance(error.failures["one.bin"], SinkQuotaError)
    assert (error.receipts[0].status, error.receipts[0].attempts) == ("failed", 2)


def test_none_believes_the_store(memory: MemorySink) -> None:
    sink = Recording(FaultySink(memory, loses_object(nth=1)))
    Transfer(sink, replace(QUICK, verify="none")).run(plan(FILES))
    assert sink.asked("stat") == []
    assert sink.asked("list") == []


def test_what_the_store_told_its_digest_of_is_not_asked_for_again(memory: MemorySink) -> None:
    sink = DigestReporting(memory, "md5")
    receipts = Transfer(sink, QUICK).run(plan(FILES))
    assert {receipt.verified_by for receipt in receipts} == {"md5"}
    assert sink.asked("list") == []
    assert set(sink.asked("stat")) == {MANIFEST}


def test_a_listing_that_leaves_one_out_makes_it_be_sent_again_not_lost(memory: MemorySink) -> None:
    receipts = Transfer(FaultySink(memory, short_list(nth=1)), QUICK).run(plan(FILES))
    assert sorted(r.attempts for r in receipts) == [1, 1, 1, 2]


def test_a_store_that_cannot_be_asked_afterwards_fails_what_it_could_not_confirm(memory: MemorySink) -> None:
    error = fail(Transfer(FaultySink(memory, fails("list", SinkAuthError("no list"))), QUICK), plan(FILES))
    assert len(error.failures) == 4
    assert {r.verified_by for r in error.receipts} == {"none"}


def test_full_finds_bytes_that_the_store_changed_and_puts_them_again(memory: MemorySink) -> None:
    class Damaging(Recording):
        """Keeps the first object that it is given with one bit turned round."""

        def put(self, key: ArtifactKey, source: Any, *, on_bytes: Any = None) -> StoredArtifact:
            stored = super().put(key, source, on_bytes=on_bytes)
            if len(self.asked("put")) == 1:
                self.inner.put(key, MemorySource(b"?" * stored.size))
            return stored

    (receipt,) = Transfer(Damaging(memory), replace(QUICK, verify="full")).run(one(b"x" * 10))
    assert (receipt.attempts, receipt.verified_by) == (2, "readback")
    assert held(memory) == {"one.bin": b"x" * 10}

    # Anything less does not find it, and verify() does later.
    Transfer(Damaging(memory), QUICK).run(one(b"x" * 10, "other.bin"))
    assert [c.status for c in verify(memory, list_committed(memory, RUN))] == ["ok", "content"]


def test_full_that_never_gets_the_same_bytes_back_is_a_typed_error(memory: MemorySink) -> None:
    sink = FaultySink(memory, corrupts("open"))
    error = fail(Transfer(sink, replace(QUICK, verify="full", reads=2)), one(b"x"))
    assert isinstance(error.failures["one.bin"], VerificationError)
    assert error.receipts[0].attempts == 2


def test_a_store_that_says_yes_without_reading_to_the_end_is_not_believed(memory: MemorySink) -> None:
    class Hasty(Recording):
        def put(self, key: ArtifactKey, source: Any, *, on_bytes: Any = None) -> StoredArtifact:
            with source.open() as stream:
                data = stream.read(3)
            return self.inner.put(key, MemorySource(data))

    for mode in ("auto", "size", "none", "full"):
        error = fail(Transfer(Hasty(memory), replace(QUICK, verify=mode)), one(b"x" * 10))
        assert isinstance(error.failures["one.bin"], VerificationError)


def test_a_store_that_reports_another_size_is_not_believed(memory: MemorySink) -> None:
    class Short(Recording):
        def put(self, key: ArtifactKey, source: Any, *, on_bytes: Any = None) -> StoredArtifact:
            return replace(super().put(key, source, on_bytes=on_bytes), size=1)

    error = fail(Transfer(Short(memory), QUICK), one(b"x" * 10))
    assert isinstance(error.failures["one.bin"], VerificationError)


# -- what is there already ---------------------------------------------------------------------------------------------


def test_unchanged_objects_are_not_sent_again(memory: MemorySink) -> None:
    Transfer(memory).run(plan(FILES))
    sink = Recording(memory)
    receipts = Transfer(sink).run(plan(FILES))
    assert sink.asked("put") == []
    assert sink.asked("delete") == []
    assert [(r.status, r.attempts, r.sha256, r.verified_by) for r in receipts] == [
        ("unchanged", 0, sha(data), "size") for data in FILES.values()
    ]


@pytest.mark.parametrize("new", [b"z" * 10, b"longer than it was before"], ids=["same size", "another size"])
def test_a_changed_object_is_sent_alone(memory: MemorySink, new: bytes) -> None:
    Transfer(memory).run(plan(FILES))
    sink = Recording(memory)
    Transfer(sink).run(plan({**FILES, "a.bin": new}))
    assert sink.asked("put") == ["tree/a.bin", MANIFEST]
    assert held(memory)["tree/a.bin"] == new


def test_a_file_of_the_same_size_and_time_with_other_bytes_is_sent(memory: MemorySink, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", {"a.bin": b"before"})
    Transfer(memory).run(plan_tree(RUN, "tree", folder))
    status = (folder / "a.bin").stat()
    (folder / "a.bin").write_bytes(b"behind")
    os.utime(folder / "a.bin", ns=(status.st_atime_ns, status.st_mtime_ns))
    Transfer(memory).run(plan_tree(RUN, "tree", folder))
    assert held(memory) == {"tree/a.bin": b"behind"}


@pytest.mark.parametrize("files", [{"a.bin": b"x"}, FILES], ids=["one", "four"])
def test_what_the_store_lost_in_the_meantime_is_sent_again(memory: MemorySink, files: dict[str, bytes]) -> None:
    Transfer(memory).run(plan(files))
    memory.delete(ArtifactKey(RUN, "tree/a.bin"))
    sink = Recording(memory)
    Transfer(sink).run(plan(files))
    assert sink.asked("put") == ["tree/a.bin", MANIFEST]


def test_what_the_store_holds_with_another_size_is_sent_again(memory: MemorySink) -> None:
    Transfer(memory).run(plan(FILES))
    memory.put(ArtifactKey(RUN, "tree/a.bin"), MemorySource(b"torn"))
    Transfer(memory).run(plan(FILES))
    assert held(memory)["tree/a.bin"] == FILES["a.bin"]


def test_what_the_store_damaged_is_mended_by_full(memory: MemorySink) -> None:
    Transfer(memory).run(plan(FILES))
    memory.put(ArtifactKey(RUN, "tree/a.bin"), MemorySource(b"?" * 10))
    receipts = Transfer(memory, replace(QUICK, verify="full")).run(plan(FILES))
    assert [(r.status, r.verified_by) for r in receipts] == [("uploaded", "readback")] + [("unchanged", "readback")] * 3
    assert held(memory)["tree/a.bin"] == FILES["a.bin"]


def test_what_the_store_damaged_is_noticed_by_the_digest_it_reports(memory: MemorySink) -> None:
    class Stating(DigestReporting):
        def stat(self, key: ArtifactKey) -> StoredArtifact | None:
            stored = self.inner.stat(key)
            return stored and replace(stored, digests={"md5": hashlib.md5(self.inner.open(key).read()).hexdigest()})

    sink = Stating(memory, "md5")
    Transfer(sink).run(one(b"x" * 10))
    assert [(r.status, r.verified_by) for r in Transfer(sink).run(one(b"x" * 10))] == [("unchanged", "md5")]
    memory.put(ArtifactKey(RUN, "one.bin"), MemorySource(b"?" * 10))
    assert [r.status for r in Transfer(sink).run(one(b"x" * 10))] == ["uploaded"]
    assert held(memory) == {"one.bin": b"x" * 10}


def test_without_a_manifest_everything_is_sent_again(memory: MemorySink) -> None:
    Transfer(memory).run(plan(FILES))
    memory.delete(ArtifactKey(RUN, MANIFEST))
    sink = Recording(memory)
    Transfer(sink).run(plan(FILES))
    assert len(sink.asked("put")) == 5


def test_a_file_that_is_written_while_it_is_compared_is_read_anew(memory: MemorySink, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"0123456789")
    Transfer(memory).run(one(FileSource(path)))
    changes = [_rewrite]
    (receipt,) = Transfer(memory, QUICK).run(one(Hooked(path, lambda: changes.pop()(path) if changes else None)))
    assert (receipt.status, held(memory)) == ("uploaded", {"one.bin": path.read_bytes()})


def test_an_unchanged_archive_is_not_sent_again(memory: MemorySink, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", FILES)

    def archive() -> Plan:
        return plan_packed_tree(RUN, "best.tar.gz", folder, archive_format="tar.gz", details={"trial_number": 3})

    Transfer(memory).run(archive())
    sink = Recording(memory)
    (receipt,) = Transfer(sink).run(archive())
    assert (receipt.status, sink.asked("put")) == ("unchanged", [])
    (folder / "a.bin").write_bytes(b"another")
    (receipt,) = Transfer(sink).run(archive())
    assert (receipt.status, sink.asked("put")) == ("uploaded", ["best.tar.gz", "best_manifest.json"])


def test_unchanged_bytes_with_another_story_are_told_in_a_new_manifest(memory: MemorySink) -> None:
    Transfer(memory).run(replace(plan(FILES), details={"trial_number": 3}))
    sink = Recording(memory)
    Transfer(sink).run(replace(plan(FILES), details={"trial_number": 7}))
    assert sink.asked("put") == [MANIFEST]
    manifest = manifest_in(memory)
    assert manifest is not None
    assert manifest.details == {"trial_number": 7}


def test_another_time_of_upload_alone_is_no_reason_to_write_anything(memory: MemorySink) -> None:
    Transfer(memory).run(replace(plan(FILES), provenance={"uploaded_at": "1"}))
    sink = Recording(memory)
    Transfer(sink).run(replace(plan(FILES), provenance={"uploaded_at": "2"}))
    assert sink.asked("put") == []


# -- commit ------------------------------------------------------------------------------------------------------------


def test_the_manifest_is_written_last(memory: MemorySink) -> None:
    sink = Recording(memory)
    Transfer(sink).run(plan(FILES))
    puts = sink.asked("put")
    assert puts[-1] == MANIFEST
    assert puts.count(MANIFEST) == 1


def test_the_old_manifest_goes_before_the_first_object_is_overwritten(memory: MemorySink) -> None:
    Transfer(memory).run(plan(FILES))
    sink = Recording(memory)
    Transfer(sink).run(plan({name: data + b"new" for name, data in FILES.items()}))
    changes = [call for call in sink.calls if call[0] in ("put", "delete")]
    assert changes[0] == ("delete", MANIFEST)
    assert changes[-1] == ("put", MANIFEST)
    assert changes.count(("delete", MANIFEST)) == 1


def test_at_no_moment_a_manifest_stands_over_other_bytes(memory: MemorySink) -> None:
    class Watching(Recording):
        """Looks at the store as a reader would, at each call."""

        def note(self, operation: str, path: str) -> None:
            super().note(operation, path)
            assert all(check.status == "ok" for check in verify(memory, list_committed(memory, RUN)))

    for version in range(4):
        files = {f"{n}": f"{version} {n % (version + 1)}".encode() for n in range(8 - version)}
        Transfer(Watching(memory), replace(QUICK, workers=1)).run(plan(files))
        assert held(memory) == {f"tree/{name}": data for name, data in files.items()}


@pytest.mark.parametrize("operation", ["put", "delete"])
def test_a_failed_upload_leaves_no_manifest(memory: MemorySink, operation: Any) -> None:
    Transfer(memory).run(plan(FILES))
    sink = FaultySink(memory, fails(operation, SinkAuthError("no"), nth=2))
    fail(Transfer(sink, replace(QUICK, workers=1)), plan({"a.bin": b"new", "b.bin": b"new"}))
    assert manifest_in(memory) is None


def test_after_a_failed_upload_the_next_one_repairs_it(memory: MemorySink) -> None:
    fail(Transfer(FaultySink(memory, fails("put", SinkAuthError("no"), nth=2)), QUICK), plan(FILES))
    Transfer(memory).run(plan(FILES))
    assert all(check.status == "ok" for check in verify(memory, list_committed(memory, RUN)))


def test_files_of_the_previous_upload_that_are_no_more_are_removed(memory: MemorySink) -> None:
    Transfer(memory).run(plan(FILES))
    memory.put(ArtifactKey(RUN, "tree/not-ours"), MemorySource(b"somebody else's"))
    sink = Recording(memory)
    Transfer(sink).run(plan({"a.bin": FILES["a.bin"]}))
    assert held(memory) == {"tree/a.bin": FILES["a.bin"], "tree/not-ours": b"somebody else's"}
    # Also then the old manifest goes first: a tree that has lost a file is not whole.
    assert next(call for call in sink.calls if call[0] in ("put", "delete")) == ("delete", MANIFEST)


def test_files_of_the_previous_upload_stay_until_the_new_one_has_landed(memory: MemorySink) -> None:
    Transfer(memory).run(plan(FILES))
    fail(Transfer(FaultySink(memory, fails("put", SinkAuthError("no"))), QUICK), plan({"new": b"new"}))
    assert held(memory) == {f"tree/{name}": data for name, data in FILES.items()}


@pytest.mark.parametrize("tries", [1, 2])
def test_files_of_the_previous_upload_are_removed_by_the_next_that_lands_also_after_some_that_did_not(
    tries: int, memory: MemorySink
) -> None:
    Transfer(memory).run(plan({"a": b"a", "old": b"old"}))
    new = {"a": b"A", "new": b"new"}
    for _ in range(tries):  # changes a, takes the manifest away, and dies
        fail(Transfer(Failing(memory, {"tree/new": [SinkAuthError("no")]}), QUICK), plan(new))
        assert manifest_in(memory) is None
    Transfer(memory).run(plan(new))
    assert held(memory) == {"tree/a": b"A", "tree/new": b"new"}
    assert set(everything(memory)) == {"tree/a", "tree/new", MANIFEST}  # nor is there a note


def test_files_beside_added_ones_stay_vouched_for_also_after_an_addition_that_did_not_land(memory: MemorySink) -> None:
    Transfer(memory).run(plan({"a": b"a", "b": b"b"}))
    changed = replace(plan({"a": b"A", "new": b"new"}), adds=True)
    fail(Transfer(Failing(memory, {"tree/new": [SinkAuthError("no")]}), QUICK), changed)
    assert manifest_in(memory) is None
    Transfer(memory).run(replace(plan({"c": b"c"}), adds=True))
    manifest = manifest_in(memory)
    assert manifest is not None
    # Of a nobody knows whether it is the old one or the new one.
    assert {entry.path for entry in manifest.files} == {"b", "c"}
    Transfer(memory).run(changed)
    manifest = manifest_in(memory)
    assert manifest is not None
    assert {entry.path for entry in manifest.files} == {"a", "b", "c", "new"}
    assert {check.status for check in verify(memory, list_committed(memory, RUN))} == {"ok"}


@pytest.mark.parametrize(
    ("path", "files", "adds"),
    [("tree/logs", {"x": b"x"}, True), ("tree/logs", {"x": b"x"}, False), ("tree.tar.gz", None, False)],
    ids=["added inside", "uploaded inside", "an archive of its name"],
)
def test_files_beside_added_ones_stay_vouched_for_whatever_else_is_uploaded_near_them(
    path: str, files: dict[str, bytes] | None, adds: bool, memory: MemorySink
) -> None:
    Transfer(memory).run(plan({"a": b"a", "b": b"b"}))
    changed = replace(plan({"a": b"A", "new": b"new"}), adds=True)
    fail(Transfer(Failing(memory, {"tree/new": [SinkAuthError("no")]}), QUICK), changed)
    near = one(b"archive", path) if files is None else replace(plan(files, path), adds=adds)
    Transfer(memory).run(near)  # touches nothing of the tree
    Transfer(memory).run(changed)
    manifest = manifest_in(memory)
    assert manifest is not None
    assert {entry.path for entry in manifest.files} == {"a", "b", "new"}
    assert {check.status for check in verify(memory, list_committed(memory, RUN))} == {"ok"}
    assert not [name for name in everything(memory) if name.startswith(".stagesink")]


def test_an_addition_vouches_for_nothing_that_a_failed_upload_was_to_replace(memory: MemorySink) -> None:
    Transfer(memory).run(plan({"a": b"a", "b": b"b"}))
    fail(Transfer(Failing(memory, {"tree/new": [SinkAuthError("no")]}), QUICK), plan({"a": b"A", "new": b"new"}))
    Transfer(memory).run(replace(plan({"c": b"c"}), adds=True))
    manifest = manifest_in(memory)
    assert manifest is not None
    assert {entry.path for entry in manifest.files} == {"c"}


def test_archives_of_two_formats_stand_beside_each_other(memory: MemorySink, tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    folder = folder_of(tmp_path / "in", FILES)
    for kind in ("tar.gz", "tar.zst"):
        Transfer(memory).run(plan_packed_tree(RUN, f"best.{kind}", folder, archive_format=kind))  # type: ignore[arg-type]
    assert set(everything(memory)) == {
        *("best.tar.gz", "best_manifest.json"),
        *("best.tar.zst", "best.tar.zst.manifest.json"),
    }


@pytest.mark.parametrize("path", ["tree.manifest.json", "tree/a.bin"])
def test_an_upload_that_would_falsify_another_is_refused(path: str, memory: MemorySink) -> None:
    Transfer(memory).run(plan({"a.bin": b"a", "b.bin": b"b"}))
    before = everything(memory)
    error = fail(Transfer(memory, QUICK), one(b"other", path))
    assert isinstance(error.failures[path], SinkConflict)
    assert everything(memory) == before


def test_a_manifest_takes_no_uploaded_files_place(memory: MemorySink) -> None:
    Transfer(memory).run(one(b"mine", "tree.manifest.json"))
    before = everything(memory)
    error = fail(Transfer(memory, QUICK), plan({"a.bin": b"a"}))
    assert isinstance(error.failures["tree"], SinkConflict)
    assert everything(memory) == before


def test_a_file_may_be_added_to_the_folder_of_a_tree(memory: MemorySink) -> None:
    Transfer(memory).run(plan({"a.bin": b"a"}))
    Transfer(memory).run(one(b"notes", "tree/notes.txt"))
    assert {m.path for m in list_committed(memory, RUN)} == {"tree", "tree/notes.txt"}


def test_a_file_that_was_uploaded_by_itself_as_well_is_not_removed_as_stale(memory: MemorySink) -> None:
    Transfer(memory).run(plan({"a.bin": b"a", "b.bin": b"b"}))
    own = ArtifactKey(RUN, "tree/a.bin.manifest.json")
    memory.put(own, MemorySource(b"{}"))
    Transfer(memory).run(plan({"b.bin": b"b"}))
    assert "tree/a.bin" in everything(memory)


def test_a_manifest_that_the_store_loses_is_written_again(memory: MemorySink) -> None:
    Transfer(FaultySink(memory, loses_object(nth=2)), QUICK).run(one(b"x"))
    assert len(list_committed(memory, RUN)) == 1


def test_a_manifest_that_the_store_loses_each_time_is_a_typed_error(memory: MemorySink) -> None:
    class Losing(Recording):
        def put(self, key: ArtifactKey, source: Any, *, on_bytes: Any = None) -> StoredArtifact:
            stored = super().put(key, source, on_bytes=on_bytes)
            if key.path == MANIFEST:
                self.inner.delete(key)
            return stored

    error = fail(Transfer(Losing(memory), QUICK), plan(FILES))
    assert isinstance(error.failures[MANIFEST], VerificationError)
    assert {r.status for r in error.receipts} == {"uploaded"}


def test_full_reads_the_manifest_back_too(memory: MemorySink) -> None:
    class Damaging(Recording):
        def open(self, key: ArtifactKey) -> Any:
            inner = super().open(key)
            return FaultySink(memory, corrupts("open")).open(key) if key.path == MANIFEST else inner

    error = fail(Transfer(Damaging(memory), replace(QUICK, verify="full")), plan(FILES))
    assert isinstance(error.failures[MANIFEST], VerificationError)


def test_something_else_under_the_manifests_name_is_replaced(memory: MemorySink) -> None:
    for foreign in (b'{"not": "ours"}', b"", b"\xff\x00", b"[" * 100_000):
        memory.put(ArtifactKey(RUN, MANIFEST), MemorySource(foreign))
        Transfer(memory).run(plan(FILES))
        assert len(list_committed(memory, RUN)) == 1


def test_a_manifest_that_was_moved_here_is_not_believed(memory: MemorySink) -> None:
    Transfer(memory).run(plan(FILES, "elsewhere"))
    moved = everything(memory)["elsewhere.manifest.json"]
    memory.put(ArtifactKey(RUN, MANIFEST), MemorySource(moved))
    sink = Recording(memory)
    Transfer(sink).run(plan(FILES))
    assert len(sink.asked("put")) == 5
    assert set(everything(memory)) >= {f"elsewhere/{name}" for name in FILES}  # and nothing it names was removed


@pytest.mark.parametrize("path", ["../victim", "/victim", "a/../../victim"])
def test_a_manifest_made_to_do_harm_removes_nothing_outside_its_tree(memory: MemorySink, path: str) -> None:
    Transfer(memory).run(plan(FILES))
    memory.put(ArtifactKey(RUN, "victim"), MemorySource(b"precious"))
    good = everything(memory)[MANIFEST].decode()
    memory.put(ArtifactKey(RUN, MANIFEST), MemorySource(good.replace("a.bin", path).encode()))
    Transfer(memory).run(plan({"b.bin": b"new"}))
    assert everything(memory)["victim"] == b"precious"


# -- batches -----------------------------------------------------------------------------------------------------------


class Batching(Recording):
    """Makes what was put durable at the end of a batch, or fails to."""

    def __init__(self, inner: Any, error: Exception | None = None) -> None:
        super().__init__(inner)
        self.error = error

    @contextmanager
    def batch(self) -> Any:
        self.note("batch", "")
        yield self
        self.note("sync", "")
        if self.error is not None:
            raise self.error


def test_the_manifest_is_written_only_after_the_batch_is_durable(memory: MemorySink) -> None:
    sink = Batching(memory)
    Transfer(sink).run(plan(FILES))
    assert sink.calls.index(("sync", "")) == sink.calls.index(("put", MANIFEST)) - 1


def test_a_batch_that_cannot_be_made_durable_is_a_failed_transfer_with_its_receipts(memory: MemorySink) -> None:
    error = fail(Transfer(Batching(memory, SinkQuotaError("no room")), QUICK), plan(FILES))
    assert [type(e) for e in error.failures.values()] == [SinkQuotaError]
    assert {r.status for r in error.receipts} == {"failed"}
    assert manifest_in(memory) is None


def test_a_batch_that_cannot_be_made_durable_hides_no_other_failure(memory: MemorySink) -> None:
    sink = Batching(Failing(memory, {"tree/a.bin": [SinkAuthError("no")]}), SinkQuotaError("no room"))
    error = fail(Transfer(sink, QUICK), plan(FILES))
    assert {type(e) for e in error.failures.values()} == {SinkAuthError, SinkQuotaError}


# -- order -------------------------------------------------------------------------------------------------------------


def test_large_files_go_first_and_small_ones_are_not_starved(memory: MemorySink) -> None:
    sizes = [1, 2, 3, 100, 200, 300, 400, 500]
    random.Random(0).shuffle(sizes)
    sink = Recording(memory)
    Transfer(sink, replace(QUICK, workers=1)).run(plan({f"{size}": b"x" * size for size in sizes}))
    assert [path.removeprefix("tree/") for path in sink.asked("put")[:-1]] == [
        *("500", "400", "300", "1", "200", "100", "3", "2"),
    ]


# -- Ctrl-C ------------------------------------------------------------------------------------------------------------

_INTERRUPTED = """
    import sys
    from stagesink.sinks.local import LocalSink
    from stagesink.testing import FaultySink, GeneratedSource, slow
    from stagesink.artifacts import ArtifactKey
    from stagesink.transfer import Plan, Transfer
    from stagesink.transfer.plan import PlannedObject

    root, workers, count, apart = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:] == ["apart"]
    objects = tuple(
        PlannedObject(ArtifactKey("run", f"tree/{n}"), GeneratedSource(1 << 30, seed=n), 1 << 30) for n in range(count)
    )
    from stagesink.transfer import TransferOptions
    started = []
    def progress(now):
        if now.bytes_done and not started:
            started.append(1)
            print("moving", flush=True)
    sink = FaultySink(LocalSink(root), slow("put", per_chunk=0.02))
    try:
        transfer = Transfer(sink, TransferOptions(workers=workers), progress=progress)
        if apart:
            transfer.run_all([Plan("run", item.key.path, "file", (item,)) for item in objects], "all")
        else:
            transfer.run(Plan("run", "tree", "tree", objects))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.exit(130)
    print("done", flush=True)
"""


@pytest.mark.parametrize(
    ("workers", "count", "plans"),
    [(4, 6, "one"), (1, 3, "one"), (4, 1, "one"), (4, 6, "apart")],
    ids=["threads", "one worker", "one object", "plans"],
)
def test_ctrl_c_ends_the_transfer_and_leaves_nothing_half_visible(
    tmp_path: Path, workers: int, count: int, plans: str
) -> None:
    script, root = tmp_path / "upload.py", tmp_path / "store"
    script.write_text(textwrap.dedent(_INTERRUPTED))
    process = subprocess.Popen(
        [sys.executable, str(script), str(root), str(workers), str(count), plans], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "moving\n"
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)  # left alone it would take minutes and gigabytes
    finally:
        process.kill()
        process.wait()
    assert (rest, process.returncode) == ("interrupted\n", 130)
    sink = LocalSink(root)
    assert list(sink.list("run")) == []
    assert list_committed(sink, "run") == ()


def test_what_a_killed_process_left_is_never_listed_and_swept_by_the_next_upload(tmp_path: Path) -> None:
    script, root = tmp_path / "upload.py", tmp_path / "store"
    script.write_text(textwrap.dedent(_INTERRUPTED))
    process = subprocess.Popen([sys.executable, str(script), str(root), "4", "6"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "moving\n"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert files_in(root)  # half-written temporary files lie there
    sink = LocalSink(root)
    assert list_objects(sink, "run") == ()
    Transfer(sink).run(plan(FILES))
    assert set(files_in(root)) == {f"run/tree/{name}" for name in FILES} | {f"run/{MANIFEST}"}


def test_a_manifest_reads_back_as_it_was_planned(memory: MemorySink) -> None:
    what = replace(plan(FILES), skipped=("x.tmp",), details={"note": [1, None]}, provenance={"stage": "training"})
    receipts = Transfer(memory).run(what)
    expected = what.manifest({r.key: (r.size, r.sha256 or "") for r in receipts})
    assert manifest_in(memory) == expected
    assert isinstance(expected, Manifest)


# -- adding to what is there -------------------------------------------------------------------------------------------


def added(files: dict[str, bytes | Source], path: str = "tree") -> Plan:
    return replace(plan(files, path), adds=True)


def names(manifest: Manifest | None) -> list[str]:
    assert manifest is not None
    return [entry.path for entry in manifest.files]


def test_what_is_added_lies_beside_the_rest_and_one_manifest_names_both(memory: MemorySink) -> None:
    transfer = Transfer(memory, QUICK)
    transfer.run(plan({"b": b"1", "sub/c": b"2"}))
    transfer.run(added({"a": b"3", "sub/c": b"changed"}))
    assert held(memory) == {"tree/a": b"3", "tree/b": b"1", "tree/sub/c": b"changed"}
    assert names(manifest_in(memory)) == ["a", "b", "sub/c"]
    assert {check.status for check in verify(memory, list_committed(memory, RUN))} == {"ok"}


def test_an_addition_takes_no_manifest_away_while_only_new_files_land(memory: MemorySink) -> None:
    Transfer(memory, QUICK).run(plan({"old": b"1"}))
    recording = Recording(memory)
    Transfer(recording, QUICK).run(added({"new": b"2"}))
    assert recording.asked("delete") == []
    Transfer(recording, QUICK).run(added({"new": b"another"}))
    assert recording.asked("delete") == ["tree.manifest.json"]


def test_an_addition_that_fails_leaves_what_was_there_committed(memory: MemorySink) -> None:
    Transfer(memory, QUICK).run(plan({"old": b"1"}))
    failing = Failing(memory, {"tree/new": [SinkQuotaError("full")]})
    with pytest.raises(TransferError):
        Transfer(failing, QUICK).run(added({"new": b"2"}))
    assert names(manifest_in(memory)) == ["old"]


def test_an_addition_does_not_vouch_for_what_the_store_has_lost(memory: MemorySink) -> None:
    Transfer(memory, QUICK).run(plan({"a": b"1", "b": b"2", "c": b"3"}))
    memory.delete(ArtifactKey(RUN, "tree/b"))
    Transfer(memory, QUICK).run(added({"d": b"4"}))
    assert names(manifest_in(memory)) == ["a", "c", "d"]


@pytest.mark.parametrize("path", ["tree/sub/c", "tree/b"])
def test_a_file_of_a_tree_is_replaced_in_it_when_it_is_added(path: str, memory: MemorySink) -> None:
    Transfer(memory, QUICK).run(plan({"b": b"1", "sub/c": b"2"}))
    (receipt,) = Transfer(memory, QUICK).run(replace(one(b"changed", path), adds=True))
    assert (receipt.key.path, receipt.status) == (path, "uploaded")
    assert held(memory)[path] == b"changed"
    assert {key for key in everything(memory) if key.endswith("manifest.json")} == {"tree.manifest.json"}
    assert {check.status for check in verify(memory, list_committed(memory, RUN))} == {"ok"}


def test_a_file_that_is_added_to_no_tree_has_a_manifest_of_its_own(memory: MemorySink) -> None:
    Transfer(memory, QUICK).run(plan({"b": b"1"}))
    Transfer(memory, QUICK).run(replace(one(b"2", "tree/a"), adds=True))
    assert names(manifest_in(memory)) == ["b"]
    assert names(manifest_in(memory, "tree/a.manifest.json")) == ["a"]


# -- several plans at once ---------------------------------------------------------------------------------------------


def test_several_plans_land_each_with_its_manifest(memory: MemorySink) -> None:
    plans = [one(b"1", "a.txt"), plan({"x": b"2", "y": b"3"}), plan({"z": b"4"}, "other"), one(b"5", "b.txt")]
    told: list[Progress] = []
    receipts = Transfer(memory, QUICK, progress=told.append).run_all(plans, "everything")
    assert [receipt.key.path for receipt in receipts] == ["a.txt", "tree/x", "tree/y", "other/z", "b.txt"]
    assert {manifest.path for manifest in list_committed(memory, RUN)} == {"a.txt", "b.txt", "tree", "other"}
    assert [now.finished for now in told].count(True) == 1
    last = told[-1]
    assert (last.label, last.files_done, last.files_total, last.bytes_done) == ("everything", 5, 5, 5)


def test_several_plans_of_one_object_go_side_by_side(memory: MemorySink) -> None:
    together = threading.Barrier(3, timeout=20)  # which breaks unless three puts are under way at once

    class Waiting(Recording):
        def put(self, key: ArtifactKey, source: Any, **options: Any) -> StoredArtifact:
            if key.path.endswith(".txt"):
                together.wait()
            return super().put(key, source, **options)

    Transfer(Waiting(memory), replace(QUICK, workers=3)).run_all([one(b"x", f"{n}.txt") for n in range(3)], "all")
    assert len(held(memory)) == 3


def test_a_plan_that_fails_does_not_stop_the_others(memory: MemorySink) -> None:
    failing = Failing(memory, {"b.txt": [SinkQuotaError("full")], "tree/y": [SinkAuthError("no")]})
    plans = [plan({"x": b"1", "y": b"2"}), one(b"3", "a.txt"), one(b"4", "b.txt"), plan({"z": b"5"}, "other")]
    with pytest.raises(TransferError) as caught:
        Transfer(failing, QUICK).run_all(plans, "all")
    assert {path: type(error) for path, error in caught.value.failures.items()} == {
        "b.txt": SinkQuotaError,
        "tree/y": SinkAuthError,
    }
    assert [(receipt.key.path, receipt.status) for receipt in caught.value.receipts] == [
        *(("tree/x", "uploaded"), ("tree/y", "failed"), ("a.txt", "uploaded")),
        *(("b.txt", "failed"), ("other/z", "uploaded")),
    ]
    assert {manifest.path for manifest in list_committed(memory, RUN)} == {"a.txt", "other"}


MANY = [f"{n:02}.txt" for n in range(20)]


def test_the_store_is_asked_about_many_plans_at_once(memory: MemorySink) -> None:
    sink = Recording(memory)
    Transfer(sink, QUICK).run_all([one(b"x", name) for name in MANY], "all")
    assert sorted(held(memory)) == MANY
    assert sorted(sink.asked("put")) == sorted([*MANY, *(f"{name}.manifest.json" for name in MANY)])
    assert len(sink.calls) == 2 * len(MANY) + 2  # a listing before, and one after that proves it
    before = len(sink.calls)
    receipts = Transfer(sink, QUICK).run_all([one(b"x", name) for name in MANY], "all")
    assert {receipt.status for receipt in receipts} == {"unchanged"}
    assert "put" not in {operation for operation, _ in sink.calls[before:]}


@pytest.mark.parametrize("what", ["07.txt", "07.txt.manifest.json"])
def test_what_the_store_lost_of_many_is_put_again(memory: MemorySink, what: str) -> None:
    class Losing(Recording):
        def put(self, key: ArtifactKey, source: Any, **options: Any) -> StoredArtifact:
            stored = super().put(key, source, **options)
            if key.path == what and self.asked("put").count(what) == 1:
                self.inner.delete(key)
            return stored

    receipts = Transfer(Losing(memory), QUICK).run_all([one(b"x", name) for name in MANY], "all")
    assert {(receipt.status, receipt.verified_by) for receipt in receipts} <= {
        ("uploaded", "size"),
        ("unchanged", "size"),
    }
    assert {check.status for check in verify(memory, list_committed(memory, RUN))} == {"ok"}
    assert len(list_committed(memory, RUN)) == len(MANY)


def test_a_store_that_cannot_be_listed_is_asked_about_each_of_many(memory: MemorySink) -> None:
    faulty = FaultySink(memory, fails("list", SinkAuthError("not allowed to list")))
    receipts = Transfer(faulty, QUICK).run_all([one(b"x", name) for name in MANY], "all")
    assert [receipt.status for receipt in receipts] == ["uploaded"] * len(MANY)
    assert {manifest.path for manifest in list_committed(memory, RUN)} == set(MANY)


def test_many_that_are_read_back_are_read_back(memory: MemorySink) -> None:
    corrupting = FaultySink(memory, corrupts("put", nth=1))
    receipts = Transfer(corrupting, replace(QUICK, verify="full")).run_all([one(b"xyz", name) for name in MANY], "all")
    assert {receipt.verified_by for receipt in receipts} == {"readback"}
    assert sorted(receipt.attempts for receipt in receipts) == [1] * (len(MANY) - 1) + [2]
    assert set(held(memory).values()) == {b"xyz"}
