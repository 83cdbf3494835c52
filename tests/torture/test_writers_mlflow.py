"""A short form of writers.py on a real MLflow server of the version that is installed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mlflow_servers import MlflowServer, mlflow_version
from torture.stores import Store, mlflow_store
from torture.writers import KINDS, Crew, Writers, crew

if mlflow_version() < (3, 15):
    pytest.skip("before MLflow 3.15 a server writes a folder's objects in place", allow_module_level=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, mlflow_server: MlflowServer) -> Iterator[Store]:
    with mlflow_store(tmp_path_factory.mktemp("mlflow"), mlflow_server) as store:
        yield store


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    with crew(tmp_path_factory.mktemp("writers") / "writers.log") as processes:
        yield processes


@pytest.mark.parametrize("kind", KINDS)
def test_writers_at_one_place_never_mix(
    store: Store, processes: Crew, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = KINDS[kind](Writers(store, processes, tmp_path_factory.mktemp("sources"), seed=20261124), 1)
    assert found.rounds == 1
    assert found.failures == []
