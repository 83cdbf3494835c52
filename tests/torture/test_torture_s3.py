"""A short form of `make torture` on S3, as moto plays it, through obstore and through s3fs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from servers import installed
from torture.harness import Torture
from torture.jobs import start_worker
from torture.phases import PHASES
from torture.stores import Store, s3_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    installed("s3fs", "moto", "flask", "boto3")
    with s3_store(tmp_path_factory.mktemp("s3")) as store:
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
