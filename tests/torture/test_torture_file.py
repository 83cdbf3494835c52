"""A short form of `make torture` on a folder. A failure prints the command that repeats it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torture.harness import Torture
from torture.jobs import start_worker
from torture.phases import PHASES
from torture.stores import Store, file_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return file_store(tmp_path_factory.mktemp("file"))


@pytest.fixture(scope="module")
def torture(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Torture]:
    folder = tmp_path_factory.mktemp("torture")
    with start_worker(folder / "worker.log") as worker:
        yield Torture(store, worker, folder, seed=20261124)


@pytest.mark.parametrize("phase", PHASES)
def test_killed_at_any_call_nothing_is_lost_half_visible_or_left(torture: Torture, phase: str) -> None:
    row = torture.run(phase, 6)
    assert row.kills == 6
    assert row.failures == []
