"""A short form of `make torture` on Azure ML, as the package's own fake plays it over Azurite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from servers import installed
from torture.harness import Torture
from torture.jobs import start_worker
from torture.phases import PHASES
from torture.stores import Store, azureml_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    installed("azure.storage.blob", "urllib3")
    with azureml_store(tmp_path_factory.mktemp("azureml")) as store:
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
