"""stagesink beside the clients of object stores, on one real server each: Azurite, and moto for S3."""

from __future__ import annotations

import os
import shutil
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from side_by_side import ROUND_TRIP, Measured, alternate, far_from, forget, free_port, rows, running

PROGRAM = str(Path(__file__).with_name("upload_to_store.py"))
PEERS = ("mlflow", "sdk x8", "fsspec", "obstore")
NAMES = {
    "az": {"sdk x8": "azure-storage-blob x8", "fsspec": "adlfs", "obstore": "obstore x16"},
    "s3": {"sdk x8": "boto3 x8", "fsspec": "s3fs", "obstore": "obstore x16"},
}

FAR, GIGABIT = (ROUND_TRIP, 0), (0.005, 125e6)  # seconds there and back, bytes a second
_HUGE_RUNS = 2  # of each client


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
    lines = []
    for store, title, server in (("az", "Azure (Azurite)", _azurite), ("s3", "S3 (moto)", moto)):
        for workload, folder, line in (
            ("200 files of 16 KiB, round trip 50 ms", few, FAR),
            ("2,000 files of 16 KiB, no round trip", many, None),
            ("577 MB in 8 files, no round trip", big, None),
            ("577 MB in 8 files, round trip 5 ms, 1 Gbit/s", big, GIGABIT),
            ("one file of 2 GB, no round trip", huge, None),
        ):
            measured: Measured = {}
            for round_ in range(_HUGE_RUNS if folder is huge else 1):
                with server(room) as (port, after), far_from(port, room, *(line or FAR)) as behind:
                    endpoint = f"http://127.0.0.1:{behind if line else port}"
                    clients = {
                        NAMES[store].get(name, name): [
                            *(sys.executable, PROGRAM, store, name, endpoint, "{turn}", str(folder))
                        ]
                        for name in ("stagesink", *PEERS)
                    }
                    counted = 1 if folder is huge else runs
                    found = alternate(clients, counted, warm=folder is few, first=round_, after=after)
                for name, each in found.items():
                    measured.setdefault(name, []).extend(each)
            files = sum(1 for _ in folder.iterdir())
            lines += rows(f"To {title}: {workload}", measured, files, table)
            progress(f"{title}, {workload}")
    return lines


@contextmanager
def _azurite(room: Path) -> Iterator[tuple[int, Callable[[], None]]]:
    """Run Azurite; yield its port, and what makes it as nobody left it."""
    from azure.storage.blob import BlobServiceClient

    from stagesink.testing.azurite import start_azurite

    folder = room / "azurite"
    with start_azurite(folder, on_disk=True) as azurite:
        service = BlobServiceClient.from_connection_string(azurite.connection_string)
        service.create_container("bench")
        service.close()
        yield azurite.port, lambda: forget(folder)
    shutil.rmtree(folder)


@contextmanager
def moto(room: Path) -> Iterator[tuple[int, Callable[[], None]]]:
    """Run moto, with the bucket ``bench``; yield its port, and what makes it as nobody left it."""
    import boto3

    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with running(command, port, room / "moto.log"):
        os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )

        def empty() -> None:
            urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/moto-api/reset", b"")).close()
            client.create_bucket(Bucket="bench")

        empty()
        yield port, empty
