"""A sink against a dict: any order of put, overwrite, delete, list and crash."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from stagesink.artifacts import ArtifactKey, MemorySource
from stagesink.errors import ArtifactNotFound, SourceError
from stagesink.sinks.protocol import ArtifactSink
from stagesink.testing.sources import GeneratedSource

# No path is a folder of another: where the store has folders, that is a conflict, which a dict does not know.
_PATHS = st.sampled_from(["a", "ab", "b/a", "b/ab", "b/c/a", "b c/é", "%2F", "é"])
_DATA = st.binary(max_size=200)
_PREFIXES = st.sampled_from(["", "a", "b", "b/c", "b c", "nothing"])


class _Crash(SourceError):
    """What the source raises half-way."""


def sink_machine(make_sink: Callable[[], ArtifactSink]) -> type[RuleBasedStateMachine]:
    """Return a hypothesis state machine that compares a sink with a dict, each example in a run of its own.

    Parameters
    ----------
    make_sink : callable
        Called once per example; may return the same sink each time.
    """

    class SinkMachine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.sink = make_sink()
            self.run_id = f"machine-{uuid.uuid4().hex[:12]}"
            self.model: dict[str, bytes] = {}

        def key(self, path: str) -> ArtifactKey:
            return ArtifactKey(self.run_id, path)

        @rule(path=_PATHS, data=_DATA)
        def put(self, path: str, data: bytes) -> None:
            stored = self.sink.put(self.key(path), MemorySource(data))
            assert stored.size == len(data)
            self.model[path] = data

        @rule(path=_PATHS, length=st.integers(0, 4000), cut=st.floats(0, 1))
        def crash(self, path: str, length: int, cut: float) -> None:
            error = _Crash("cut off")
            try:
                self.sink.put(self.key(path), GeneratedSource(length, fails_after=int(length * cut), error=error))
            except _Crash:
                return
            raise AssertionError("A source that fails was put without an error.")

        @rule(path=_PATHS)
        def delete(self, path: str) -> None:
            self.sink.delete(self.key(path))
            self.model.pop(path, None)

        @rule(path=_PATHS)
        def read(self, path: str) -> None:
            try:
                with self.sink.open(self.key(path)) as stream:
                    found: bytes | None = stream.read()
            except ArtifactNotFound:
                found = None
            assert found == self.model.get(path)
            stored = self.sink.stat(self.key(path))
            assert (None if stored is None else stored.size) == (None if found is None else len(found))

        @rule(prefix=_PREFIXES)
        def list_folder(self, prefix: str) -> None:
            listed = sorted((stored.key.path, stored.size) for stored in self.sink.list(self.run_id, prefix))
            assert listed == sorted(
                (path, len(data))
                for path, data in self.model.items()
                if not prefix or path == prefix or path.startswith(f"{prefix}/")
            )

        @invariant()
        def holds_what_the_dict_holds(self) -> None:
            listed = sorted((stored.key.path, stored.size) for stored in self.sink.list(self.run_id))
            assert listed == sorted((path, len(data)) for path, data in self.model.items())

        def teardown(self) -> None:
            for path in self.model:
                self.sink.delete(self.key(path))

    return SinkMachine


def check_against_dict(make_sink: Callable[[], ArtifactSink], *, max_examples: int = 30, steps: int = 20) -> None:
    """Run the state machine of :func:`sink_machine`.

    Parameters
    ----------
    make_sink : callable
        Called once per example; may return the same sink each time.
    max_examples : int
        Orders of operations to try; a few are enough for a slow remote store.
    steps : int
        Operations in each at most.

    Raises
    ------
    AssertionError
        The sink and the dict disagree; hypothesis prints the shortest order of operations that shows it.
    """
    run_state_machine_as_test(
        sink_machine(make_sink),
        settings=settings(
            max_examples=max_examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
