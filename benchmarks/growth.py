"""Time, client CPU and memory of one upload against its number of files: CPU linear, memory flat.

Azurite's own time for one request grows with the number of blobs that it holds, since its index is of no use among the
blobs of one account. So Azure's own client is measured too, on the same files, without stagesink.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import against_stores
from side_by_side import alternate

from stagesink.testing.azureml import FakeAzureML
from stagesink.testing.azurite import start_azurite

COUNTS = (1, 10, 100, 1_000, 10_000, 20_000)
SIZE = 1 << 10
SDK = "SDK alone (Azurite)"
PLOT = Path(__file__).resolve().parent.parent / "docs" / "growth.svg"
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from measured import Clock
from stagesink.sinks import open_sink
from stagesink.transfer import Transfer, plan_tree
with Clock() as clock:
    sink = open_sink(sys.argv[2])
    clock.measure(lambda: Transfer(sink).run(plan_tree(sys.argv[3], "checkpoint", sys.argv[4])))
"""


def measure(room: Path, make_files: Callable[[Path, int, int], None], progress: Callable[[str], None]) -> list[str]:
    """Return the table, and draw the plot."""
    found: dict[str, list[dict[str, float]]] = {}
    for count in COUNTS:
        folder = room / f"files-{count}"
        make_files(folder, count, SIZE)
        for name in ("file:", "az: (Azurite)", "azureml: (fake service, Azurite)", SDK):
            found.setdefault(name, []).append(_one(name, room, folder))
            progress(f"growth, {name} {count}")
        shutil.rmtree(folder)
    rows = ["| files of 1 KiB | " + " | ".join(f"{name} time | client CPU | memory" for name in found) + " |"]
    rows.append("|---|" + "---|---|---|" * len(found))
    for number, count in enumerate(COUNTS):
        each = (every[number] for every in found.values())
        cells = (f"{one['seconds']:.2f} s | {one['cpu']:.2f} s | {one['memory'] / 1e6:.0f} MB" for one in each)
        rows.append(f"| {count:,} | {' | '.join(cells)} |")
    _draw(found)
    return [
        "### Time and peak memory against the number of files",
        "",
        *rows,
        "",
        f"{SDK} is `azure-storage-blob` on 8 threads, which only puts. Azurite looks through all the blobs of an "
        "account for each request, so its time for one grows with their number, whoever asks; stagesink's own shows "
        "in the client's CPU. `azureml:` asks Azurite twice for each file: it puts it and looks at it.",
        "",
        "![the same as a plot](growth.svg)",
        "",
    ]


def _one(name: str, room: Path, folder: Path) -> dict[str, float]:
    with ExitStack() as servers:
        server, environment, run, uri = room / "server", {}, "run", f"file:{room / 'server'}"
        if name.startswith("azureml"):
            service = servers.enter_context(FakeAzureML.start(server, on_disk=True))
            run, uri = service.new_run(), "azureml:"
            environment = service.environment(run)
        elif name == SDK or name.startswith("az"):
            from azure.storage.blob import BlobServiceClient

            azurite = servers.enter_context(start_azurite(server, on_disk=True))
            with BlobServiceClient.from_connection_string(azurite.connection_string) as blobs:
                blobs.create_container("bench")
            uri, environment = "az://bench", {"AZURE_STORAGE_CONNECTION_STRING": azurite.connection_string}
        here = str(Path(__file__).parent)
        command = [sys.executable, "-c", PROGRAM, here, uri, run, str(folder)]
        if name == SDK:
            endpoint = f"http://127.0.0.1:{azurite.port}"
            command = [sys.executable, against_stores.PROGRAM, "az", "sdk x8", endpoint, run, str(folder)]
        told = alternate({name: command}, 1, environment=environment, warm=False)[name][0]
    shutil.rmtree(room / "server", ignore_errors=True)
    return told


def _draw(found: dict[str, list[dict[str, float]]]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "stagesink"  # the same figures, the same file
    from matplotlib import pyplot

    figure, (times, memory) = pyplot.subplots(1, 2, figsize=(10, 4))
    for name, every in found.items():
        times.loglog(COUNTS, [one["seconds"] for one in every], marker="o", label=name)
        memory.semilogx(COUNTS, [one["memory"] / 1e6 for one in every], marker="o", label=name)
    times.set(xlabel="files of 1 KiB", ylabel="seconds", title="time")
    memory.set(xlabel="files of 1 KiB", ylabel="MB", title="peak memory", ylim=(0, 200))
    for axes in (times, memory):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(PLOT, metadata={"Date": None})
