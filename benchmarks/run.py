"""Measure stagesink beside its peers: the same bytes, one run, alternating, median of five, as ratios.

    make bench                          everything; writes the pages docs/benchmarks*.md
    make bench ARGS="--runs 3 --only stores"

Each run writes into a fresh folder on the same disk, and nothing is removed between the runs of small files: ext4 makes
new files several times slower for half a minute after thousands were deleted. Before each run, outside the clock, the
disk is synced. Times are of the call, in a process that has imported what it needs already; `cp` and `sha256sum` are
processes of their own, as a person would start them.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import against_azureml
import against_mlflow
import against_stores
import concurrency
import growth
import outbox

import stagesink
from stagesink.sinks import open_sink
from stagesink.transfer import Transfer, TransferOptions, plan_tree

Run = Callable[[Path, Path], None]

MB = 1_000_000
SUMS = "find . -type f -print0 | sort -z | xargs -0 sha256sum"
OUT = Path(__file__).resolve().parent.parent / "docs"


# -- the peers: each copies the folder `source` to the folder `target`, which does not exist yet -----------------------


def cp(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-r", source, target], check=True)


def copytree(source: Path, target: Path) -> None:
    shutil.copytree(source, target)


def fsspec_put(source: Path, target: Path) -> None:
    from fsspec.implementations.local import LocalFileSystem

    LocalFileSystem(auto_mkdir=True).put(str(source), str(target), recursive=True)


def mlflow_store(source: Path, target: Path) -> None:
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    LocalArtifactRepository(target.as_uri()).log_artifacts(str(source))


PEERS: dict[str, Run] = {
    "cp -r": cp,
    "shutil.copytree": copytree,
    "fsspec put": fsspec_put,
    "mlflow local store": mlflow_store,
}


def ours(*, fsync: bool, verify: str) -> Run:
    def run(source: Path, target: Path) -> None:
        sink = open_sink(f"file:{target}", storage_options={"fsync": fsync})
        Transfer(sink, TransferOptions(verify=verify)).run(plan_tree("run", "checkpoint", source))  # type: ignore[arg-type]

    return run


def then_sync(peer: Run) -> Run:
    def run(source: Path, target: Path) -> None:
        peer(source, target)
        subprocess.run(["sync", "-f", target], check=True)

    return run


def then_compare(peer: Run) -> Run:
    def run(source: Path, target: Path) -> None:
        peer(source, target)
        sums = [
            subprocess.run(SUMS, shell=True, cwd=side, check=True, capture_output=True).stdout
            for side in (source, target)
        ]
        if sums[0] != sums[1]:
            raise SystemExit("The copy differs from its source.")

    return run


FORMS: dict[str, tuple[Run, Callable[[Run], Run]]] = {
    "fsync off": (ours(fsync=False, verify="auto"), lambda peer: peer),
    "fsync on; the peer then runs `sync -f`": (ours(fsync=True, verify="auto"), then_sync),
    "verified; the peer is then checked by `sha256sum` of both sides": (ours(fsync=False, verify="full"), then_compare),
}


# -- measuring --------------------------------------------------------------------------------------------------------


def alternate(
    contestants: dict[str, Run], source: Path, room: Path, runs: int, *, keep: bool
) -> dict[str, list[float]]:
    """Run all contestants in turn, ``runs`` times after one round that does not count; return seconds by name."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(runs + 1):
        for number, (name, run) in enumerate(contestants.items()):
            target = room / f"{turn}-{number}"
            os.sync()
            start = time.perf_counter()
            run(source, target)
            took = time.perf_counter() - start
            if turn:
                seconds[name].append(took)
            if not keep:
                shutil.rmtree(target, ignore_errors=True)
    return seconds


def copies(runs: int, room: Path) -> list[str]:
    lines = []
    big, small = room / "big", room / "small"
    make_files(big, 8, 577 * MB // 8)
    make_files(small, 2000, 16 << 10)
    for workload, source in (("577 MB in 8 files", big), ("2,000 files of 16 KiB", small)):
        lines += [f"### {workload}, to a local folder", ""]
        for form, (us, wrap) in FORMS.items():
            contestants = {"stagesink": us, **{name: wrap(peer) for name, peer in PEERS.items()}}
            here = room / f"{source.name}-{len(lines)}"
            here.mkdir()
            lines += [f"**{form}**", "", *table(alternate(contestants, source, here, runs, keep=source is small)), ""]
            progress(f"{workload}, {form}")
    return lines


def archives(runs: int, room: Path) -> list[str]:
    import numpy

    weights = room / "weights"
    weights.mkdir()
    floats = numpy.random.default_rng(0).standard_normal(32_000_000, dtype=numpy.float32)
    (weights / "model.bin").write_bytes(floats.tobytes())

    def by_tarfile(source: Path, target: Path) -> None:
        with tarfile.open(f"{target}.tar.gz", "w:gz") as archive:
            archive.add(source, "best_trial_checkpoint")

    def by_us(suffix: str) -> Run:
        return lambda source, target: void(stagesink.create_checkpoint_archive(source, 1, f"{target}{suffix}"))

    contestants = {
        "stagesink .tar.gz": by_us(".tar.gz"),
        "stagesink .tar.zst": by_us(".tar.zst"),
        'tarfile "w:gz"': by_tarfile,
    }
    here = room / "archives"
    here.mkdir()
    seconds = alternate(contestants, weights, here, runs, keep=True)
    sizes = {name: max(p.stat().st_size for p in here.glob(f"1-{i}.*")) for i, name in enumerate(contestants)}
    speeds = {name: 128 / statistics.median(values) for name, values in seconds.items()}
    rows = [f"| {name} | {sizes[name] / MB:.1f} MB | {speed:.0f} MB/s |" for name, speed in speeds.items()]
    head = ["### Archive of 128 MB of float32 weights, fsync included", "", *table(seconds, reference='tarfile "w:gz"')]
    return [*head, "", "| | archive | speed |", "|---|---|---|", *rows, ""]


def footprint(runs: int, room: Path) -> list[str]:
    """Peak memory of whole processes, and what the import costs."""
    lines = ["### Memory and import, of whole processes", "", "| | peak memory |", "|---|---|"]
    for label, files, size in (
        ("577 MB in 8 files", 8, 577 * MB // 8),
        ("one file of 2 GB", 1, 2000 * MB),
        ("2,000 files of 16 KiB", 2000, 16 << 10),
    ):
        source = room / f"memory-{files}"
        make_files(source, files, size)
        for what, code in (
            ("tree, verify=full", "sink=sys.argv[2], verify='full').upload_checkpoint(sys.argv[1])"),
            ("packed .tar.gz", "sink=sys.argv[2]).upload_packed_checkpoint(sys.argv[1])"),
        ):
            target = room / f"memory-out-{files}"
            program = (
                "import sys, stagesink\n"
                f"assert stagesink.ArtifactUploader(run_id='r', progress='none', {code}\n"
                # Not getrusage: that counts what this process had before the other was started in its place.
                "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
            )
            done = subprocess.run(
                [sys.executable, "-c", program, source, f"file:{target}"], check=True, capture_output=True, text=True
            )
            lines.append(f"| {label}, {what} | {int(done.stdout) * 1024 / MB:.0f} MB |")
            shutil.rmtree(target)
        shutil.rmtree(source)
    programs = {"python -c 'import stagesink'": "import stagesink", "python -c pass": "pass"}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(max(runs, 5) * 2):
        for name, code in programs.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            seconds[name].append(time.perf_counter() - start)
    return [*lines, "", *table(seconds, reference="python -c pass", unit=1000, digits=0), ""]


def table(
    seconds: dict[str, list[float]], *, reference: str | None = None, unit: float = 1, digits: int = 3
) -> list[str]:
    """Lay out medians; the ratio is the first row's time to each other's, pair by pair, so that drift cancels."""
    first = next(iter(seconds))
    name_of_unit = "s" if unit == 1 else "ms"
    rows = [f"| | median ({name_of_unit}) | min to max | {first} takes |", "|---|---|---|---|"]
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[first], values, strict=True))
        span = f"{min(values) * unit:.{digits}f} to {max(values) * unit:.{digits}f}"
        mark = f"**{ratio:.2f}x**" if reference in (None, name) else f"{ratio:.2f}x"
        median = f"{statistics.median(values) * unit:.{digits}f}"
        rows.append(f"| {name} | {median} | {span} | {'' if name == first else mark} |")
    return rows


def make_files(folder: Path, count: int, size: int) -> None:
    folder.mkdir()
    block = os.urandom(min(size, 8 << 20))
    for number in range(count):
        with open(folder / f"part-{number:05}.bin", "wb") as file:
            left = size
            while left:
                left -= file.write(block[:left])


def void(_: object) -> None:
    pass


def progress(what: str) -> None:
    print(f"done: {what}", file=sys.stderr, flush=True)


def local(runs: int, room: Path) -> list[str]:
    lines = []
    for part in (copies, archives, footprint):
        (room / part.__name__).mkdir()
        lines += part(runs, room / part.__name__)
    return lines


def mlflow(runs: int, room: Path) -> list[str]:
    return against_mlflow.measure(runs, room, make_files, table, progress)


def stores(runs: int, room: Path) -> list[str]:
    return against_stores.measure(runs, room, make_files, table, progress)


def azureml(runs: int, room: Path) -> list[str]:
    return against_azureml.measure(runs, room, make_files, table, progress)


def files(runs: int, room: Path) -> list[str]:
    return growth.measure(room, make_files, progress)


def at_once(runs: int, room: Path) -> list[str]:
    head = ["### How many at once: every fixed number, and the level that stagesink finds", ""]
    return [*head, *concurrency.measure(runs), ""]


def kept(runs: int, room: Path) -> list[str]:
    return outbox.measure(runs, room, make_files, table)


# Each writes a page of its own, so that one can be measured anew.
PAGES: dict[str, tuple[str, Callable[[int, Path], list[str]]]] = {
    "local": ("benchmarks.md", local),
    "mlflow": ("benchmarks-mlflow.md", mlflow),
    "stores": ("benchmarks-stores.md", stores),
    "azureml": ("benchmarks-azureml.md", azureml),
    "files": ("benchmarks-files.md", files),
    "outbox": ("benchmarks-outbox.md", kept),
    "at-once": ("benchmarks-at-once.md", at_once),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure stagesink beside its peers.")
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each contestant (5)")
    parser.add_argument("--only", choices=PAGES, action="append", help="one page (default: all)")
    parser.add_argument("--dir", type=Path, help="folder on the disk to measure (default: the temporary folder)")
    given = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # nobody's import compiles what it imports, at each start anew
    os.environ.setdefault("AZURITE_BLOB", str(OUT.parent / "tests/node/node_modules/.bin/azurite-blob"))
    for name in given.only or PAGES:
        page, part = PAGES[name]
        with tempfile.TemporaryDirectory(prefix="stagesink-bench-", dir=given.dir) as room:
            lines = part(given.runs, Path(room))
        text = "\n".join([*preamble(given.runs), *lines]).rstrip() + "\n"
        print(text)
        (OUT / page).write_text(text, encoding="utf-8")
        progress(name)


def preamble(runs: int) -> list[str]:
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    return [
        "# Benchmarks",
        "",
        f"Written by `make bench` on {datetime.now(timezone.utc):%Y-%m-%d} ({machine}). Median of {runs}, alternating. "
        "The last column is stagesink's time over the other's, pair by pair: below 1 is faster. stagesink takes a "
        "sha256 of every byte, proves what landed and writes a manifest; the peers verify nothing of themselves.",
        "",
    ]


if __name__ == "__main__":
    main()
