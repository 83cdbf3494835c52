"""How many at once: what stagesink finds beside every fixed number, on servers that are slow in different ways.

    concurrency.py            prints a table

Uploads 600 files of 16 KiB to `paced_server.py`, with 1 to 64 at once and with the level that the engine seeks by
itself. One server and one process for each run, alternating.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from side_by_side import free_port, running

FIXED = (1, 2, 4, 8, 16, 32, 64)
MANNERS = {
    "far": "each answer takes 50 ms",
    "narrow": "5 ms, 20 MB/s for all together",
    "warming": "50 ms; 2 at once, doubling each second up to 32, 503 to the rest",
}
FILES = 600


def one(url: str, folder: str, fixed: int) -> float:
    """Upload once in this process; ``fixed`` 0 means that the engine chooses."""
    import stagesink.transfer.run as run
    from stagesink.sinks import open_sink
    from stagesink.transfer import Transfer, TransferOptions, plan_tree, pool

    options = TransferOptions(attempts=100)
    if fixed:
        options = TransferOptions(attempts=100, workers=fixed)
        pool._MORE_OF_SMALL = pool._MORE_OF_FAR = 1
        run_jobs = run.run_jobs
        run.run_jobs = lambda jobs, moved, **rest: run_jobs(jobs, **rest)  # type: ignore[assignment]
    sink = open_sink(f"mlflow+{url}")
    start = time.perf_counter()
    Transfer(sink, options).run(plan_tree("run", "checkpoint", folder))
    return time.perf_counter() - start


def measure(runs: int) -> list[str]:
    lines = ["| at once | " + " | ".join(f"{manner} (s)" for manner in MANNERS) + " |", "|---|" + "---|" * len(MANNERS)]
    seconds: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room, "files")
        folder.mkdir()
        for number in range(FILES):
            (folder / f"{number:04}.bin").write_bytes(os.urandom(16 << 10))
        for _ in range(runs):
            for manner in MANNERS:
                for fixed in (*FIXED, 0):
                    seconds.setdefault((manner, fixed), []).append(_in_a_process(manner, fixed, folder, Path(room)))
    for fixed in (*FIXED, 0):
        cells = " | ".join(f"{statistics.median(seconds[manner, fixed]):.2f}" for manner in MANNERS)
        lines.append(f"| {fixed or '**stagesink chooses**'} | {cells} |")
    return [*lines, "", *(f"- {manner}: {what}" for manner, what in MANNERS.items())]


def _in_a_process(manner: str, fixed: int, folder: Path, room: Path) -> float:
    port = free_port()
    server = [sys.executable, str(Path(__file__).with_name("paced_server.py")), str(port), manner]
    with running(server, port, room / "server.log"):
        command = [sys.executable, __file__, f"http://127.0.0.1:{port}", str(folder), str(fixed)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(one(sys.argv[1], sys.argv[2], int(sys.argv[3])))
    else:
        print(*measure(int(sys.argv[1]) if len(sys.argv) > 1 else 1), sep="\n")
