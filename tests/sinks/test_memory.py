from __future__ import annotations

import pickle
import uuid

import pytest

from stagesink.artifacts import ArtifactKey, MemorySource
from stagesink.sinks import open_sink
from stagesink.sinks.memory import MemorySink

KEY = ArtifactKey("run", "metrics.json")


@pytest.fixture
def name() -> str:
    return uuid.uuid4().hex


def test_sinks_of_one_name_share_a_store(name: str) -> None:
    MemorySink(name).put(KEY, MemorySource(b"x"))
    assert MemorySink(name).open(KEY).read() == b"x"


def test_sinks_of_two_names_do_not(name: str) -> None:
    MemorySink(name).put(KEY, MemorySource(b"x"))
    assert MemorySink(f"{name}-2").stat(KEY) is None


def test_closing_keeps_the_store(name: str) -> None:
    sink = MemorySink(name)
    sink.put(KEY, MemorySource(b"x"))
    sink.close()
    assert MemorySink(name).stat(KEY) is not None


@pytest.mark.parametrize("form", ["memory:{}", "memory://{}", "memory://{}/"])
def test_every_form_of_the_uri_names_the_same_store(name: str, form: str) -> None:
    MemorySink(name).put(KEY, MemorySource(b"x"))
    sink = open_sink(form.format(name))
    assert sink.stat(KEY) is not None
    assert sink.uri == f"memory:{name}"


def test_it_claims_no_digests(name: str) -> None:
    assert MemorySink(name).put(KEY, MemorySource(b"x")).digests == {}


def test_a_stream_keeps_what_it_opened(name: str) -> None:
    sink = MemorySink(name)
    sink.put(KEY, MemorySource(b"old"))
    stream = sink.open(KEY)
    sink.put(KEY, MemorySource(b"new"))
    assert stream.read() == b"old"


def test_pickling_carries_the_name_and_not_the_bytes(name: str) -> None:
    sink = MemorySink(name)
    sink.put(KEY, MemorySource(b"precious"))
    assert b"precious" not in pickle.dumps(sink)
