"""Any order of uploads, failures, losses and damage against a model of what may be presented as whole."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from parts import QUICK, RUN, files_in, held, plan

from stagesink.artifacts import ArtifactKey, MemorySource
from stagesink.errors import RestoreFailed, SinkAuthError, TransferError, TransientSinkError
from stagesink.sinks.memory import MemorySink
from stagesink.testing import FaultySink, fails, loses_object, loses_reply
from stagesink.testing.faults import Fault
from stagesink.transfer import Plan, Transfer, TransferOptions, list_committed, restore, verify

Tree = dict[str, bytes]

_trees = st.dictionaries(
    st.sampled_from(["a", "b", "c/d", "c/e", "f.bin"]), st.binary(max_size=6), min_size=1, max_size=5
)
_paths = st.sampled_from(["one", "two", "one/inside"])
_errors = st.sampled_from([TransientSinkError("busy"), SinkAuthError("no")])
_operations = st.sampled_from(["put", "stat", "open", "list", "delete"])
_faults = st.one_of(
    st.builds(lambda op, error, nth: fails(op, error, nth=nth), _operations, _errors, st.integers(1, 6)),
    st.builds(lambda op, error, first: fails(op, error, first=first), _operations, _errors, st.integers(1, 9)),
    st.builds(lambda error, nth: fails("put", error, nth=nth, after_bytes=2), _errors, st.integers(1, 6)),
    st.builds(lambda op, error, nth: loses_reply(op, error, nth=nth), _operations, _errors, st.integers(1, 6)),
    st.builds(lambda nth: loses_object(nth=nth), st.integers(1, 6)),
)
_options = st.builds(
    lambda workers, mode: replace(QUICK, workers=workers, attempts=3, verify=mode),
    st.sampled_from([1, 3]),
    st.sampled_from(["auto", "size", "full"]),
)


class Engine(RuleBasedStateMachine):
    """``whole`` is what may be presented as whole; ``lost`` and ``damaged`` is what the store did to it since."""

    def __init__(self) -> None:
        super().__init__()
        self.sink = MemorySink(uuid.uuid4().hex)
        self.folder = Path(tempfile.mkdtemp())
        self.whole: dict[str, Tree] = {}
        self.touched: dict[str, set[str]] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(path=_paths, tree=_trees, options=_options)
    def upload(self, path: str, tree: Tree, options: TransferOptions) -> None:
        unnoticed = self._damaged(path, tree) if options.verify != "full" else set()
        receipts = Transfer(self.sink, options).run(plan(tree, path))
        assert {r.key.path.removeprefix(f"{path}/") for r in receipts} == tree.keys()
        self._uploaded(path, tree, unnoticed)

    @rule(path=_paths, tree=_trees, options=_options, faults=st.lists(_faults, min_size=1, max_size=3))
    def upload_through_faults(self, path: str, tree: Tree, options: TransferOptions, faults: list[Fault]) -> None:
        before = {m.path: m for m in list_committed(self.sink, RUN)}.get(path)
        unnoticed = self._damaged(path, tree) if options.verify != "full" else set()
        error = self._failure(Transfer(FaultySink(self.sink, *faults), options), plan(tree, path))
        after = {m.path: m for m in list_committed(self.sink, RUN)}.get(path)
        if error is None:
            self._uploaded(path, tree, unnoticed)
            return
        assert error.failures
        assert len(error.receipts) == len(tree)
        if after is None:
            self.whole.pop(path, None)
            self.touched.pop(path, None)
        elif before is None or not after.same_content(before):
            # All landed and the manifest too: only the answer to it was lost, or could not be checked.
            assert {f.path for f in after.files} == tree.keys()
            self._uploaded(path, tree, unnoticed)

    @staticmethod
    def _failure(transfer: Transfer, what: Plan) -> TransferError | None:
        try:
            transfer.run(what)
        except TransferError as error:
            return error
        return None

    @precondition(lambda self: self.whole)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(self.whole)))
        name = data.draw(st.sampled_from(sorted(self.whole[path])))
        self.sink.delete(ArtifactKey(RUN, f"{path}/{name}"))
        self.touched.setdefault(path, set()).add(name)

    @precondition(lambda self: any(any(tree.values()) for tree in self.whole.values()))
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(p for p, tree in self.whole.items() if any(tree.values()))))
        name = data.draw(st.sampled_from(sorted(n for n, content in self.whole[path].items() if content)))
        content = self.whole[path][name]
        self.sink.put(ArtifactKey(RUN, f"{path}/{name}"), MemorySource(bytes([content[0] ^ 1]) + content[1:]))
        self.touched.setdefault(path, set()).add(name)

    @rule(workers=st.sampled_from([1, 3]))
    def verify_says_what_the_store_did(self, workers: int) -> None:
        checks = verify(self.sink, list_committed(self.sink, RUN), replace(QUICK, workers=workers, verify="full"))
        bad = {check.key.path for check in checks if check.status != "ok"}
        assert bad == {f"{path}/{name}" for path, names in self.touched.items() for name in names}

    @rule(workers=st.sampled_from([1, 3]))
    def restore_gives_what_is_whole_and_names_what_is_not(self, workers: int) -> None:
        target = self.folder / uuid.uuid4().hex
        bad = {f"{path}/{name}" for path, names in self.touched.items() for name in names}
        named: set[str] = set()
        try:
            restore(self.sink, list_committed(self.sink, RUN), target, replace(QUICK, workers=workers))
        except RestoreFailed as error:
            named = set(error.failures)
        assert named == bad
        expected = {f"{path}/{name}": data for path, tree in self.whole.items() for name, data in tree.items()}
        assert files_in(target) == {name: data for name, data in expected.items() if name not in bad}

    @invariant()
    def what_is_presented_as_whole_is_what_was_uploaded_last(self) -> None:
        presented = {m.path: {f.path: f for f in m.files} for m in list_committed(self.sink, RUN)}
        assert {path: files.keys() for path, files in presented.items()} == {
            path: tree.keys() for path, tree in self.whole.items()
        }
        found = held(self.sink)
        for path, tree in self.whole.items():
            for name, data in tree.items():
                if name not in self.touched.get(path, ()):
                    assert found[f"{path}/{name}"] == data
                    assert presented[path][name].size == len(data)

    def _uploaded(self, path: str, tree: Tree, unnoticed: set[str]) -> None:
        self.whole[path] = dict(tree)
        self.touched[path] = unnoticed
        if not unnoticed:
            del self.touched[path]

    def _damaged(self, path: str, tree: Tree) -> set[str]:
        """What an upload that does not read back takes for unchanged: right size, right manifest, other bytes."""
        there = held(self.sink)
        return {
            name
            for name in self.touched.get(path, ())
            if name in tree and self.whole[path].get(name) == tree[name] and f"{path}/{name}" in there
        }


@pytest.mark.once
def test_in_any_order_what_is_presented_as_whole_is_what_was_uploaded() -> None:
    run_state_machine_as_test(
        Engine,
        settings=settings(
            max_examples=60, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
