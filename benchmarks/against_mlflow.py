"""stagesink beside mlflow's own client, on one real server: the same bytes, each upload in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from side_by_side import alternate, far_from, forget, free_port, rows, running

PROGRAM = str(Path(__file__).with_name("upload_to_mlflow.py"))


def measure(
    runs: int,
    room: Path,
    make_files: Callable[[Path, int, int], None],
    table: Callable[..., list[str]],
    progress: Callable[[str], None],
) -> list[str]:
    """Return the tables; ``make_files`` and ``table`` are those of the other benchmarks."""
    few, many, big, huge, one = (room / name for name in ("few", "many", "big", "huge", "one"))
    make_files(few, 200, 16 << 10)
    make_files(many, 2000, 16 << 10)
    make_files(big, 8, 577_000_000 // 8)
    make_files(huge, 1, 2_000_000_000)
    make_files(one, 1, 16 << 10)
    with _server(room) as port, far_from(port, room) as far:
        workloads = (
            ("200 files of 16 KiB, round trip 50 ms", few, far, ["log_artifacts", "log_artifact x32"]),
            ("2,000 files of 16 KiB, no round trip", many, port, ["log_artifacts", "log_artifact x8"]),
            ("577 MB in 8 files, no round trip", big, port, ["log_artifacts", "log_artifact x8"]),
            ("one file of 2 GB, no round trip", huge, port, ["log_artifacts"]),
            ("one file of 16 KiB, the whole process with its imports", one, port, ["log_artifacts"]),
        )
        lines = []
        for title, folder, to, peers in workloads:
            clients = {
                name: [sys.executable, PROGRAM, name, f"http://127.0.0.1:{to}", f"http://127.0.0.1:{port}", str(folder)]
                for name in ("stagesink", *peers)
            }
            files = sum(1 for _ in folder.iterdir())
            measured = alternate(clients, runs, after=lambda: forget(room / "server" / "artifacts"))
            lines += rows(f"To an MLflow server: {title}", measured, files, table, whole=folder is one)
            progress(f"mlflow, {title}")
        return lines


@contextmanager
def _server(room: Path) -> Iterator[int]:
    """Run `mlflow server` as its documentation starts it: artifacts go through it into a folder."""
    port = free_port()
    folder = room / "server"
    folder.mkdir()
    command = [
        sys.executable, "-m", "mlflow", "server",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination", str(folder / "artifacts"),
        "--host", "127.0.0.1",
        "--port", str(port),
    ]  # fmt: skip
    with running(command, port, room / "mlflow.log"):
        yield port
