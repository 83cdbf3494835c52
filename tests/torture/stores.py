"""The stores under torture, each with a reader that is none of ours."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from azureml_servers import Caller, azureml_server
from mlflow_servers import Launcher, MlflowServer, workers
from outside import files_in
from servers import S3Server, free_port, process

from stagesink.testing.azureml import FakeAzureML

_BUCKET = "torture"


@dataclass(frozen=True)
class Run:
    """One run in a store: how a worker reaches it, and how it is looked at without stagesink.

    Attributes
    ----------
    run_id : str
    sink : str
    environment : dict
        More variables of the worker.
    objects : callable
        What any other program would read there now: bytes by path.
    leftovers : callable
        Names of what lies there and is no object: nobody reads it, and work that was ended well leaves none.
    clear : callable
        Removes the run's objects.
    """

    run_id: str
    sink: str
    objects: Callable[[], dict[str, bytes]]
    leftovers: Callable[[], set[str]]
    clear: Callable[[], None]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Store:
    """A store that runs.

    Attributes
    ----------
    name : str
    new_run : callable
    clients : tuple of str
        What carries its bytes, where there is a choice: one kill after the other takes the next.
    """

    name: str
    new_run: Callable[[], Run]
    clients: tuple[str, ...] = ("own",)


def file_store(folder: Path) -> Store:
    """``file:``; looked at with plain files."""

    def is_temp(path: str) -> bool:
        name = path.rpartition("/")[2]
        return name.startswith(".stagesink-") and name.endswith(".tmp")

    def new_run() -> Run:
        root = folder / uuid.uuid4().hex
        return Run(
            "run",
            f"file:{root}",
            lambda: {path: data for path, data in files_in(root / "run").items() if not is_temp(path)},
            lambda: {path for path in files_in(root) if is_temp(path) or not path.startswith("run/")},
            lambda: shutil.rmtree(root, ignore_errors=True),
        )

    return Store("file", new_run)


@contextmanager
def s3_store(folder: Path) -> Iterator[Store]:
    """A moto server of its own, that takes small parts; looked at with boto3."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with process(command, port, folder / "moto.log", S3_UPLOAD_PART_MIN_SIZE="1"):
        server = S3Server(port)
        client = server.boto3()
        client.create_bucket(Bucket=_BUCKET)

        def listed(prefix: str) -> list[str]:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=_BUCKET, Prefix=prefix)
            return [item["Key"] for page in pages for item in page.get("Contents", ())]

        def get(key: str) -> bytes:
            return bytes(client.get_object(Bucket=_BUCKET, Key=key)["Body"].read())

        def objects_under(prefix: str) -> dict[str, bytes]:
            found = {}
            for key in listed(prefix):
                with suppress(client.exceptions.NoSuchKey):  # the dead worker's last request was still under way
                    found[key.removeprefix(prefix)] = get(key)
            return found

        def new_run() -> Run:
            root = uuid.uuid4().hex
            prefix = f"{root}/run/"

            def clear() -> None:
                if keys := listed(f"{root}/"):
                    client.delete_objects(Bucket=_BUCKET, Delete={"Objects": [{"Key": key} for key in keys]})

            return Run(
                "run",
                f"s3://{_BUCKET}/{root}",
                lambda: objects_under(prefix),
                lambda: {key for key in listed(f"{root}/") if not key.startswith(prefix)},
                clear,
                environment={
                    "AWS_ACCESS_KEY_ID": server.key,
                    "AWS_SECRET_ACCESS_KEY": server.secret,
                    "AWS_DEFAULT_REGION": "us-east-1",
                    "AWS_ENDPOINT_URL": server.endpoint,
                },
            )

        yield Store("s3", new_run, (*["obstore"] * 3, "fsspec") if _has_obstore() else ("fsspec",))


@contextmanager
def azureml_store(folder: Path, service: FakeAzureML | None = None) -> Iterator[Store]:
    """Azure ML as the package's own fake plays it; looked at with azure-storage-blob, and with plain HTTP."""
    if service is None:
        with azureml_server(folder, plain=True) as service, azureml_store(folder, service) as store:
            yield store
        return
    from azure.core.exceptions import ResourceNotFoundError
    from azure.storage.blob import ContainerClient

    with ContainerClient.from_connection_string(service.azurite.connection_string, "azureml") as container:

        def new_run() -> Run:
            run_id = service.new_run("torture")
            caller = Caller(service, run_id, "torture")
            prefix = f"ExperimentRun/dcid.{run_id}/"

            def registered() -> set[str]:
                return {artifact["path"] for artifact in caller.listed()}

            def blobs() -> set[str]:
                return {name.removeprefix(prefix) for name in container.list_blob_names(name_starts_with=prefix)}

            def objects() -> dict[str, bytes]:
                found = {}
                # The paths first: one that is forgotten is no object any more, whatever its blob does.
                for path in registered() & blobs():
                    with suppress(ResourceNotFoundError):  # what a killed process asked for last is done just now
                        found[path] = container.download_blob(prefix + path).readall()
                return found

            def clear() -> None:
                for path in blobs():
                    container.delete_blob(prefix + path)

            return Run(
                run_id,
                "azureml:",
                objects,
                lambda: registered() ^ blobs(),
                clear,
                environment=service.environment(run_id),
            )

        yield Store("azureml", new_run)


@contextmanager
def mlflow_store(folder: Path, server: MlflowServer | None = None) -> Iterator[Store]:
    """A real MLflow server that proxies into a folder; looked at with mlflow's own client."""
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    logging.getLogger("mlflow.store.artifact").setLevel(logging.ERROR)  # it tells of each empty run
    if server is None:
        launcher = Launcher(folder)
        try:
            keeps = ("--artifacts-destination", "artifacts")
            server = MlflowServer(*launcher.ask("folder", *workers(), *keeps))
            with mlflow_store(folder, server) as store:
                yield store
        finally:
            launcher.close()
        return

    def new_run() -> Run:
        run_id = server.run()
        kept = server.folder / "artifacts" / "0" / run_id / "artifacts"

        def objects() -> dict[str, bytes]:
            with tempfile.TemporaryDirectory(dir=folder) as target:
                return server.downloaded(run_id, Path(target))

        return Run(
            run_id,
            server.sink_uri,
            objects,
            set,  # what the client lists is all there is
            lambda: shutil.rmtree(kept, ignore_errors=True),
            environment={"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
        )

    yield Store("mlflow", new_run)


@contextmanager
def open_store(name: str, folder: Path) -> Iterator[Store]:
    """Start what a store needs, until the block ends."""
    if name == "file":
        yield file_store(folder)
    else:
        with {"s3": s3_store, "azureml": azureml_store, "mlflow": mlflow_store}[name](folder) as store:
            yield store


STORES = ("file", "s3", "azureml", "mlflow")


def _has_obstore() -> bool:
    from importlib.util import find_spec

    return find_spec("obstore") is not None
