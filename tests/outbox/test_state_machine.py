"""The outbox against a model: any order of uploads, failures, syncs, crashes and damage, and nothing is lost.

The trainer's files and the outbox are real; the backend is memory that fails to order. A crash is a process that can do
nothing any more: from a chosen call on, each one that changes the disk or the backend raises. What it held in memory is
gone, then another one opens the same folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from stagesink import ArtifactUploader, keeping
from stagesink.artifacts import ArtifactKey, lies_under
from stagesink.errors import SourceChanged, TransientSinkError
from stagesink.manifest import Manifest, is_manifest_path
from stagesink.outbox import index
from stagesink.outbox.entry import Entry
from stagesink.outbox.settings import OutboxSettings
from stagesink.outbox.store import Outbox
from stagesink.outbox.sync import Outcome, Sync
from stagesink.sinks.memory import MemorySink
from stagesink.testing import FaultySink, fails, loses_reply
from stagesink.transfer import Plan, TransferOptions, plan_file, plan_tree

_RUN = "run1"
_ONCE = TransferOptions(workers=2, attempts=1, initial=0.0, budget=1.0)
_NOTES = ".stagesink"  # where writers leave notes for each other
_TREE = ("weights.bin", "optimizer/state.bin")
_LINK_FROM = 64  # bytes, so that small files are linked here as large ones are
_CALLS = ("rename", "replace", "unlink", "rmdir", "mkdir", "link", "fsync")

Kind = Literal["tree", "file", "adds"]


class _Killed(BaseException):
    """SIGKILL, as far as one process can play it."""


class _Gate:
    """Counts what changes the disk or the backend, and from a chosen call on lets nothing through."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.after = False

    def __call__(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if self.left is None or threading.current_thread().name == "stagesink-outbox":  # what another test has begun
            return call(*args, **options)
        self.left -= 1
        if self.left > 0:
            return call(*args, **options)
        if self.left == 0 and self.after:
            call(*args, **options)
        raise _Killed


class _Connection(sqlite3.Connection):
    gate: _Gate

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        if statement == "COMMIT":
            return self.gate(super().execute, statement, *values)  # type: ignore[no-any-return]
        return super().execute(statement, *values)


class _GatedSink(FaultySink):
    def __init__(self, gate: _Gate, inner: MemorySink) -> None:
        super().__init__(inner)
        self.gate = gate

    def put(self, *args: Any, **options: Any) -> Any:
        return self.gate(super().put, *args, **options)

    def delete(self, *args: Any) -> None:
        self.gate(super().delete, *args)


@dataclass
class _Call:
    """One upload the trainer has asked for.

    ``returned`` is False when the process died in it: it may have happened, or not, or half. ``lost``: it was kept by
    links, and then the trainer wrote into the files, which takes it back.
    """

    kind: Kind
    path: str
    files: dict[str, bytes]
    returned: bool = False
    lost: bool = False
    entry: Entry | None = None


Possible = dict[str, set[bytes | None]]


def _expected(calls: list[_Call]) -> Possible:
    """Return what may lie at each path once everything has landed: what the calls in their order have left there."""
    found: Possible = {}
    named: set[str] = set()  # what the tree's manifest names, and what it may name
    perhaps: set[str] = set()
    for call in calls:
        if call.lost:
            continue
        gone = (named | perhaps) - call.files.keys() if call.kind == "tree" else set()
        if call.returned:
            found.update({path: {data} for path, data in call.files.items()})
            found.update({path: {None} for path in gone & named})
        else:
            for path, data in call.files.items():
                found[path] = found.get(path, {None}) | {data}
        for path in gone if not call.returned else gone - named:
            found[path] = found.get(path, {None}) | {None}
        if call.kind == "file":
            continue
        if not call.returned:
            named, perhaps = set(), named | perhaps | call.files.keys()
        elif call.kind == "tree":
            named, perhaps = set(call.files), set()
        else:
            named = named | call.files.keys()
    return found


class OutboxMachine(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="outbox-machine-"))
        self.trainer = self.home / "train"
        self.settings = OutboxSettings(path=str(self.home / "outbox"), keep_free=0)
        self.gate = _Gate()
        self.memory = MemorySink(uuid.uuid4().hex)
        self.sink = _GatedSink(self.gate, self.memory)
        self.calls: list[_Call] = []
        self.lost: set[str] = set()
        self.written = 0
        self.patches = [mock.patch("stagesink.outbox.store.LINK_FROM", _LINK_FROM)]
        self.patches += [mock.patch.object(os, name, partial(self.gate, getattr(os, name))) for name in _CALLS]
        # One call at a time: whoever left a note in the backend is one of those that were killed.
        self.patches += [mock.patch("stagesink.transfer.turns.is_dead", return_value=True)]
        connection = type("Gated", (_Connection,), {"gate": self.gate})
        self.patches += [mock.patch.object(index.sqlite3, "connect", partial(sqlite3.connect, factory=connection))]
        self.patches += [mock.patch.dict(os.environ, self._environment())]
        for patch in self.patches:
            patch.start()
        for name in (*_TREE, "metrics.json", "note.txt"):
            self._put_file(name)
        self.outbox = self._opened()

    def _environment(self) -> dict[str, str]:
        return {"STAGESINK_OUTBOX_PATH": self.settings.path, "STAGESINK_OUTBOX_KEEP_FREE": "0"}

    # -- the trainer's files -----------------------------------------------------------------------------------------

    def _bytes(self) -> bytes:
        self.written += 1
        return f"{self.written}:".encode() * (40 + self.written)  # of another size each time: no clock is so fine

    def _put_file(self, name: str) -> None:
        target = self.trainer / name
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f"{target.name}.new")
        fresh.write_bytes(self._bytes())
        os.replace(fresh, target)

    @rule(name=st.sampled_from([*_TREE, "metrics.json", "note.txt"]))
    def rotate(self, name: str) -> None:
        self._put_file(name)

    @rule(name=st.sampled_from([*_TREE, "metrics.json", "note.txt"]))
    def rewrite_in_place(self, name: str) -> None:
        if not (self.trainer / name).exists():
            return
        inode = os.stat(self.trainer / name).st_ino
        (self.trainer / name).write_bytes(self._bytes())
        for entry in self.outbox.entries():
            if any(file.how == "link" and file.fingerprint.inode == inode for file in entry.files):
                self.lost.add(entry.id)
                for call in self.calls:
                    call.lost = call.lost or (call.entry is not None and call.entry.id == entry.id)

    @rule()
    def delete_the_tree(self) -> None:
        shutil.rmtree(self.trainer, ignore_errors=True)
        for name in (*_TREE, "metrics.json", "note.txt"):
            self._put_file(name)

    # -- uploads -----------------------------------------------------------------------------------------------------

    def _read(self, kind: Kind) -> tuple[str, dict[str, bytes]]:
        if kind == "tree":
            return "ckpt", {f"ckpt/{name}": (self.trainer / name).read_bytes() for name in _TREE}
        if kind == "adds":
            return "ckpt", {"ckpt/note.txt": (self.trainer / "note.txt").read_bytes()}
        return "metrics.json", {"metrics.json": (self.trainer / "metrics.json").read_bytes()}

    def _plan(self, kind: Kind) -> Plan:
        if kind == "tree":
            return plan_tree(_RUN, "ckpt", self.trainer, include=_TREE)
        if kind == "adds":
            return replace(plan_tree(_RUN, "ckpt", self.trainer, include=["note.txt"]), adds=True)
        return plan_file(_RUN, "metrics.json", self.trainer / "metrics.json")

    @rule(kind=st.sampled_from(["tree", "file", "adds"]))
    def upload(self, kind: Kind) -> None:
        plan = self._plan(kind)
        call = _Call(kind, *self._read(kind))
        self.calls.append(call)
        before = {row.id for row in self.outbox.rows()}
        uploader = ArtifactUploader(_RUN, sink=self.sink, attempts=1, initial=0.0, progress="none", workers=2)
        landed = uploader.upload_plan(plan)
        call.returned = True
        if landed:
            assert {path: self._in_sink(path) for path in call.files} == call.files
        else:
            kept = [row for row in self.outbox.rows() if row.id not in before]
            assert [row.path for row in kept] == [call.path], uploader.errors

    @rule(kind=st.sampled_from(["tree", "file", "adds"]))
    def keep_quickly(self, kind: Kind) -> None:
        plan = self._plan(kind)
        call = _Call(kind, *self._read(kind))
        self.calls.append(call)
        call.entry = self.outbox.keep(plan, self.sink.uri, quick=True)
        call.returned = True

    @rule(own=st.booleans())
    def settle(self, own: bool) -> None:
        for call in self.calls:
            if call.entry is None or (entry := self.outbox.entry(call.entry.id)) is None:
                continue
            self.outbox.settle(entry)
            if own:
                try:
                    call.entry = self.outbox.own(entry)
                except SourceChanged:
                    assert call.lost

    # -- landing -----------------------------------------------------------------------------------------------------

    def _sync(self) -> list[Outcome]:
        with Sync(self.outbox, lambda uri: self.sink, _ONCE) as sync:
            outcomes = list(sync.run())
        for outcome in outcomes:
            if outcome.status == "landed":
                assert self.outbox.entry(outcome.row.id) is None
        return outcomes

    @rule()
    def sync(self) -> None:
        self._sync()

    @rule(nth=st.integers(1, 6))
    def sync_with_a_failing_object(self, nth: int) -> None:
        call = self.sink.calls.get("put", 0) + nth
        with self._faults(fails("put", TransientSinkError("busy"), nth=call)):
            self._sync()

    @rule(kind=st.sampled_from(["tree", "file", "adds"]), nth=st.integers(1, 6), after=st.booleans())
    def upload_with_a_failing_object(self, kind: Kind, nth: int, after: bool) -> None:
        call = self.sink.calls.get("put", 0) + nth
        fault = loses_reply if after else fails
        with self._faults(fault("put", TransientSinkError("busy"), nth=call)):
            self.upload(kind)

    @rule(kind=st.sampled_from(["tree", "file", "adds"]))
    def upload_to_a_backend_that_is_gone(self, kind: Kind) -> None:
        gone = TransientSinkError("gone")
        with self._faults(*(fails(each, gone) for each in ("put", "stat", "open", "list", "delete"))):
            self.upload(kind)

    @contextmanager
    def _faults(self, *faults: Any) -> Iterator[None]:
        self.sink.faults = faults
        try:
            yield
        finally:
            self.sink.faults = ()

    # -- what goes wrong ---------------------------------------------------------------------------------------------

    @rule(
        what=st.sampled_from(["upload", "keep", "keep when gone", "sync", "settle", "gc"]),
        kind=st.sampled_from(["tree", "file", "adds"]),
        at=st.integers(1, 25),
        after=st.booleans(),
    )
    def crash(self, what: str, kind: Kind, at: int, after: bool) -> None:
        action: dict[str, Callable[[], object]] = {
            "upload": lambda: self.upload(kind),
            "keep": lambda: self.keep_quickly(kind),
            "keep when gone": lambda: self.upload_to_a_backend_that_is_gone(kind),
            "sync": self._sync,
            "settle": lambda: self.settle(True),
            "gc": lambda: self.outbox.gc(),
        }
        self.gate.after = after
        with mock.patch.object(self, "_plan", self._planned(kind)), suppress(_Killed):
            self.gate.left = at
            try:
                action[what]()
            finally:
                self.gate.left = None
        self._start_anew()

    def _planned(self, kind: Kind) -> Callable[[Kind], Plan]:
        plan = self._plan(kind)
        return lambda _: plan

    @rule()
    def restart(self) -> None:
        self._start_anew()

    def _start_anew(self) -> None:
        self.outbox.close()
        self.outbox = self._opened()
        for call in self.calls:
            if call.entry is not None:  # as the disk has it: it may have been turned into a copy by whoever died
                call.entry = self.outbox.entry(call.entry.id) or call.entry

    def _opened(self) -> Outbox:
        keeping._opened.clear()
        return keeping.open_outbox(self.settings)

    @rule(how=st.sampled_from(["lost", "no sqlite file", "cut", "empty"]))
    def damage_the_index(self, how: str) -> None:
        place = self.outbox.path / "index.db"
        if how == "lost":
            for ending in ("", "-wal", "-shm"):
                Path(f"{place}{ending}").unlink(missing_ok=True)
            return
        self.outbox.close()
        if how == "no sqlite file":
            place.write_bytes(b"this was an index once" * 300)
        else:
            os.truncate(place, 0 if how == "empty" else place.stat().st_size // 2)

    @rule()
    def collect_garbage(self) -> None:
        self.outbox.gc()

    # -- what always holds -------------------------------------------------------------------------------------------

    def _in_sink(self, path: str) -> bytes | None:
        key = ArtifactKey(_RUN, path)
        if self.memory.stat(key) is None:
            return None
        with self.memory.open(key) as stream:
            return stream.read()

    @invariant()
    def what_is_visible_is_whole(self) -> None:
        self._visible()

    def _visible(self) -> set[str]:
        """Return what the manifests name, all of which is there."""
        named = set()
        for stored in list(self.memory.list(_RUN)):
            if not is_manifest_path(stored.key.path) or lies_under(stored.key.path, _NOTES):
                continue
            manifest = Manifest.from_bytes(self._in_sink(stored.key.path) or b"")
            for each in manifest.objects():
                data = self._in_sink(each.path)
                assert data is not None, f"{stored.key.path} names {each.path}, which is not there"
                assert hashlib.sha256(data).hexdigest() == each.sha256, each.path
                named.add(each.path)
        return named

    @invariant()
    def what_was_taken_is_somewhere(self) -> None:
        entries = self.outbox.entries()
        for path, possible in _expected(self.calls).items():
            if len(possible) > 1 or possible == {None}:
                continue
            kept = [Path(e.place(f)).read_bytes() for e in entries for f in e.files if f.path == path]
            assert possible & {self._in_sink(path), *kept}, f"{path} is neither landed nor kept"

    @invariant()
    def entries_are_whole(self) -> None:
        for folder in self.outbox.path.joinpath("entries").iterdir():
            if folder.name.startswith("."):
                continue
            entry = Entry.read(folder)
            if entry.id not in self.lost:
                assert [os.stat(entry.place(file)).st_size for file in entry.files] == [f.size for f in entry.files]

    # -- the end -----------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            self._end()
        finally:
            self.outbox.close()
            keeping._opened.clear()
            for patch in reversed(self.patches):
                patch.stop()
            shutil.rmtree(self.home)

    def _end(self) -> None:
        for outcome in self._sync():
            assert outcome.error is None or outcome.row.id in self.lost, outcome.error
        for entry_id in self.lost:
            self.outbox.remove(entry_id)
        for outcome in self._sync():
            assert outcome.error is None, outcome.error
        assert self.outbox.rows() == []
        self.outbox.gc()
        assert os.listdir(self.outbox.path / "entries") == []
        # An upload that failed half-way, and that a newer one replaced, may leave objects that no manifest names.
        visible = self._visible()
        expected = _expected(self.calls)
        assert visible <= expected.keys()
        for path, possible in expected.items():
            assert (self._in_sink(path) if path in visible or None not in possible else None) in possible, path


_SHORT = settings(
    max_examples=25, stateful_step_count=20, report_multiple_bugs=False, suppress_health_check=list(HealthCheck)
)


@pytest.mark.once
@pytest.mark.timeout(600)
def test_any_order_of_uploads_failures_crashes_and_syncs_loses_nothing() -> None:
    run_state_machine_as_test(OutboxMachine, settings=_SHORT)


@pytest.mark.long
def test_many_orders_of_uploads_failures_crashes_and_syncs_lose_nothing() -> None:
    examples = int(os.environ.get("HYPOTHESIS_EXAMPLES", "1000"))
    run_state_machine_as_test(OutboxMachine, settings=settings(_SHORT, max_examples=examples, stateful_step_count=50))
