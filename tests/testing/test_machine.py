"""The state machine finds what is wrong."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest
from hypothesis import Phase, settings

from stagesink.artifacts import ArtifactKey, MemorySource, Source, StoredArtifact
from stagesink.errors import StagesinkError
from stagesink.sinks.memory import MemorySink
from stagesink.sinks.protocol import OnBytes
from stagesink.testing import FaultySink, check_against_dict, corrupts, loses_object, short_list


class KeepsWhatItGot(MemorySink):
    """A put that fails leaves what was read until then."""

    def put(self, key: ArtifactKey, source: Source, *, on_bytes: OnBytes | None = None) -> StoredArtifact:
        data = b""
        try:
            with source.open() as stream:
                while chunk := stream.read(100):
                    data += chunk
        finally:
            stored = super().put(key, MemorySource(data), on_bytes=on_bytes)
        return stored


class NeverDeletes(MemorySink):
    def delete(self, key: ArtifactKey) -> None:
        pass


def memory() -> MemorySink:
    return MemorySink(uuid.uuid4().hex)


@pytest.fixture
def _found_is_enough() -> Iterator[None]:
    """Not the shortest order of operations that shows it: that takes seconds."""
    before = settings.get_current_profile_name()
    settings.register_profile("found", settings.get_profile(before), phases=[Phase.generate])
    settings.load_profile("found")
    yield
    settings.load_profile(before)


@pytest.mark.usefixtures("_found_is_enough")
@pytest.mark.parametrize(
    "make",
    [
        lambda: KeepsWhatItGot(uuid.uuid4().hex),
        lambda: NeverDeletes(uuid.uuid4().hex),
        lambda: FaultySink(memory(), loses_object(nth=2)),
        lambda: FaultySink(memory(), corrupts()),
        lambda: FaultySink(memory(), short_list()),
    ],
    ids=["keeps a part", "never deletes", "loses an object", "corrupts", "lists too little"],
)
def test_a_sink_that_disagrees_with_a_dict_is_found(make: Callable[[], MemorySink]) -> None:
    with pytest.raises((AssertionError, StagesinkError)):
        check_against_dict(make, max_examples=100)


def test_a_sink_that_agrees_passes() -> None:
    check_against_dict(memory, max_examples=10)
