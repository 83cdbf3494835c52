from __future__ import annotations

import hashlib

import pytest

from stagesink.artifacts import Source
from stagesink.errors import SourceChanged
from stagesink.testing import GeneratedSource


def test_it_is_a_source_that_can_be_opened_again() -> None:
    source = GeneratedSource(100_000)
    assert isinstance(source, Source)
    assert source.open().read() == source.open().read() == source.read()
    assert source.fingerprint() == GeneratedSource(100_000).fingerprint()


@pytest.mark.parametrize("length", [0, 1, (1 << 16) - 1, 1 << 16, 200_001])
def test_it_has_as_many_bytes_as_it_says(length: int) -> None:
    assert len(GeneratedSource(length).read()) == length
    assert GeneratedSource(length).size == length


def test_the_bytes_do_not_depend_on_how_they_are_read() -> None:
    source, stream, parts = GeneratedSource(200_000), GeneratedSource(200_000).open(), []
    while part := stream.read(777):
        parts.append(part)
    assert b"".join(parts) == source.read()
    assert hashlib.sha256(source.read()).hexdigest() == source.digest()


def test_seeds_and_blocks_differ() -> None:
    assert GeneratedSource(100, seed=1).read() != GeneratedSource(100, seed=2).read()
    data = GeneratedSource(1 << 18).read()
    assert len({data[at : at + (1 << 16)] for at in range(0, 1 << 18, 1 << 16)}) == 4


def test_it_fails_where_it_is_told_to() -> None:
    error = SourceChanged("It changed.")
    stream = GeneratedSource(100, fails_after=40, error=error).open()
    assert len(stream.read(100)) == 40
    with pytest.raises(SourceChanged) as caught:
        stream.read(1)
    assert caught.value is error


def test_its_size_can_be_unknown() -> None:
    assert GeneratedSource(10, sized=False).size is None
