"""Does the store still hold what its manifests say?"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from parts import QUICK, RUN, Recording, folder_of, plan

from stagesink.artifacts import ArtifactKey, MemorySource
from stagesink.errors import SinkAuthError, TransientSinkError
from stagesink.manifest import Manifest
from stagesink.sinks.local import LocalSink
from stagesink.sinks.memory import MemorySink
from stagesink.testing import FaultySink, corrupts, fails
from stagesink.transfer import Transfer, list_committed, plan_packed_tree, verify
from stagesink.transfer.verify import Check

FILES = {"a.bin": b"aaa", "b.bin": b"bb", "c.bin": b"c" * 3_000_000}


@pytest.fixture
def committed(memory: MemorySink) -> tuple[Manifest, ...]:
    Transfer(memory).run(plan(FILES))
    return list_committed(memory, RUN)


def statuses(checks: tuple[Check, ...]) -> dict[str, str]:
    return {check.key.path.removeprefix("tree/"): check.status for check in checks}


def test_what_lies_there_as_it_should_is_ok(memory: MemorySink, committed: tuple[Manifest, ...]) -> None:
    checks = verify(memory, committed)
    assert [(c.key.path, c.size, c.status, c.detail) for c in checks] == [
        (f"tree/{name}", len(data), "ok", "") for name, data in FILES.items()
    ]


def test_each_way_to_be_bad_has_its_name_and_says_why(memory: MemorySink, committed: tuple[Manifest, ...]) -> None:
    memory.delete(ArtifactKey(RUN, "tree/a.bin"))
    memory.put(ArtifactKey(RUN, "tree/b.bin"), MemorySource(b"longer"))
    memory.put(ArtifactKey(RUN, "tree/c.bin"), MemorySource(b"d" * 3_000_000))
    checks = verify(memory, committed)
    assert statuses(checks) == {"a.bin": "missing", "b.bin": "size", "c.bin": "content"}
    assert all(check.detail for check in checks)
    assert "6 bytes" in checks[1].detail


def test_what_cannot_be_read_is_unreadable_and_does_not_stop_the_others(
    memory: MemorySink, committed: tuple[Manifest, ...]
) -> None:
    sink = FaultySink(memory, fails("open", SinkAuthError("not yours"), nth=2))
    checks = verify(sink, committed, replace(QUICK, verify="full", workers=1))
    assert sorted(statuses(checks).values()) == ["ok", "ok", "unreadable"]
    (bad,) = [check for check in checks if check.status == "unreadable"]
    assert "not yours" in bad.detail


def test_one_bit_turned_round_on_the_way_out_is_found(memory: MemorySink, committed: tuple[Manifest, ...]) -> None:
    checks = verify(FaultySink(memory, corrupts("open")), committed)
    assert set(statuses(checks).values()) == {"content"}


def test_size_asks_without_reading(memory: MemorySink, committed: tuple[Manifest, ...]) -> None:
    memory.delete(ArtifactKey(RUN, "tree/a.bin"))
    memory.put(ArtifactKey(RUN, "tree/b.bin"), MemorySource(b"longer"))
    memory.put(ArtifactKey(RUN, "tree/c.bin"), MemorySource(b"d" * 3_000_000))
    sink = Recording(memory)
    checks = verify(sink, committed, replace(QUICK, verify="size"))
    assert statuses(checks) == {"a.bin": "missing", "b.bin": "size", "c.bin": "ok"}
    assert sink.asked("open") == []


@pytest.mark.parametrize("mode", ["auto", "full", "none"])
def test_everything_else_reads_every_byte(memory: MemorySink, committed: tuple[Manifest, ...], mode: str) -> None:
    memory.put(ArtifactKey(RUN, "tree/c.bin"), MemorySource(b"d" * 3_000_000))
    checks = verify(memory, committed, replace(QUICK, verify=mode))  # type: ignore[arg-type]
    assert statuses(checks)["c.bin"] == "content"


def test_a_busy_store_is_asked_again(memory: MemorySink, committed: tuple[Manifest, ...]) -> None:
    sink = FaultySink(memory, fails("open", TransientSinkError("503"), first=4))
    assert set(statuses(verify(sink, committed, QUICK)).values()) == {"ok"}


def test_a_read_cut_off_in_the_middle_begins_again(memory: MemorySink, committed: tuple[Manifest, ...]) -> None:
    sink = FaultySink(memory, fails("open", TransientSinkError("reset"), nth=1, after_bytes=2))
    assert set(statuses(verify(sink, committed, QUICK)).values()) == {"ok"}


def test_a_store_that_is_gone_does_not_make_each_object_wait(
    memory: MemorySink, committed: tuple[Manifest, ...]
) -> None:
    sink = Recording(FaultySink(memory, fails("open", TransientSinkError("down", retry_after=3600.0))))
    checks = verify(sink, committed, replace(QUICK, workers=1))
    assert set(statuses(checks).values()) == {"unreadable"}
    assert len(sink.asked("open")) == 1


def test_two_manifests_that_disagree_about_an_object_are_each_held_to_their_word(
    memory: MemorySink, committed: tuple[Manifest, ...]
) -> None:
    memory.put(ArtifactKey(RUN, "tree/a.bin"), MemorySource(b"new"))
    old = committed[0]
    entry = replace(old.files[0], sha256=hashlib.sha256(b"new").hexdigest())
    new = Manifest(RUN, "tree/a.bin", "file", (entry,))
    assert [check.status for check in verify(memory, (old, new))] == ["content", "ok", "ok", "ok"]
    assert [check.status for check in verify(memory, (new, old))] == ["ok", "content", "ok", "ok"]


def test_an_archive_is_held_against_its_own_entry(memory: MemorySink, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", {"a": b"a"})
    Transfer(memory).run(plan_packed_tree(RUN, "best.tar.gz", folder, archive_format="tar.gz"))
    committed = list_committed(memory, RUN)
    assert [(c.key.path, c.status) for c in verify(memory, committed)] == [("best.tar.gz", "ok")]
    memory.put(ArtifactKey(RUN, "best.tar.gz"), MemorySource(b"?"))
    assert [c.status for c in verify(memory, committed)] == ["size"]


def test_nothing_to_verify_is_nothing_wrong(memory: MemorySink) -> None:
    assert verify(memory, ()) == ()


def test_a_folder_where_an_object_should_be_is_missing(tmp_path: Path) -> None:
    sink = LocalSink(tmp_path, fsync=False)
    Transfer(sink).run(plan({"a": b"a"}))
    committed = list_committed(sink, RUN)
    (tmp_path / RUN / "tree" / "a").unlink()
    (tmp_path / RUN / "tree" / "a").mkdir()
    assert [check.status for check in verify(sink, committed)] == ["missing"]
