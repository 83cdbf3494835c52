"""A short form of writers.py on S3, as moto plays it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from servers import installed
from torture.stores import Store, s3_store
from torture.writers import KINDS, Crew, Writers, crew


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    installed("s3fs", "moto", "flask", "boto3")
    with s3_store(tmp_path_factory.mktemp("s3")) as store:
        yield store


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    with crew(tmp_path_factory.mktemp("writers") / "writers.log") as processes:
        yield processes


@pytest.mark.parametrize("kind", KINDS)
def test_writers_at_one_place_never_mix(
    store: Store, processes: Crew, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = KINDS[kind](Writers(store, processes, tmp_path_factory.mktemp("sources"), seed=20261124), 2)
    assert found.rounds == 2
    assert found.failures == []
