"""What the outbox costs: a snapshot, a healthy upload with it switched on, and a sync beside a direct upload."""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from against_stores import empty, moto
from side_by_side import forget
from upload_to_store import environment

from stagesink.config import load_config
from stagesink.keeping import open_outbox, open_sink_again
from stagesink.outbox.sync import Sync
from stagesink.sinks.registry import scheme_of
from stagesink.uploader import ArtifactUploader

MB = 1_000_000
_WAITING = 100  # entries for other places that wait meanwhile
_SNAPSHOTS = 5

Table = Callable[..., list[str]]


def measure(runs: int, room: Path, make_files: Callable[[Path, int, int], None], table: Table) -> list[str]:
    """Return the page, as Markdown."""
    make_files(room / "big", 8, 577 * MB // 8)
    make_files(room / "small", 2000, 16 << 10)
    make_files(room / "one", 1, 16 << 10)
    workloads = {
        "577 MB in 8 files": (room / "big", 1),
        "2,000 files of 16 KiB": (room / "small", 1),
        "200 uploads of one file of 16 KiB": (room / "one", 200),
    }
    lines = [*_snapshots(runs, room)]
    for title, (source, times) in workloads.items():
        lines += [f"### A healthy upload to a folder: {title}", "", *table(_overhead(runs, room, source, times)), ""]
    for title, (source, times) in workloads.items():
        found, removing = _syncs(runs, room, source, times, f"file:{room}/store", lambda: forget(room / "store"))
        lines += [f"### Sync to a folder beside a direct upload: {title}", "", *table(found), "", _part(removing), ""]
    with moto(room) as port, _environment(**environment(f"http://127.0.0.1:{port}")):
        for title, (source, times) in workloads.items():
            found, removing = _syncs(runs, room, source, times, "s3://bench", functools.partial(empty, port))
            title = f"### Sync to S3 (moto) beside a direct upload: {title}"
            lines += [title, "", *table(found), "", _part(removing), ""]
    return lines


def _part(removing: list[float]) -> str:
    return f"Of that the sync takes {statistics.median(removing):.3f} s to remove from the outbox what has landed."


def _snapshots(runs: int, room: Path) -> list[str]:
    """How long `background=True` holds the caller up, for a checkpoint of 10 GB that can be linked."""
    lines = [
        "### How long `background=True` holds training up: a checkpoint of 10 GB on the outbox's own disk",
        "",
        "| | first call of the process | later calls, median | most it may take |",
        "|---|---|---|---|",
    ]
    for small in (0, 100, 1000):
        source = room / f"ten-{small}"
        source.mkdir()
        for number in range(8):
            with open(source / f"model-{number}.bin", "wb") as file:
                file.truncate(10_000 * MB // 8)
        for number in range(small):
            (source / f"{number}.json").write_bytes(os.urandom(4096))
        os.sync()
        firsts, laters = [], []
        for run in range(runs):
            done = subprocess.run(
                [sys.executable, __file__, str(source), str(room / f"outbox-{small}-{run}")],
                check=True,
                capture_output=True,
                text=True,
            )
            first, *later = json.loads(done.stdout.splitlines()[-1])
            firsts.append(first)
            laters += later
        files = 8 + small
        shown = f"{statistics.median(firsts):.0f} ms | {statistics.median(laters):.0f} ms | {20 + files} ms"
        lines.append(f"| {files:,} files, 8 of them large | {shown} |")
    return [*lines, ""]


def _overhead(runs: int, room: Path, source: Path, times: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {
        "outbox on": [],
        f"outbox on, {_WAITING} uploads wait in it": [],
        "outbox off": [],
    }
    for run in range(runs + 1):
        # In turn: whoever comes first finds the disk as nobody left it.
        for number, name in list(enumerate(seconds))[:: -1 if run % 2 else 1]:
            outbox = room / f"overhead-{source.name}-{run}-{number}"
            with _environment(
                STAGESINK_OUTBOX_PATH=str(outbox), STAGESINK_OUTBOX_ENABLED=str("off" not in name).lower()
            ):
                if "wait" in name:
                    _keep(source.parent / "one", "waiting", str(room / "elsewhere"), _WAITING)
                    os.sync()  # else the disk is busy with those
                store = room / f"store-{source.name}-{number}"
                took = _upload(source, f"run-{run}", f"file:{store}", times)
                forget(store)
            if run:
                seconds[name].append(took)
    return seconds


def _syncs(
    runs: int, room: Path, source: Path, times: int, sink: str, after: Callable[[], None]
) -> tuple[dict[str, list[float]], list[float]]:
    seconds: dict[str, list[float]] = {"sync": [], "direct": []}
    removing = []
    for run in range(runs + 1):
        run_id = f"{source.name}-{run}"
        with _environment(STAGESINK_OUTBOX_PATH=str(room / f"sync-{scheme_of(sink)}-{run_id}")):
            removals: list[float] = []
            ways = {
                "sync": functools.partial(_sync, removals),
                "direct": functools.partial(_upload, source, run_id, f"{sink}/direct", times),
            }
            _keep(source, run_id, f"{sink}/synced", times)
            # In turn: the disk takes the first few hundred megabytes quicker than the next.
            for name in list(ways)[:: -1 if run % 2 else 1]:
                os.sync()
                took = ways[name]()
                after()
                if run:
                    seconds[name].append(took)
            if run:
                removing.append(sum(removals))
    return seconds, removing


def _sync(removals: list[float]) -> float:
    config = load_config()
    outbox = open_outbox(config.artifacts.outbox)
    remove = outbox.remove

    def timed(*arguments: Any, **options: Any) -> None:
        start = time.perf_counter()
        remove(*arguments, **options)
        removals.append(time.perf_counter() - start)

    outbox.remove = timed  # type: ignore[method-assign]
    start = time.perf_counter()
    opener = functools.partial(open_sink_again, config)
    with Sync(outbox, opener, config.artifacts.transfer_options) as sync:
        statuses = {outcome.status for outcome in sync.run()}
    took = time.perf_counter() - start
    if statuses != {"landed"}:
        raise SystemExit(f"Not everything landed: {statuses}")
    return took


def _upload(source: Path, run_id: str, sink: str, times: int) -> float:
    os.sync()
    start = time.perf_counter()
    with ArtifactUploader(run_id, sink=sink, progress="none") as uploader:
        landed = [_one(uploader, source, number, times) for number in range(times)]
    took = time.perf_counter() - start
    if not all(landed):
        raise SystemExit(f"It did not land: {uploader.errors}")
    return took


def _keep(source: Path, run_id: str, sink: str, times: int) -> None:
    with _environment(STAGESINK_MODE="offline"), ArtifactUploader(run_id, sink=sink, progress="none") as uploader:
        for number in range(times):
            _one(uploader, source, number, times)


def _one(uploader: ArtifactUploader, source: Path, number: int, times: int) -> bool:
    if times == 1 and len(list(source.iterdir())) > 1:
        return uploader.upload_checkpoint(source)
    return uploader.upload_file(source / "part-00000.bin", f"{number}.bin")


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update({"STAGESINK_OUTBOX_KEEP_FREE": "0", **variables})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _hold_up(source: str, outbox: str) -> list[float]:
    """Return the milliseconds that each of a few calls takes, one checkpoint after the other, with the store gone."""
    Path(outbox).mkdir()
    store = Path(outbox, "store")
    store.write_text("not a folder")
    with _environment(STAGESINK_OUTBOX_PATH=str(Path(outbox, "outbox")), STAGESINK_RETRIES="1"):
        uploader = ArtifactUploader("run", "training", sink=f"file:{store}", background=True, progress="none")
        took = []
        for step in range(_SNAPSHOTS):
            start = time.perf_counter()
            if not uploader.upload_checkpoint(source, f"checkpoint-{step}"):
                raise SystemExit(str(uploader.errors[0]))
            took.append((time.perf_counter() - start) * 1000)
    return took


if __name__ == "__main__":
    print(json.dumps(_hold_up(*sys.argv[1:])), flush=True)
    os._exit(0)  # nobody wants ten GB of zeros copied, which is what a store that is gone leads to
