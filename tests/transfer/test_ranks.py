"""Ranks of one job: each uploads its shards, and the whole is there once, when all have."""

from __future__ import annotations

import itertools
import random
import threading
from dataclasses import replace
from typing import Any

import pytest
from parts import QUICK, RUN, Failing, Recording, held, manifest_in, plan

from stagesink.artifacts import NOTES_FOLDER, ArtifactKey, MemorySource
from stagesink.errors import (
    ConfigError,
    EmptyTree,
    ShardConflict,
    SinkAuthError,
    SinkError,
    TransferError,
    TransientSinkError,
    VerificationError,
)
from stagesink.manifest import Manifest
from stagesink.sinks.memory import MemorySink
from stagesink.sinks.protocol import ArtifactSink
from stagesink.testing import FaultySink, fails
from stagesink.transfer import Plan, Transfer, list_committed, plan_tree, turns, verify
from stagesink.transfer.alive import me
from stagesink.transfer.notes import Notes
from stagesink.transfer.share import Share

MANIFEST = "tree.manifest.json"
NOBODY = SinkAuthError("killed here")  # stands for a process that dies: nothing more happens


def shard(rank: int, data: bytes = b"1", ranks: int = 3, session: str = "s1") -> Plan:
    """One rank's share: a file with its number in the name."""
    return replace(plan({f"{rank}.bin": data * (rank + 1)}), share=Share(rank, ranks, session))


def upload(sink: ArtifactSink, *plans: Plan) -> None:
    for each in plans:
        Transfer(sink, QUICK).run(each)


def notes(sink: ArtifactSink) -> list[str]:
    return sorted(stored.key.path for stored in sink.list(RUN, NOTES_FOLDER) if stored.size)


def whole(sink: ArtifactSink) -> dict[str, int] | None:
    """What is committed, once every byte was held against it."""
    manifest = manifest_in(sink)
    if manifest is None:
        return None
    assert {check.status for check in verify(sink, [manifest])} == {"ok"}
    return {entry.path: entry.size for entry in manifest.files}


ALL = {"0.bin": 1, "1.bin": 2, "2.bin": 3}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_whole_is_there_when_the_last_part_is_and_nothing_else_stays(
    memory: MemorySink, order: tuple[int, ...]
) -> None:
    for rank in order:
        assert whole(memory) is None
        assert list_committed(memory, RUN) == ()
        (receipt,) = Transfer(memory, QUICK).run(shard(rank))
        assert (receipt.key.path, receipt.status) == (f"tree/{rank}.bin", "uploaded")
    assert whole(memory) == ALL
    assert notes(memory) == []
    (manifest,) = list_committed(memory, RUN)
    assert manifest.details == {"ranks": {"session": "s1", "world_size": 3, "files": [1, 1, 1]}}


def test_ranks_at_once_land_one_whole(memory: MemorySink) -> None:
    start = threading.Barrier(8)
    failures: list[BaseException] = []

    def rank(number: int) -> None:
        start.wait()
        try:
            upload(memory, shard(number, ranks=8))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=rank, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert whole(memory) == {f"{number}.bin": number + 1 for number in range(8)}
    assert notes(memory) == []


def test_whoever_commits_writes_the_same_bytes() -> None:
    written = set()
    for order in itertools.permutations(range(3)):
        sink = MemorySink(repr(order))
        for rank in order:
            upload(sink, replace(shard(rank), provenance={"created_at": f"by {rank}"}, skipped=(f"{rank}.tmp",)))
        with sink.open(ArtifactKey(RUN, MANIFEST)) as stream:
            written.add(stream.read())
    assert len(written) == 1
    manifest = Manifest.from_bytes(written.pop())
    assert manifest.provenance == {"created_at": "by 0"}
    assert manifest.skipped == ("0.tmp", "1.tmp", "2.tmp")


# -- again -------------------------------------------------------------------------------------------------------------


def test_a_rank_that_uploads_again_replaces_its_part(memory: MemorySink) -> None:
    upload(memory, shard(0), shard(1))
    upload(memory, replace(shard(0, b"other"), objects=shard(0, b"other").objects))
    assert whole(memory) is None
    upload(memory, shard(2))
    assert whole(memory) == {**ALL, "0.bin": 5}


def test_a_rank_that_uploads_the_same_again_sends_nothing(memory: MemorySink) -> None:
    upload(memory, shard(0))
    recording = Recording(memory)
    (receipt,) = Transfer(recording, QUICK).run(shard(0))
    assert receipt.status == "unchanged"
    assert recording.asked("put") == []


def test_a_rank_that_starts_again_after_the_commit_changes_nothing_when_it_has_the_same(memory: MemorySink) -> None:
    upload(memory, shard(0), shard(1), shard(2))
    recording = Recording(memory)
    (receipt,) = Transfer(recording, QUICK).run(shard(1))
    assert receipt.status == "unchanged"
    assert [call for call in recording.calls if call[0] in ("put", "delete")] == []
    assert whole(memory) == ALL


def test_a_rank_that_starts_again_after_the_commit_with_other_bytes_needs_nobody_else(memory: MemorySink) -> None:
    upload(memory, shard(0), shard(1), shard(2), shard(1, b"another"))
    assert whole(memory) == {**ALL, "1.bin": 14}
    assert notes(memory) == []


def test_two_ranks_that_start_again_after_the_commit(memory: MemorySink) -> None:
    upload(memory, shard(0), shard(1), shard(2))
    dies = FaultySink(memory, fails("put", NOBODY, nth=2))  # its part, the shard having landed
    with pytest.raises(TransferError):
        upload(dies, replace(shard(1, b"xx"), share=Share(1, 3, "s1")))
    assert whole(memory) is None
    upload(memory, shard(0, b"yy"))
    assert whole(memory) in (None, {"0.bin": 2, "1.bin": 4, "2.bin": 3})  # rank 1 wrote, and has not said that it ended
    upload(memory, shard(1, b"zzz"))
    assert whole(memory) == {"0.bin": 2, "1.bin": 6, "2.bin": 3}


@pytest.mark.parametrize("other", [{"session": "s2"}, {"ranks": 2}], ids=["session", "world size"])
def test_parts_of_another_session_or_another_number_of_ranks_are_never_merged(
    memory: MemorySink, other: dict[str, Any]
) -> None:
    upload(memory, shard(0), shard(2))
    upload(memory, shard(1, **other))
    assert whole(memory) is None
    if "ranks" in other:
        upload(memory, shard(0, **other))
        assert whole(memory) == {"0.bin": 1, "1.bin": 2}
    else:
        upload(memory, shard(2, **other), shard(0, **other))
        assert whole(memory) == ALL


def test_what_was_there_is_gone_before_the_first_shard_changes(memory: MemorySink) -> None:
    upload(memory, shard(0), shard(1), shard(2))
    recording = Recording(memory)
    upload(recording, shard(2, b"new", session="s2"))
    changes = [call for call in recording.calls if call[0] in ("put", "delete")]
    assert changes[:2] == [("delete", MANIFEST), ("put", "tree/2.bin")]
    assert whole(memory) is None


def test_files_of_the_previous_whole_that_are_no_more_are_removed(memory: MemorySink) -> None:
    upload(memory, shard(0), shard(1), shard(2))
    upload(memory, shard(1, session="s2", ranks=2), shard(0, session="s2", ranks=2))
    assert whole(memory) == {"0.bin": 1, "1.bin": 2}
    assert held(memory).keys() == {"tree/0.bin", "tree/1.bin"}


def test_files_of_a_rank_that_are_no_more_are_removed(memory: MemorySink) -> None:
    upload(memory, shard(0), shard(1), shard(2))
    upload(memory, replace(plan({"2.new": b"x"}), share=Share(2, 3, "s1")))
    assert whole(memory) == {"0.bin": 1, "1.bin": 2, "2.new": 1}
    assert "tree/2.bin" not in held(memory)


def test_a_whole_made_by_one_is_replaced_by_ranks_and_the_reverse(memory: MemorySink) -> None:
    upload(memory, plan({"a": b"1", "0.bin": b"2"}))
    upload(memory, shard(0), shard(1))
    assert whole(memory) is None
    upload(memory, shard(2))
    assert whole(memory) == ALL
    assert "tree/a" not in held(memory)
    upload(memory, plan({"a": b"1"}))
    assert whole(memory) == {"a": 1}
    assert held(memory).keys() == {"tree/a"}


@pytest.mark.parametrize("path", ["tree", "tree/inside"])
def test_another_upload_to_the_place_takes_the_parts_away(memory: MemorySink, path: str) -> None:
    upload(memory, shard(0), shard(1))
    upload(memory, plan({"x": b"1"}, path))
    assert notes(memory) == []
    upload(memory, shard(2))
    assert manifest_in(memory) is None


def test_an_upload_beside_it_leaves_the_parts(memory: MemorySink) -> None:
    upload(memory, shard(0), shard(1), plan({"x": b"1"}, "beside"), shard(2))
    assert whole(memory) == ALL


# -- odd shares --------------------------------------------------------------------------------------------------------


def test_a_rank_may_have_no_files(memory: MemorySink, tmp_path: Any) -> None:
    nothing = plan_tree(RUN, "tree", tmp_path, share=Share(1, 3, "s1"))
    upload(memory, shard(0), nothing, shard(2))
    assert whole(memory) == {"0.bin": 1, "2.bin": 3}


def test_ranks_that_all_have_no_files_are_an_error(memory: MemorySink, tmp_path: Any) -> None:
    upload(memory, plan_tree(RUN, "tree", tmp_path, share=Share(0, 2, "s1")))
    with pytest.raises(TransferError) as caught:
        upload(memory, plan_tree(RUN, "tree", tmp_path, share=Share(1, 2, "s1")))
    assert isinstance(caught.value.failures[MANIFEST], EmptyTree)
    assert whole(memory) is None


def test_a_job_of_one_rank_is_an_upload_like_any_other(memory: MemorySink, tmp_path: Any) -> None:
    (tmp_path / "a").write_bytes(b"1")
    upload(memory, plan_tree(RUN, "tree", tmp_path, share=Share(0, 1, "s1")))
    assert whole(memory) == {"a": 1}
    assert list_committed(memory, RUN)[0].details == {}


def test_two_ranks_with_a_file_of_one_name_are_an_error_and_nothing_is_there(memory: MemorySink) -> None:
    upload(memory, shard(0), shard(1))
    with pytest.raises(TransferError) as caught:
        upload(memory, replace(plan({"0.bin": b"mine"}), share=Share(2, 3, "s1")))
    assert isinstance(caught.value.failures[MANIFEST], ShardConflict)
    assert "tree/0.bin was uploaded by rank 0 and by rank 2" in str(caught.value)
    assert whole(memory) is None
    upload(memory, shard(2))
    assert whole(memory) is None  # rank 0's bytes are gone
    upload(memory, shard(0))
    assert whole(memory) == ALL


def test_a_rank_that_takes_back_a_file_of_anothers_name_is_noticed(memory: MemorySink) -> None:
    upload(memory, shard(0, b"1"), replace(plan({"0.bin": b"2"}), share=Share(2, 3, "s1")), shard(2))
    with pytest.raises(TransferError):
        upload(memory, shard(1))
    assert whole(memory) is None
    upload(memory, shard(0))
    assert whole(memory) == ALL


@pytest.mark.parametrize(
    ("rank", "world_size", "session"),
    [(3, 3, "s"), (-1, 3, "s"), (0, 0, "s"), (0, -1, "s"), (True, 2, "s"), (0, True, "s"), ("0", 2, "s"), (0, 2, "")],
)
def test_a_share_that_cannot_be_is_refused(rank: Any, world_size: Any, session: Any) -> None:
    with pytest.raises(ConfigError):
        Share(rank, world_size, session)


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["put", "stat", "open", "list", "delete"])
@pytest.mark.parametrize("call", range(1, 7))
def test_a_store_that_fails_once_in_any_call_costs_nothing(memory: MemorySink, operation: Any, call: int) -> None:
    upload(memory, plan({"old": b"old"}))
    for rank in range(3):
        faulty = FaultySink(memory, fails(operation, TransientSinkError("busy"), nth=call), notes=True)
        upload(faulty, shard(rank))
    assert whole(memory) == ALL
    assert notes(memory) == []


def test_any_rank_may_die_at_any_call_and_start_again(memory: MemorySink, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that fails for good at its nth call does nothing more, as one that was killed; what it left is there."""
    deaths = 0
    for operation, call, rank in itertools.product(("put", "delete"), range(1, 8), range(3)):
        sink = MemorySink(f"{memory.name}-{operation}-{call}-{rank}")
        upload(sink, *(shard(number, b"old", session="s0") for number in range(3)))
        for number in range(3):
            if number == rank:
                dies = FaultySink(sink, *(fails(operation, NOBODY, nth=n) for n in range(call, 100)), notes=True)
                with monkeypatch.context() as patch:
                    patch.setattr(turns, "me", lambda: f"{me().partition('-')[0]}-{1 << 30}-1")  # of a dead process
                    try:
                        upload(dies, shard(number, b"new"))
                    except (TransferError, SinkError):
                        deaths += 1
                assert whole(sink) in (None, OLD, NEW)
            upload(sink, shard(number, b"new"))
            assert whole(sink) in (None, OLD, NEW)
        assert whole(sink) == NEW
        assert not any("/part." in name for name in notes(sink))
    assert deaths >= 12


OLD = NEW = {"0.bin": 3, "1.bin": 6, "2.bin": 9}


@pytest.mark.parametrize("again", range(3))
@pytest.mark.parametrize("removed", range(1, 4))
def test_whoever_starts_again_takes_away_what_was_left_after_the_commit(
    memory: MemorySink, removed: int, again: int
) -> None:
    upload(memory, shard(0, b"0"), shard(1, b"0"), shard(2, b"0"))
    upload(memory, shard(0, session="s2"), shard(1, session="s2"))
    left = {stored.key: memory.open(stored.key).read() for stored in memory.list(RUN, NOTES_FOLDER)}
    upload(memory, shard(2, session="s2"))
    for key in sorted(left)[removed - 1 :]:  # as if the process had been killed while it removed them
        memory.put(key, MemorySource(left[key]))
    upload(memory, shard(again, session="s2"))
    assert whole(memory) == ALL
    assert notes(memory) == []


def test_ranks_remove_what_an_upload_that_was_killed_before_them_left(memory: MemorySink) -> None:
    upload(memory, plan({"0.bin": b"0", "old.bin": b"old"}))
    killed = Failing(memory, {"tree/new.bin": [NOBODY]})
    with pytest.raises(TransferError):
        upload(killed, plan({"0.bin": b"1", "new.bin": b"new"}))
    assert manifest_in(memory) is None
    upload(memory, shard(0), shard(1), shard(2))
    assert whole(memory) == ALL
    assert "tree/old.bin" not in held(memory)
    assert notes(memory) == []


def test_a_shard_that_the_store_has_lost_meanwhile_is_not_vouched_for(memory: MemorySink) -> None:
    upload(memory, shard(0), shard(1))
    memory.delete(ArtifactKey(RUN, "tree/0.bin"))
    with pytest.raises(TransferError) as caught:
        upload(memory, shard(2))
    assert isinstance(caught.value.failures[MANIFEST], VerificationError)
    upload(memory, shard(0))
    assert whole(memory) == ALL


def test_a_part_that_is_damaged_is_not_believed(memory: MemorySink) -> None:
    upload(memory, shard(0), shard(1))
    (damaged,) = [note for note in Notes(memory, RUN).list() if note.kind == "part" and note.rest == ("000000",)]
    Notes(memory, RUN).put(damaged, b'{"format": "stagesink.manifest/1"}')
    with pytest.raises(TransferError):
        upload(memory, shard(2))
    assert whole(memory) is None
    upload(memory, shard(0))
    assert whole(memory) == ALL


def test_ranks_in_any_order_again_and_again(memory: MemorySink) -> None:
    chance = random.Random(20240301)
    for number in range(30):
        ranks = chance.randint(2, 4)
        order = [rank for rank in range(ranks) for _ in range(chance.choice([1, 1, 2]))]
        chance.shuffle(order)
        for rank in order:
            upload(memory, shard(rank, bytes([number]), ranks, f"s{number}"))
        assert whole(memory) == {f"{rank}.bin": rank + 1 for rank in range(ranks)}
        assert notes(memory) == []
