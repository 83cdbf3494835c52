"""stagesink beside the clients of object stores, on one real server each: Azurite, and moto for S3."""

from __future__ import annotations

import os
import shutil
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from side_by_side import ROUND_TRIP, Measured, alternate, far_from, free_port, rows, running

PROGRAM = str(Path(__file__).with_name("upload_to_store.py"))
PEERS = ("mlflow", "sdk x8", "fsspec", "obstore")
NAMES = {
    "az": {"sdk x8": "azure-storage-blob x8", "fsspec": "adlfs", "obstore": "obstore x16"},
    "s3": {"sdk x8": "boto3 x8", "fsspec": "s3fs", "obstore": "obstore x16"},
}

FAR, GIGABIT = (ROUND_TRIP, 0), (0.005, 125e6)  # seconds there and back, bytes a second
_WARM_UP = [f"warm-up/{number}" for number in range(200)]  # objects


def measure(
    runs: int,
    room: Path,
    make_files: Callable[[Path, int, int], None],
    table: Callable[..., list[str]],
    progress: Callable[[str], None],
) -> list[str]:
    """Return the tables; ``make_files`` and ``table`` are those of the other benchmarks."""
    few, many, big, huge = (room / name for name in ("few", "many", "big", "huge"))
    make_files(few, 200, 16 << 10)
    make_files(many, 2000, 16 << 10)
    make_files(big, 8, 577_000_000 // 8)
    make_files(huge, 1, 2_000_000_000)
    lines = [
        f"Each run meets a server that has just started, and taken {len(_WARM_UP)} small objects from the SDK: Azurite "
        "works longer for each object the more of them it holds, and up to half as long again for 2 GB after it has "
        "taken another 2 GB.",
        "",
    ]
    for store, title, server in (("az", "Azure (Azurite)", _azurite), ("s3", "S3 (moto)", moto)):
        names = {client: NAMES[store].get(client, client) for client in ("stagesink", *PEERS)}
        for workload, folder, line in (
            ("200 files of 16 KiB, round trip 50 ms", few, FAR),
            ("2,000 files of 16 KiB, no round trip", many, None),
            ("577 MB in 8 files, no round trip", big, None),
            ("577 MB in 8 files, round trip 5 ms, 1 Gbit/s", big, GIGABIT),
            ("one file of 2 GB, no round trip", huge, None),
        ):
            measured: Measured = {name: [] for name in names.values()}
            for turn in range(runs):
                for client, name in list(names.items())[:: -1 if turn % 2 else 1]:
                    with (
                        server(room) as port,
                        far_from(port, room, *line) if line else nullcontext(port) as behind,
                    ):
                        endpoint = f"http://127.0.0.1:{behind}"
                        command = [sys.executable, PROGRAM, store, client, endpoint, "run", str(folder)]
                        measured[name] += alternate({name: command}, 1, warm=False)[name]
            files = sum(1 for _ in folder.iterdir())
            lines += rows(f"To {title}: {workload}", measured, files, table)
            progress(f"{title}, {workload}")
    return lines


@contextmanager
def _azurite(room: Path) -> Iterator[int]:
    """Run Azurite, with the container ``bench``; yield its port."""
    from azure.storage.blob import BlobServiceClient

    from stagesink.testing.azurite import start_azurite

    folder = room / "azurite"
    with start_azurite(folder, on_disk=True) as azurite:
        with BlobServiceClient.from_connection_string(azurite.connection_string) as service:
            container = service.create_container("bench")
            for name in _WARM_UP:
                container.upload_blob(name, bytes(16 << 10))
        yield azurite.port
    shutil.rmtree(folder)


@contextmanager
def moto(room: Path) -> Iterator[int]:
    """Run moto, with the bucket ``bench``; yield its port."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with running(command, port, room / "moto.log"):
        client = _client(port)
        client.create_bucket(Bucket="bench")
        for name in _WARM_UP:
            client.put_object(Bucket="bench", Key=name, Body=bytes(16 << 10))
        yield port


def empty(port: int) -> None:
    """Have moto forget all it holds but the bucket's name."""
    urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/moto-api/reset", b"")).close()
    _client(port).create_bucket(Bucket="bench")


def _client(port: int) -> Any:
    import boto3

    os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )
