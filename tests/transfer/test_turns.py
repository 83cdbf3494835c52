"""Whose turn it is: one writer at a place, those who died, and those who were only slow."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from outside import running, said, tell
from parts import QUICK, RUN, held, manifest_in, plan

from stagesink.artifacts import NOTES_FOLDER, ArtifactKey, MemorySource, Source, StoredArtifact
from stagesink.errors import (
    DeleteNotSupported,
    MissingExtra,
    NameRefused,
    SinkAuthError,
    SinkConflict,
    TransferCancelled,
    TransferError,
    TransientSinkError,
)
from stagesink.manifest import ManifestEntry
from stagesink.sinks.memory import MemorySink
from stagesink.sinks.protocol import ArtifactSink, OnBytes
from stagesink.testing import FaultySink, fails
from stagesink.transfer import Plan, Transfer, alive, list_committed, turns, verify
from stagesink.transfer.alive import is_dead, me
from stagesink.transfer.notes import ALONE, Note, Notes, place_of
from stagesink.transfer.read import list_objects
from stagesink.transfer.retry import RetryPolicy
from stagesink.transfer.share import Share
from stagesink.transfer.turns import Turn

MANIFEST = "tree.manifest.json"


def turn(sink: ArtifactSink, *paths: str, group: str = ALONE, patience: float = 0.0) -> Turn:
    cancel = threading.Event()
    return Turn(sink, RUN, paths or ("tree",), RetryPolicy(QUICK, cancel), cancel, patience, group)


@contextmanager
def writing(sink: ArtifactSink, *paths: str, group: str = ALONE) -> Iterator[Turn]:
    """Somebody else, who writes there until the block ends."""
    other = turn(sink, *paths, group=group)
    other.announce()
    assert other.wait() is True
    try:
        yield other
    finally:
        other.end()


def notes(sink: ArtifactSink) -> list[Note]:
    return Notes(sink, RUN).list()


def wait_until_it_waits(sink: FaultySink, writer: threading.Thread) -> None:
    """Wait until a writer has looked for others more than once."""
    while sink.calls.get("list", 0) < 3 and writer.is_alive():
        time.sleep(0.001)
    assert writer.is_alive()


def elsewhere(sink: ArtifactSink, *paths: str) -> Note:
    """Leave the note of a writer on another machine, of which nobody here can tell whether it lives."""
    note = Note("turn", place_of(paths or ("tree",)), ALONE, ("0a1b2c3d4e5f-77-1", f"{1:016x}abcdef01", "1"))
    Notes(sink, RUN).put(note, b"{}")
    return note


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A note is stale after a fifth of a second."""
    monkeypatch.setattr(turns, "STALE_SECONDS", 0.2)


# -- who waits for whom ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ("tree", "tree", True),
        ("tree", "tree/inside/deep", True),
        ("tree/inside", "tree", True),
        ("a/b", "a/c", False),
        ("tree", "trees", False),
        ("best.tar.gz", "best_manifest.json", True),
        ("tree", "tree.manifest.json", True),
        ("/".join("abcdefghijklmnop"), "/".join("abcdefghijklmnox"), True),  # that deep, one is as good as another
    ],
)
def test_writers_meet_where_one_path_is_the_other_or_lies_in_it(one: str, other: str, meet: bool) -> None:
    note = Note("turn", place_of([one]), ALONE, ())
    assert note.meets(place_of([other])) is meet
    assert note.meets(place_of([one, other])) is True  # several take the whole run


def test_nothing_of_a_turn_stays(memory: MemorySink) -> None:
    Transfer(memory, QUICK).run(plan({"a": b"1"}))
    assert [stored.key.path for stored in memory.list(RUN, NOTES_FOLDER)] == []


def test_a_second_writer_waits_until_the_first_has_ended(memory: MemorySink) -> None:
    order: list[str] = []
    with writing(memory):
        asking = FaultySink(memory, notes=True)

        def upload() -> None:
            Transfer(asking, QUICK).run(plan({"a": b"1"}))
            order.append("second")

        second = threading.Thread(target=upload)
        second.start()
        wait_until_it_waits(asking, second)
        assert manifest_in(memory) is None
        order.append("first")
    second.join()
    assert order == ["first", "second"]
    assert manifest_in(memory) is not None


def test_writers_at_other_places_do_not_wait(memory: MemorySink) -> None:
    with writing(memory, "other"), writing(memory, "tree2"), writing(memory, "a/tree"):
        Transfer(memory, QUICK).run(plan({"a": b"1"}))


def test_those_of_one_group_do_not_wait_for_each_other_but_for_others(memory: MemorySink, impatient: None) -> None:
    with writing(memory, group="g+1"), writing(memory, group="g+2"):
        for group in (ALONE, "h+1", "h+3", "g+1"):  # the last is the same one twice
            with pytest.raises(SinkConflict), writing(memory, group=group):
                pass


@pytest.mark.parametrize("writers", [2, 8])
def test_many_at_once_get_their_turns_one_after_the_other(memory: MemorySink, writers: int) -> None:
    inside = threading.Semaphore(1)
    mixed: list[int] = []
    start = threading.Barrier(writers)

    def work(number: int) -> None:
        start.wait()
        mine = turn(memory, patience=60)
        mine.announce()
        mine.wait()
        if not inside.acquire(blocking=False):
            mixed.append(number)
        else:
            time.sleep(0.002)
            inside.release()
        mine.end()

    threads = [threading.Thread(target=work, args=[number]) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mixed == []
    assert notes(memory) == []


def test_what_another_did_meanwhile_counts(memory: MemorySink) -> None:
    """Asked while the other writes, the store tells of what is gone when it is this one's turn."""
    Transfer(memory, QUICK).run(plan({"a": b"old"}))
    with writing(memory):
        asking = FaultySink(memory, notes=True)
        late = threading.Thread(target=lambda: Transfer(asking, QUICK).run(plan({"a": b"new"})))
        late.start()
        wait_until_it_waits(asking, late)
        memory.put(ArtifactKey(RUN, "tree/a"), MemorySource(b"other"))
        memory.put(ArtifactKey(RUN, "tree/b"), MemorySource(b"other"))
        with memory.open(ArtifactKey(RUN, MANIFEST)) as stream:
            assert b"old" not in stream.read()
        other = plan({"a": b"other", "b": b"other"})
        keys = {item.key: (5, "0" * 64) for item in other.objects}
        memory.put(ArtifactKey(RUN, MANIFEST), MemorySource(other.manifest(keys).to_bytes()))
    late.join()
    assert held(memory) == {"tree/a": b"new"}  # the other's file is known, and removed


def test_what_another_commits_just_before_its_turn_ends_is_known(memory: MemorySink) -> None:
    """The other ends after this one has put its note and before it lists: nobody is met, and much has changed."""
    other = turn(memory)
    other.announce()
    other.wait()

    class Late(FaultySink):
        def list(self, run_id: str, prefix: str = "") -> Iterator[StoredArtifact]:
            if prefix == NOTES_FOLDER and other.is_mine:
                asked.wait(0.3)  # for anything that does not wait for this listing
                added = plan({"b": b"theirs"})
                memory.put(ArtifactKey(RUN, "tree/b"), MemorySource(b"theirs"))
                digests = {item.key: (6, hashlib.sha256(b"theirs").hexdigest()) for item in added.objects}
                memory.put(ArtifactKey(RUN, MANIFEST), MemorySource(added.manifest(digests).to_bytes()))
                other.end()
            return super().list(run_id, prefix)

        def open(self, key: ArtifactKey) -> Any:
            try:
                return super().open(key)
            finally:
                asked.set()

    asked = threading.Event()
    Transfer(Late(memory, notes=True), QUICK).run(replace(plan({"a": b"mine"}), adds=True))
    (manifest,) = list_committed(memory, RUN)
    assert {entry.path for entry in manifest.files} == {"a", "b"}


def test_one_who_goes_on_writing_is_a_conflict_that_says_who(memory: MemorySink, impatient: None) -> None:
    with writing(memory), pytest.raises(TransferError) as caught:
        Transfer(memory, replace(QUICK, budget=0.1)).run(plan({"a": b"1"}))
    (error,) = caught.value.failures.values()
    assert isinstance(error, SinkConflict)
    assert re.search(rf"being written by somebody else: process {os.getpid()} on '.+', since '20", error.message)
    assert [receipt.status for receipt in caught.value.receipts] == ["failed"]
    assert notes(memory) == []


def test_a_wait_ends_with_ctrl_c(memory: MemorySink) -> None:
    mine = turn(memory, patience=60)
    with writing(memory):
        mine.announce()
        mine._cancel.set()
        with pytest.raises(TransferCancelled):
            mine.wait()
        assert len(notes(memory)) == 1


# -- who died ----------------------------------------------------------------------------------------------------------


def test_the_note_of_a_dead_process_of_this_machine_is_removed_at_once(memory: MemorySink) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    name = f"{me().partition('-')[0]}-{dead.pid}-1"
    while not is_dead(name):  # before anybody has asked how it ended, too
        time.sleep(0.001)
    dead.wait()
    Notes(memory, RUN).put(Note("turn", place_of(["tree"]), ALONE, (name, "0", "1")), b"{}")
    Transfer(memory, QUICK).run(plan({"a": b"1"}))
    assert notes(memory) == []


def test_a_process_is_not_dead_while_it_lives_and_is_when_its_id_has_another() -> None:
    machine, pid, started = me().split("-")
    assert is_dead(me()) is False
    assert is_dead(f"{machine}-{pid}-{int(started) + 1}") is True
    assert is_dead(f"0123456789ab-{pid}-{int(started) + 1}") is False  # of another machine
    assert is_dead(f"{machine}-{pid}-0") is False  # nobody knew when it had started
    assert is_dead("nonsense") is False


def test_where_nobody_can_tell_the_machine_no_two_processes_have_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alive, "_machine", lambda: alive._ANY)
    monkeypatch.setattr(alive, "_started", lambda pid: None)
    program = "from stagesink.transfer import alive; print(alive._ANY)"
    theirs = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    assert me().startswith(f"{alive._ANY}-")
    assert theirs != alive._ANY
    for name in (me(), f"{theirs}-{os.getpid()}-0", f"{theirs}-999999999-0"):
        assert is_dead(name) is False


def test_a_note_from_elsewhere_that_does_not_change_is_stale_in_the_end(memory: MemorySink, impatient: None) -> None:
    elsewhere(memory)
    Transfer(memory, QUICK).run(plan({"a": b"1"}))
    assert notes(memory) == []
    assert manifest_in(memory) is not None


def test_a_writer_that_takes_long_is_not_taken_for_dead(memory: MemorySink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "STALE_SECONDS", 1.0)
    with writing(memory) as other:
        first = notes(memory)
        with pytest.raises(SinkConflict), writing(memory):
            pass  # after one and a half times as long as a note may stay unchanged
        other.check()
        assert notes(memory) != first


def test_a_writer_that_was_taken_for_dead_does_not_commit(memory: MemorySink) -> None:
    class Sleeping(FaultySink):
        """While it puts, others take it for dead."""

        def put(self, key: ArtifactKey, source: Source, *, on_bytes: OnBytes | None = None) -> StoredArtifact:
            if key.path == "tree/a":
                for note in notes(memory):
                    Notes(memory, RUN).remove(note)
                sleeper["turn"]._since -= 2 * turns.STALE_SECONDS
            return super().put(key, source, on_bytes=on_bytes)

    sleeper: dict[str, Turn] = {}
    announce = Turn.announce

    def remember(self: Turn) -> None:
        sleeper["turn"] = self
        announce(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Turn, "announce", remember)
        with pytest.raises(TransferError) as caught:
            Transfer(Sleeping(memory), QUICK).run(plan({"a": b"1"}))
    assert isinstance(caught.value.failures[MANIFEST], SinkConflict)
    assert manifest_in(memory) is None
    assert notes(memory) == []


STALLS = """
    import sys
    from stagesink.artifacts import ArtifactKey, MemorySource
    from stagesink.sinks.local import LocalSink
    from stagesink.transfer import Plan, Transfer
    from stagesink.transfer.plan import PlannedObject

    class Stalling(LocalSink):
        def put(self, key, source, *, on_bytes=None):
            if key.path == "tree/a":
                print("there", flush=True)
                sys.stdin.readline()
            return super().put(key, source, on_bytes=on_bytes)

    item = PlannedObject(ArtifactKey("run", "tree/a"), MemorySource(b"1"), 1)
    Transfer(Stalling(sys.argv[1])).run(Plan("run", "tree", "tree", (item,)))
    print("done", flush=True)
"""


def test_a_process_that_writes_keeps_another_process_waiting_and_its_death_lets_it_go_on(tmp_path: Any) -> None:
    from stagesink.sinks.local import LocalSink

    sink = LocalSink(tmp_path)
    with running(STALLS, tmp_path) as first:
        assert said(first) == "there"
        asking = FaultySink(sink, notes=True)
        waiting = threading.Thread(target=lambda: Transfer(asking, QUICK).run(plan({"a": b"second"})))
        waiting.start()
        wait_until_it_waits(asking, waiting)
        assert manifest_in(sink) is None
        first.kill()
        waiting.join()
    assert held(sink) == {"tree/a": b"second"}
    assert notes(sink) == []


def test_a_process_that_writes_is_waited_for(tmp_path: Any) -> None:
    from stagesink.sinks.local import LocalSink

    sink = LocalSink(tmp_path)
    with running(STALLS, tmp_path) as first:
        assert said(first) == "there"
        asking = FaultySink(sink, notes=True)
        waiting = threading.Thread(target=lambda: Transfer(asking, QUICK).run(plan({"a": b"second"})))
        waiting.start()
        wait_until_it_waits(asking, waiting)
        tell(first)
        assert said(first) == "done"
        waiting.join()
    assert held(sink) == {"tree/a": b"second"}


@pytest.mark.parametrize("others", [0, 1])
def test_what_a_journal_says_counts_only_if_nobody_else_has_written_since(memory: MemorySink, others: int) -> None:
    what = plan({"a": b"mine", "b": b"mine too"})

    def dying(sink: MemorySink, call: int) -> FaultySink:
        return FaultySink(sink, fails("put", SinkAuthError("killed"), nth=call))

    landed: list[ManifestEntry] = []

    def journal(receipt: Any) -> None:
        landed.append(ManifestEntry(receipt.key.path, receipt.size, receipt.sha256))

    with pytest.raises(TransferError):
        Transfer(dying(memory, 2), replace(QUICK, workers=1), on_landed=journal).run(what)
    assert len(landed) == 1
    for _ in range(others):  # of the same names and sizes, and it dies as well
        with pytest.raises(TransferError):
            Transfer(dying(memory, 2), replace(QUICK, workers=1)).run(plan({"a": b"hers", "b": b"hers too"}))
    receipts = Transfer(memory, QUICK, on_landed=journal).run(replace(what, landed=tuple(landed)))
    assert sorted(receipt.status for receipt in receipts) == (["uploaded"] * 2 if others else ["unchanged", "uploaded"])
    assert held(memory) == {"tree/a": b"mine", "tree/b": b"mine too"}
    assert notes(memory) == []


def test_a_mark_that_outlived_its_upload_goes_with_the_next_one_that_finds_all_there(memory: MemorySink) -> None:
    busy = FaultySink(memory, fails("delete", TransientSinkError("busy")), notes=True)
    with pytest.raises(TransferError):  # committed, and could not clear up
        Transfer(busy, replace(QUICK, attempts=1), on_landed=lambda receipt: None).run(plan({"a": b"one", "b": b"two"}))
    assert manifest_in(memory) is not None
    assert [note for note in notes(memory) if note.rest == ("landing",)]
    # The same bytes from other files: a kept upload has copies of its own once it has waited.
    copies = plan({"a": bytes(bytearray(b"one")), "b": bytes(bytearray(b"two"))})
    Transfer(memory, QUICK, on_landed=lambda receipt: None).run(copies)
    assert notes(memory) == []


@pytest.mark.parametrize("second", ["replaces", "adds", "is a rank"])
def test_what_a_killed_addition_left_is_not_vouched_for_once_another_has_changed_it(
    memory: MemorySink, second: str
) -> None:
    """Three in a row, of which the first two die: the last adds, and must not trust what the second has changed."""
    Transfer(memory, QUICK).run(plan({"a": b"old", "b": b"old", "c": b"old"}))

    def dies(what: Plan) -> None:
        """At its second file; or at its manifest, if it has one file."""
        faulty = FaultySink(memory, fails("put", SinkAuthError("killed"), nth=2))
        with pytest.raises(TransferError):
            Transfer(faulty, replace(QUICK, workers=1)).run(what)

    dies(replace(plan({"a": b"new", "new": b"1"}), adds=True))
    changed = plan({"b": b"new", "c": b"new"})
    dies(
        {
            "replaces": changed,
            "adds": replace(changed, adds=True),
            "is a rank": replace(changed, share=Share(0, 2, "s")),
        }[second]
    )
    Transfer(memory, QUICK).run(replace(plan({"d": b"2"}), adds=True))
    committed = list_committed(memory, RUN)
    assert [check for check in verify(memory, committed) if check.status != "ok"] == []
    assert "d" in {entry.path for entry in committed[0].files}
    assert notes(memory) == []


# -- stores with less --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [DeleteNotSupported("no"), SinkAuthError("no")])
def test_where_nothing_can_be_removed_a_note_is_left_empty_and_counts_as_none(
    memory: MemorySink, error: Exception
) -> None:
    sink = FaultySink(memory, fails("delete", error), notes=True)
    for data in (b"1", b"2"):
        Transfer(sink, QUICK).run(plan({"a": data})) if data == b"1" else Transfer(sink, QUICK).run(
            plan({"b": data}, "x")
        )
    assert notes(memory) == []
    assert {stored.size for stored in memory.list(RUN, NOTES_FOLDER)} == {0}
    assert not any(stored.key.path.startswith(NOTES_FOLDER) for stored in list_objects(memory, RUN))


def test_where_the_sink_knows_that_it_cannot_remove_no_note_is_left(memory: MemorySink, impatient: None) -> None:
    class Lasting(FaultySink):
        def removes(self, run_id: str) -> bool:
            return False

    sink = Lasting(memory, fails("delete", DeleteNotSupported("no")), notes=True)
    Transfer(sink, QUICK).run(plan({"a": b"1"}))
    assert list(memory.list(RUN, NOTES_FOLDER)) == []
    with writing(memory), pytest.raises(TransferError):  # but those of others are heeded
        Transfer(sink, replace(QUICK, budget=0.0)).run(plan({"a": b"2"}))


@pytest.mark.parametrize("error", [TransientSinkError("busy"), MissingExtra("no package")], ids=["busy", "no package"])
def test_a_note_that_cannot_be_removed_at_the_end_fails_no_upload(
    memory: MemorySink, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    caplog.set_level("INFO")
    sink = FaultySink(memory, fails("delete", error), notes=True)
    Transfer(sink, QUICK).run(plan({"a": b"1"}))
    assert manifest_in(memory) is not None
    assert "next upload to run/tree may wait 60 s" in caplog.text


def test_a_note_that_stayed_keeps_its_own_process_from_nothing(memory: MemorySink, impatient: None) -> None:
    sink = FaultySink(memory, fails("delete", TransientSinkError("busy")), notes=True)
    Transfer(sink, QUICK).run(plan({"a": b"1"}))
    Transfer(memory, QUICK).run(plan({"a": b"2"}))
    assert list(memory.list(RUN, NOTES_FOLDER)) == []


@pytest.mark.parametrize("path", [NOTES_FOLDER, f"{NOTES_FOLDER}/a"])
def test_nothing_can_be_uploaded_where_the_notes_are(memory: MemorySink, path: str) -> None:
    with pytest.raises(TransferError) as caught:
        Transfer(memory, QUICK).run(plan({"a": b"1"}, path))
    assert isinstance(caught.value.failures[path], NameRefused)
    assert list(memory.list(RUN)) == []


def test_notes_that_are_none_of_ours_are_left_alone(memory: MemorySink) -> None:
    keys = [ArtifactKey(RUN, f"{NOTES_FOLDER}/{name}") for name in ("turn", "turn.x.y", "else.a.b.c.d", "a/b")]
    for key in keys:
        memory.put(key, MemorySource(b"?"))
    Transfer(memory, QUICK).run(plan({"a": b"1"}))
    assert sorted(stored.key.path for stored in memory.list(RUN, NOTES_FOLDER)) == sorted(key.path for key in keys)


# -- what it costs -----------------------------------------------------------------------------------------------------


class Together(FaultySink):
    """Each call of a pair waits until the other is under way, too; all calls are listed."""

    def __init__(self, inner: ArtifactSink, *pairs: set[str]) -> None:
        super().__init__(inner, notes=True)
        self.asked: list[str] = []
        self._pairs = [(pair, threading.Barrier(2, timeout=20)) for pair in pairs]

    def _begin(self, operation: Any, path: str) -> Any:
        what = f"{operation} {NOTES_FOLDER if path.startswith(NOTES_FOLDER) else path}"
        self.asked.append(what)
        for pair, barrier in self._pairs:
            if what in pair:
                barrier.wait()
        return super()._begin(operation, path)


def test_a_turn_costs_three_requests_of_which_one_goes_beside_another(memory: MemorySink) -> None:
    sink = Together(memory, {f"delete {NOTES_FOLDER}", f"stat {MANIFEST}"})
    Transfer(sink, QUICK).run(plan({"a": b"1"}))
    before = [f"put {NOTES_FOLDER}", f"list {NOTES_FOLDER}", f"open {MANIFEST}"]
    assert sink.asked[:6] == [*before, "put tree/a", "stat tree/a", f"put {MANIFEST}"]
    assert len(sink.asked) == 8


def test_no_name_of_a_turn_begins_with_another_of_its_names(memory: MemorySink) -> None:
    """Some servers remove whatever begins with the name that they are told."""
    mine = turn(memory)
    names = [mine._next_note().path for _ in range(120)]
    assert not [(one, other) for one in names for other in names if one != other and other.startswith(one)]
