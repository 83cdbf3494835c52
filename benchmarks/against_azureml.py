"""stagesink beside Microsoft's own client for Azure ML, against the fake service over a real Azurite.

The official client's pins collide with ours, so it runs in the environment of its own that `tox -e official-azureml`
makes; where that is not there, only stagesink is measured.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from side_by_side import ROUND_TRIP, alternate, far_from, forget, rows

from stagesink.testing.azureml import FakeAzureML

OFFICIAL = Path(__file__).resolve().parent.parent / ".tox/official-azureml/bin/python"
PROGRAM = str(Path(__file__).with_name("upload_to_azureml.py"))


def measure(
    runs: int,
    room: Path,
    make_files: Callable[[Path, int, int], None],
    table: Callable[..., list[str]],
    progress: Callable[[str], None],
) -> list[str]:
    """Return the tables; ``make_files`` and ``table`` are those of the other benchmarks."""
    few, many, big = (room / name for name in ("few", "many", "big"))
    make_files(few, 200, 16 << 10)
    make_files(many, 2000, 16 << 10)
    make_files(big, 8, 577_000_000 // 8)
    official = str(OFFICIAL) if OFFICIAL.exists() else None
    lines = []
    for title, folder, far in (
        (f"200 files of 16 KiB, round trip {ROUND_TRIP * 1000:.0f} ms", few, True),
        ("2,000 files of 16 KiB, no round trip", many, False),
        ("577 MB in 8 files, no round trip", big, False),
    ):
        measured = _measured(runs, room, folder, far, official)
        lines += rows(
            f"To Azure ML (fake service, Azurite): {title}", measured, sum(1 for _ in folder.iterdir()), table
        )
        progress(f"azureml, {title}")
    return lines


def _measured(
    runs: int, room: Path, folder: Path, far: bool, official: str | None
) -> dict[str, list[dict[str, float]]]:
    """Run both in turn; each upload goes into a run of its own, since the official client overwrites nothing."""
    measured: dict[str, list[dict[str, float]]] = {}
    with ExitStack() as servers:

        def in_front(port: int) -> int:
            return servers.enter_context(far_from(port, room)) if far else port

        service = servers.enter_context(FakeAzureML.start(room / "service", on_disk=True, in_front=in_front))
        for _ in range(runs):
            for client, python in (("stagesink", sys.executable), ("log_artifacts", official)):
                if python is not None:
                    environment = service.environment(service.new_run())
                    command = {client: [python, PROGRAM, client, str(folder)]}
                    after = partial(forget, room / "service")
                    each = alternate(command, 1, environment=environment, warm=False, after=after)
                    measured.setdefault(client, []).extend(each[client])
    shutil.rmtree(room / "service")
    return measured
