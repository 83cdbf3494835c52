"""A short form of writers.py on a folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torture.stores import Store, file_store
from torture.writers import KINDS, Crew, Writers, crew


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return file_store(tmp_path_factory.mktemp("file"))


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    with crew(tmp_path_factory.mktemp("writers") / "writers.log") as processes:
        yield processes


@pytest.mark.parametrize("kind", KINDS)
def test_writers_at_one_place_never_mix(
    store: Store, processes: Crew, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = KINDS[kind](Writers(store, processes, tmp_path_factory.mktemp("sources"), seed=20261124), 3)
    assert found.rounds == 3
    assert found.failures == []
