"""A short form of `make torture` on a real MLflow server of the version that is installed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mlflow_servers import MlflowServer, mlflow_version
from torture.harness import Torture
from torture.jobs import start_worker
from torture.phases import PHASES
from torture.stores import Store, mlflow_store

if mlflow_version() < (3, 15):
    pytest.skip("before MLflow 3.15 a server writes a folder's objects in place", allow_module_level=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, mlflow_server: MlflowServer) -> Iterator[Store]:
    with mlflow_store(tmp_path_factory.mktemp("mlflow"), mlflow_server) as store:
        yield store


@pytest.fixture(scope="module")
def torture(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Torture]:
    folder = tmp_path_factory.mktemp("torture")
    with start_worker(folder / "worker.log") as worker:
        yield Torture(store, worker, folder, seed=20261124)


@pytest.mark.parametrize("phase", PHASES)
def test_killed_at_any_call_nothing_is_lost_half_visible_or_left(torture: Torture, phase: str) -> None:
    row = torture.run(phase, 3)
    assert row.kills == 3
    assert row.failures == []
