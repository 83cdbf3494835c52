"""Cumulative figures of uploads, as plain data."""

from __future__ import annotations

import json
import threading

from stagesink.artifacts import ArtifactKey, Receipt, Status
from stagesink.metrics import UploadMetrics, upload_metrics


def receipt(status: Status = "uploaded", *, size: int = 10, attempts: int = 1) -> Receipt:
    return Receipt(ArtifactKey("run", "a"), "memory:a", size, None, 0.1, attempts, status, "none")


def test_figures_add_up_by_stage_and_sink() -> None:
    metrics = UploadMetrics()
    metrics.add("training", "s3://b", [receipt(), receipt(size=5, attempts=3)], 2.0, failed=False)
    metrics.add(
        "training", "s3://b", [receipt("failed", attempts=5), receipt("unchanged", attempts=0)], 1.5, failed=True
    )
    metrics.add("hpo", "s3://b", [], 1.0, failed=True)
    metrics.add("training", "file:/x", [receipt()], 0.5, failed=False)
    assert metrics.snapshot() == {
        "training": {
            "s3://b": {
                "uploads": 2,
                "failures": 1,
                "files": 2,
                "bytes": 15,
                "attempts": 9,
                "retries": 6,
                "seconds": 3.5,
            },
            "file:/x": {
                "uploads": 1,
                "failures": 0,
                "files": 1,
                "bytes": 10,
                "attempts": 1,
                "retries": 0,
                "seconds": 0.5,
            },
        },
        "hpo": {
            "s3://b": {
                "uploads": 1,
                "failures": 1,
                "files": 0,
                "bytes": 0,
                "attempts": 0,
                "retries": 0,
                "seconds": 1.0,
            }
        },
    }


def test_an_upload_of_no_stage_is_counted_too() -> None:
    metrics = UploadMetrics()
    metrics.add(None, "memory:", [receipt()], 1.0, failed=False)
    assert metrics.snapshot()[""]["memory:"]["uploads"] == 1


def test_a_snapshot_is_plain_data_and_a_copy() -> None:
    metrics = UploadMetrics()
    metrics.add("training", "memory:", [receipt()], 1.0, failed=False)
    first = metrics.snapshot()
    assert json.loads(json.dumps(first)) == first
    first["training"]["memory:"]["uploads"] = 99
    first["training"]["other"] = {}
    assert metrics.snapshot()["training"]["memory:"]["uploads"] == 1
    assert list(metrics.snapshot()["training"]) == ["memory:"]


def test_nothing_uploaded_is_nothing_counted() -> None:
    assert UploadMetrics().snapshot() == {}


def test_many_threads_count_exactly() -> None:
    metrics = UploadMetrics()

    def work(stage: str) -> None:
        for _ in range(500):
            metrics.add(stage, "memory:", [receipt(attempts=2)], 0.25, failed=False)
            metrics.snapshot()

    threads = [threading.Thread(target=work, args=(f"stage{n % 2}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {
        "uploads": 2000,
        "failures": 0,
        "files": 2000,
        "bytes": 20_000,
        "attempts": 4000,
        "retries": 2000,
        "seconds": 500.0,
    }
    assert metrics.snapshot() == {f"stage{n}": {"memory:": expected} for n in range(2)}


def test_the_figures_of_the_process_are_there_for_everybody() -> None:
    assert isinstance(upload_metrics(), dict)
