"""A training that checkpoints every two seconds for half an hour, and rotates, while its store comes and goes.

make soak                        30 minutes
make soak ARGS="--minutes 2"

Every half minute it goes on without uploading, so that both have the same machine under them. In the end boto3 reads
each checkpoint that was uploaded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from faults.proxy import Answer, DropReply, FaultProxy, Reset
from servers import S3Server, moto_server
from torture.report import write_between_marks

_BUCKET = "soak"
_STEP_SECONDS = 0.02
_CHECKPOINT_SECONDS = 2.0
_TURN_SECONDS = 30.0
_KEPT_BY_THE_TRAINER = 2
_LARGE = 3 << 19  # bytes: large enough to be linked
_SMALL = 4096

# -- the training, in a process of its own -----------------------------------------------------------------------------


def train(folder: Path, minutes: float) -> None:
    """Train, and print what it was like as JSON."""
    from stagesink.uploader import ArtifactUploader

    os.chdir(folder)
    uploader = ArtifactUploader("run", "training", sink=f"s3://{_BUCKET}", background=True, progress="none")
    steps = {"with": array("d"), "without": array("d")}  # lists would grow by more than what is to be measured
    calls: list[float] = []
    written: dict[str, str] = {}
    samples: list[tuple[float, int, int, int]] = []
    generator = random.Random(1)
    start = last = time.monotonic()
    number = 0
    while (now := time.monotonic()) - start < minutes * 60:
        uploads = int((now - start) // _TURN_SECONDS) % 2 == 0
        before = time.perf_counter()
        _compute()
        if now - last >= _CHECKPOINT_SECONDS:
            last = now
            number += 1
            checkpoint = _write_checkpoint(number, generator)
            if uploads:
                called = time.perf_counter()
                if not uploader.upload_checkpoint(checkpoint, checkpoint.name):
                    raise SystemExit(f"{checkpoint} was not kept: {uploader.errors[-1]}")
                calls.append(time.perf_counter() - called)
                written.update(
                    (f"{checkpoint.name}/{each.name}", hashlib.sha256(each.read_bytes()).hexdigest())
                    for each in checkpoint.iterdir()
                )
            _rotate(number)
        steps["with" if uploads else "without"].append(time.perf_counter() - before)
        if len(samples) < (now - start) / 5:
            samples.append((now - start, _memory(), _disk(Path(os.environ["STAGESINK_OUTBOX_PATH"])), _files()))
        uploader.receipts.clear()  # a training that goes on for weeks would
        uploader.handles[:] = [handle for handle in uploader.handles if not handle.done()]
    done = {
        "steps": {mode: list(each) for mode, each in steps.items()},
        "calls": calls,
        "written": written,
        "samples": samples,
        "checkpoints": number,
    }
    print(json.dumps(done), flush=True)


def _compute() -> None:
    """A step: a quarter of it is Python's, the rest the accelerator's."""
    until = time.perf_counter() + _STEP_SECONDS / 4
    digest = b"x" * 4096
    while time.perf_counter() < until:
        digest = hashlib.sha256(digest).digest() * 128
    time.sleep(_STEP_SECONDS * 3 / 4)


def _write_checkpoint(number: int, generator: random.Random) -> Path:
    folder = Path(f"checkpoint-{number}")
    folder.mkdir()
    for name, size in (("model.bin", _LARGE), ("optimizer.bin", _LARGE), *((f"{i}.json", _SMALL) for i in range(10))):
        (folder / name).write_bytes(generator.randbytes(size))
    return folder


def _rotate(number: int) -> None:
    shutil.rmtree(f"checkpoint-{number - _KEPT_BY_THE_TRAINER}", ignore_errors=True)


def _memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _disk(folder: Path) -> int:
    total = 0
    for each in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += each.stat().st_size
    return total


def _files() -> int:
    return len(os.listdir("/proc/self/fd"))


# -- around it ---------------------------------------------------------------------------------------------------------


def soak(minutes: float, folder: Path) -> list[str]:
    """Run it all; return the page's lines."""
    with moto_server(folder) as moto, FaultProxy(moto.port) as proxy:
        moto.boto3().create_bucket(Bucket=_BUCKET)
        environment = {
            **os.environ,
            "AWS_ACCESS_KEY_ID": moto.key,
            "AWS_SECRET_ACCESS_KEY": moto.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
            "STAGESINK_OUTBOX_PATH": str(folder / "outbox"),
            "STAGESINK_RETRIES_BUDGET": "5",
        }
        (folder / "work").mkdir()
        over = threading.Event()
        weather = threading.Thread(target=_come_and_go, args=[proxy, over])
        weather.start()
        try:
            command = [sys.executable, __file__, "--train", str(folder / "work"), "--minutes", str(minutes)]
            trained = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        finally:
            over.set()
            weather.join()
        proxy.forget()
        waiting = len(list((folder / "outbox" / "entries").iterdir()))
        subprocess.run([sys.executable, "-c", "from stagesink.cli import main; main()", "sync", "-q"], env=environment)
        found = json.loads(trained.stdout.splitlines()[-1])
        return _lines(minutes, found, waiting, _missing(moto, found["written"]))


def _come_and_go(proxy: FaultProxy, over: threading.Event) -> None:
    """Be honest for a while, then gone, overloaded or rude for a while."""
    generator = random.Random(2)
    while not over.wait(generator.uniform(5, 15)):
        fault = generator.choice([Reset(), Answer(503), Answer(429, retry_after=1), DropReply()])
        proxy.plan(fault, times=1_000_000)
        over.wait(generator.uniform(2, 10))
        proxy.forget()


def _missing(moto: S3Server, written: dict[str, str]) -> list[str]:
    client = moto.boto3()
    missing = []
    for path, sha256 in written.items():
        try:
            data = client.get_object(Bucket=_BUCKET, Key=f"run/{path}")["Body"].read()
        except client.exceptions.NoSuchKey:
            missing.append(path)
            continue
        if hashlib.sha256(data).hexdigest() != sha256:
            missing.append(f"{path} (other bytes)")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=_BUCKET)
    there = {item["Key"] for page in pages for item in page.get("Contents", ())}
    folders = {path.partition("/")[0] for path in written}
    expected = {f"run/{path}" for path in written} | {f"run/{folder}.manifest.json" for folder in folders}
    return missing + [f"{key} (nobody's)" for key in sorted(there - expected)] + sorted(expected - there)


def _lines(minutes: float, found: dict, waiting: int, missing: list[str]) -> list[str]:  # type: ignore[type-arg]
    samples, files = found["samples"], len(found["written"])
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter] or samples, samples[-quarter:]
    uploads = len({path.partition("/")[0] for path in found["written"]})
    turns = f"in turns of {_TURN_SECONDS:g} s"
    rows = [
        f"{minutes:g} minutes, a checkpoint of 3.2 MB in 12 files every {_CHECKPOINT_SECONDS:g} s, of which the "
        f"trainer keeps two; {uploads} of {found['checkpoints']} were uploaded, {turns}. S3 (moto) was "
        "gone, overloaded or dropped its replies for a third of the time.",
        "",
        "| | with stagesink | without |",
        "|---|---|---|",
    ]
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        values = {mode: _quantile(steps, share) * 1000 for mode, steps in found["steps"].items()}
        rows.append(f"| a step, {name} | {values['with']:.1f} ms | {values['without']:.1f} ms |")
    rows += [
        f"| the call, first of the process | {found['calls'][0] * 1000:.1f} ms | |",
        f"| the call after that, p50 and p99 | {_quantile(found['calls'][1:], 0.5) * 1000:.1f} ms and "
        f"{_quantile(found['calls'][1:], 0.99) * 1000:.1f} ms | |",
        f"| memory, second and last quarter | {_mean(early, 1) / 1e6:.0f} MB and {_mean(late, 1) / 1e6:.0f} MB | |",
        f"| outbox, the same; most | {_mean(early, 2) / 1e6:.1f} MB and {_mean(late, 2) / 1e6:.1f} MB; "
        f"{max(each[2] for each in samples) / 1e6:.0f} MB | |",
        f"| open files, the same | {_mean(early, 3):.0f} and {_mean(late, 3):.0f} | |",
        f"| waiting when the training ended | {waiting} | |",
        f"| missing, other or too many after one `stagesink sync` | {len(missing)} of {files} files | |",
    ]
    return [*rows, *missing[:20]]  # an honest page shows them


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def _mean(samples: list[tuple[float, int, int, int]], column: int) -> float:
    return statistics.mean(each[column] for each in samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--page", type=Path, help="Markdown file that gets the table, between its marks")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train is not None:
        train(given.train, given.minutes)
        return
    with tempfile.TemporaryDirectory(prefix="stagesink-soak-") as folder:
        lines = soak(given.minutes, Path(folder))
    print("\n".join(lines))
    if given.page is not None:
        write_between_marks(given.page, "\n".join(lines), "soak")
    if not lines[-1].startswith("|"):
        raise SystemExit("Something is missing.")


if __name__ == "__main__":
    main()
