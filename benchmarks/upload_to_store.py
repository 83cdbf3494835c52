"""One upload into an object store by one client, in a process of its own: prints what it took as JSON.

    upload_to_store.py az|s3 CLIENT ENDPOINT NAME FOLDER

CLIENT is `stagesink`, `mlflow`, `sdk x8` (azure-storage-blob or boto3 on 8 threads), `fsspec` (adlfs or s3fs) or
`obstore` (its sync calls on 16 threads). The objects go to the container or bucket `bench`, under NAME. See
`measured.py`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

from measured import Clock

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # every Azurite's
PART = 8 << 20
Call = Callable[[], object]


def in_threads(threads: int, folder: str, put: Callable[[Path], object]) -> Call:
    def call() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(put, Path(folder).iterdir()))

    return call


def stagesink(store: str, name: str, folder: str) -> Call:
    from stagesink.sinks import open_sink
    from stagesink.transfer import Transfer, plan_tree

    sink = open_sink(f"{store}://bench/ours")
    return lambda: Transfer(sink).run(plan_tree(name, "checkpoint", folder))


# -- Azure -------------------------------------------------------------------------------------------------------------


def az_connection(endpoint: str) -> str:
    return f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={endpoint}/{ACCOUNT};"


def az_mlflow(endpoint: str, name: str, folder: str) -> Call:
    repository: Any = import_module("mlflow.store.artifact.azure_blob_artifact_repo").AzureBlobArtifactRepository
    artifacts = repository(f"wasbs://bench@{ACCOUNT}.blob.core.windows.net/{name}")
    return lambda: artifacts.log_artifacts(folder)


def az_sdk(endpoint: str, name: str, folder: str) -> Call:
    from azure.storage.blob import ContainerClient

    container = ContainerClient.from_connection_string(az_connection(endpoint), "bench", max_block_size=PART)

    def put(path: Path) -> None:
        with path.open("rb") as file:
            container.upload_blob(f"{name}/{path.name}", file, overwrite=True, max_concurrency=4)

    return in_threads(8, folder, put)


def az_fsspec(endpoint: str, name: str, folder: str) -> Call:
    from adlfs import AzureBlobFileSystem

    store = AzureBlobFileSystem(connection_string=az_connection(endpoint))
    return lambda: store.put(folder, f"bench/{name}", recursive=True)


def az_obstore(endpoint: str, name: str, folder: str) -> Call:
    import obstore
    from obstore.store import AzureStore

    store = AzureStore(
        "bench",
        account_name=ACCOUNT,
        account_key=KEY,
        endpoint=f"{endpoint}/{ACCOUNT}",
        client_options={"allow_http": True},
    )
    return in_threads(16, folder, lambda path: obstore.put(store, f"{name}/{path.name}", path))


# -- S3 ----------------------------------------------------------------------------------------------------------------


def s3_mlflow(endpoint: str, name: str, folder: str) -> Call:
    repository: Any = import_module("mlflow.store.artifact.s3_artifact_repo").S3ArtifactRepository
    artifacts = repository(f"s3://bench/{name}")
    return lambda: artifacts.log_artifacts(folder)


def s3_sdk(endpoint: str, name: str, folder: str) -> Call:
    import boto3
    from botocore.config import Config

    client = boto3.client("s3", endpoint_url=endpoint, config=Config(max_pool_connections=32))
    return in_threads(8, folder, lambda path: client.upload_file(str(path), "bench", f"{name}/{path.name}"))


def s3_fsspec(endpoint: str, name: str, folder: str) -> Call:
    from s3fs import S3FileSystem

    store = S3FileSystem(endpoint_url=endpoint)
    return lambda: store.put(folder, f"bench/{name}", recursive=True)


def s3_obstore(endpoint: str, name: str, folder: str) -> Call:
    import obstore
    from obstore.store import S3Store

    store = S3Store("bench", endpoint=endpoint, region="us-east-1", client_options={"allow_http": True})
    return in_threads(16, folder, lambda path: obstore.put(store, f"{name}/{path.name}", path))


CLIENTS: dict[tuple[str, str], Callable[[str, str, str], Call]] = {
    ("az", "mlflow"): az_mlflow,
    ("az", "sdk x8"): az_sdk,
    ("az", "fsspec"): az_fsspec,
    ("az", "obstore"): az_obstore,
    ("s3", "mlflow"): s3_mlflow,
    ("s3", "sdk x8"): s3_sdk,
    ("s3", "fsspec"): s3_fsspec,
    ("s3", "obstore"): s3_obstore,
}


def environment(endpoint: str) -> dict[str, str]:
    """Return the variables by which every client finds the server."""
    return {
        "AZURE_STORAGE_CONNECTION_STRING": az_connection(endpoint),
        "AWS_ENDPOINT_URL": endpoint,
        "MLFLOW_S3_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def main() -> None:
    store, client, endpoint, name, folder = sys.argv[1:]
    os.environ.update(environment(endpoint))
    with Clock() as clock:
        if client == "stagesink":
            clock.measure(stagesink(store, name, folder))
        else:
            clock.measure(CLIENTS[store, client](endpoint, name, folder))


if __name__ == "__main__":
    main()
