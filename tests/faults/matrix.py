"""One cell of the fault matrix: one call of the facade while it happens, then `sync`, then a look by others."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from faults.table import ROWS, Cell, Row, Sink
from faults.worlds import World
from outside import _environ, files_in

from stagesink import ArtifactUploader

LIMITED = Path(__file__).with_name("limited.py")


def rows_of(sink: Sink) -> list[Any]:
    """Return the rows as pytest takes them; those that cannot be on a sink are there too, and say why."""
    return [
        pytest.param(
            row,
            id=row.what,
            marks=pytest.mark.skip(reason=row.cell(sink).says) if row.cell(sink).answer == "never" else (),
        )
        for row in ROWS
    ]


def run_cell(row: Row, world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Do what a row says to one sink, and hold what comes of it against the table."""
    cell = row.cell(world.kind)  # type: ignore[arg-type]
    _set_up(row, world)
    expected = _make(world.checkpoint, seed=1, large=row.large)
    earlier = world.work / "earlier"
    wanted = {"checkpoint": expected}
    if row.earlier:
        wanted["earlier"] = _make(earlier, seed=2)
        with world.away():
            assert _upload(row, world, earlier, "earlier") == (False, "kept")
    caplog.clear()
    with row.happening(world):
        upload = _upload_in_a_process if row.short_of else _upload
        answer = upload(row, world, world.checkpoint, "checkpoint")
        lines = [record for record in caplog.records if record.name == "stagesink" and record.levelno > logging.INFO]
        kept = (row.background, "kept")
        assert answer == {"True": (True, "uploaded"), "kept": kept, "False": (False, "failed")}[cell.answer]
        _check_lines(row, cell, lines)
        if cell.answer == "kept":
            assert _digests(files_in(world.outbox / "entries")) >= set(expected.values())
    if row.changes:
        wanted["checkpoint"] = digests_of(world.checkpoint)
    if cell.answer == "kept":
        shutil.rmtree(world.checkpoint)  # as training rotates it away
        shutil.rmtree(earlier, ignore_errors=True)
    if cell.answer == "False":
        caplog.clear()
        assert _upload(row, world, world.checkpoint, "checkpoint") == (True, "uploaded")
    waiting = len(list((world.outbox / "entries").glob("*")))
    assert bool(waiting) == (cell.answer == "kept")
    with ThreadPoolExecutor(row.syncs) as pool:
        outcomes = [outcome for synced in pool.map(lambda _: world.sync(), range(row.syncs)) for outcome in synced]
    statuses = [outcome.status for outcome in outcomes if outcome.status != "held"]
    assert statuses == ["landed"] * waiting
    assert world.sync() == []
    assert not any((world.outbox / "entries").glob("*"))
    assert not any((world.outbox / "entries").glob(".*"))
    if row.aside:
        assert any(world.outbox.glob("index.db.damaged-*")), "the damaged index was thrown away"
    _check_objects(world.objects(), wanted)


def digests_of(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file of a folder by its path."""
    return {path: hashlib.sha256(data).hexdigest() for path, data in files_in(folder).items()}


def _set_up(row: Row, world: World) -> None:
    world.monkeypatch.setattr("stagesink.outbox.background._FIRST_WAIT", 3600.0)  # `sync` is to find what waits
    # Connections that are open when another process takes the index for itself wait that long.
    world.monkeypatch.setattr("stagesink.outbox.index._BUSY_SECONDS", 5.0)
    settings = {
        "OUTBOX_PATH": str(world.outbox),
        "OUTBOX_KEEP_FREE": "0",
        "RETRIES_MAX_WAIT": "0.05",
        "PROGRESS": "none",
    }
    for name, value in settings.items():
        world.monkeypatch.setenv(f"STAGESINK_{name}", value)


def _make(folder: Path, *, seed: int, large: bool = False) -> dict[str, str]:
    bytes_of = random.Random(seed).randbytes
    files = {"model.bin": bytes_of(30_000), "shards/1.bin": bytes_of(20_000), "config.json": b'{"seed": %d}' % seed}
    if large:
        files["large.bin"] = bytes_of(1 << 20) * 17 + bytes_of(1000)
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return digests_of(folder)


def _upload(row: Row, world: World, folder: Path, path: str) -> tuple[bool, str]:
    """Return the facade's answer, and what its receipts say became of the objects."""
    with ArtifactUploader(
        world.run_id,
        sink=world.sink,
        attempts=row.attempts,
        initial=0.01,
        storage_options=world.options,
        background=row.background,
    ) as uploader:
        answer = uploader.upload_checkpoint(folder, path)
        receipts = uploader.receipts
        for handle in uploader.handles:
            receipts = [] if handle.exception(60) else handle.result()
        statuses = {receipt.status for receipt in receipts}
        if uploader.handles and not receipts:
            return answer, "kept"
    return answer, _what_became(statuses)


def _upload_in_a_process(row: Row, world: World, folder: Path, path: str) -> tuple[bool, str]:
    """Do it in a process that is short of something, and log here what it logged. It ends well."""
    given = json.dumps([row.short_of, world.run_id, world.sink, world.options, str(folder), path])
    done = subprocess.run([sys.executable, LIMITED, given], capture_output=True, text=True, timeout=60, env=_environ())
    assert done.returncode == 0, done.stderr
    answer, statuses, lines = json.loads(done.stdout)
    for level, text in lines:
        logging.getLogger("stagesink").log(level, "%s", text)
    return answer, _what_became(set(statuses))


def _what_became(statuses: set[str]) -> str:
    for status in ("failed", "kept"):
        if status in statuses or (status == "failed" and not statuses):
            return status
    assert statuses <= {"uploaded", "unchanged"}
    return "uploaded"


def _check_lines(row: Row, cell: Cell, lines: list[logging.LogRecord]) -> None:
    errors = [record for record in lines if record.levelno >= logging.ERROR]
    text = "\n".join(record.getMessage() for record in lines)
    if cell.answer == "True":
        assert not errors, text
        assert cell.says in text if cell.says else not lines, text
        return
    assert cell.says in text, text
    if row.background and cell.answer == "kept":  # the call has said True, and its handle why
        (line,) = lines
        assert not errors, text
        assert "It waits in" in line.getMessage(), text
        return
    (line,) = errors
    assert not line.exc_info, text
    kept = "It is kept in" in line.getMessage()
    assert kept == (cell.answer == "kept"), text
    assert not kept or "`stagesink sync` uploads it." in line.getMessage()


def _digests(files: dict[str, bytes]) -> set[str]:
    return {hashlib.sha256(data).hexdigest() for data in files.values()}


def _check_objects(objects: dict[str, bytes], wanted: dict[str, dict[str, str]]) -> None:
    """Every file is there once, whole, and named by its manifest; and nothing else is."""
    found = {path: hashlib.sha256(data).hexdigest() for path, data in objects.items()}
    for name, digests in wanted.items():
        manifest = json.loads(objects[f"{name}.manifest.json"])
        assert {each["path"]: each["sha256"] for each in manifest["files"]} == digests
        for path, sha256 in digests.items():
            assert found.pop(f"{name}/{path}") == sha256
        found.pop(f"{name}.manifest.json")
    assert found == {}, f"more is there than was handed over: {sorted(found)}"
