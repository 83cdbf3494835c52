"""The four sinks of the fault matrix, each with what stands before it and a reader that is none of ours."""

from __future__ import annotations

import os
import ssl
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from azureml_lines import Job
from azureml_servers import Caller
from faults.proxy import FaultProxy
from mlflow_servers import MlflowServer
from outside import files_in
from servers import S3Server, installed

from stagesink.outbox.settings import OutboxSettings
from stagesink.outbox.store import Outbox
from stagesink.outbox.sync import Outcome, Sync
from stagesink.sinks import open_sink
from stagesink.transfer import TransferOptions

RUN = "run"


@dataclass
class World:
    """One sink, what a training process has at hand, and what lies where in the end.

    Attributes
    ----------
    kind : str
        ``file``, ``s3``, ``azureml`` or ``mlflow``.
    sink : str
        URI. Credentials are in ``options`` and in the environment.
    objects : callable
        What anybody else reads in the run now: bytes by path.
    line : FaultProxy or None
        What the objects pass on their way; None where there is no network.
    fronts : tuple of FaultProxy
        What everything else passes, too.
    root : Path or None
        The folder of ``file:``.
    work : Path
        Of this cell alone: checkpoint and outbox lie in it, until a fault puts them elsewhere.
    """

    kind: str
    run_id: str
    sink: str
    objects: Callable[[], dict[str, bytes]]
    work: Path
    monkeypatch: pytest.MonkeyPatch
    options: dict[str, Any] = field(default_factory=dict)
    line: FaultProxy | None = None
    fronts: tuple[FaultProxy, ...] = ()
    root: Path | None = None
    job: Job | None = None
    mounts: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.checkpoint = self.work / "out" / "checkpoint"
        self.outbox = self.work / "outbox"

    @property
    def lines(self) -> tuple[FaultProxy, ...]:
        return self.fronts if self.line is None else (*self.fronts, self.line)

    def sync(self) -> list[Outcome]:
        """Land what waits, as ``stagesink sync`` does: a new look at the outbox, sinks opened anew."""
        outbox = Outbox(OutboxSettings(path=str(self.outbox), keep_free=0))
        opened = partial(open_sink, storage_options=self.options)
        options = TransferOptions(attempts=2, initial=0.01)
        # Moved: a host name that is not resolved is another one here.
        with closing(outbox), Sync(outbox, opened, options, moved=True) as run:
            return list(run.run())

    @contextmanager
    def away(self) -> Iterator[None]:
        """Make the backend fail at every object until the block ends."""
        if self.line is None:
            assert self.root is not None
            aside = self.root.with_name("aside")
            if self.root.exists():
                self.root.rename(aside)
            self.root.touch()  # a file where its folder goes
            yield
            self.root.unlink()
            if aside.exists():
                aside.rename(self.root)
        else:
            with self.line.down():
                yield


@contextmanager
def file_world(work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """``file:``; read as plain files, the hidden ones too."""
    root = work / "store"
    world = World("file", RUN, f"file:{root}", lambda: files_in(root / RUN), work, monkeypatch, root=root)
    with world.mounts:
        yield world


@contextmanager
def s3_world(
    moto: S3Server, bucket: str, work: Path, monkeypatch: pytest.MonkeyPatch, *, tls: bool = False
) -> Iterator[World]:
    """S3 as moto plays it; read with boto3."""
    root = f"matrix/{uuid.uuid4().hex}"
    client = moto.boto3()

    def objects() -> dict[str, bytes]:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{root}/")
        keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
        assert all(key.startswith(f"{root}/{RUN}/") for key in keys)
        return {
            key.removeprefix(f"{root}/{RUN}/"): client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys
        }

    with FaultProxy(moto.port, tls=_certified(tls, work, monkeypatch)) as line:
        options = moto.options(port=line.port)
        if tls:
            options["endpoint_url"] = f"https://127.0.0.1:{line.port}"
        world = World("s3", RUN, f"s3://{bucket}/{root}", objects, work, monkeypatch, options, line)
        with world.mounts:
            yield world


@contextmanager
def azureml_world(job: Job, work: Path, monkeypatch: pytest.MonkeyPatch, *, tls: bool = False) -> Iterator[World]:
    """Azure ML as the package's own fake plays it; its paths read by plain HTTP, its blobs by Microsoft's client."""
    installed("azure.storage.blob")
    from azure.storage.blob import ContainerClient

    service, lines = job.service, job.lines
    caller = Caller(service, job.run_id, "an%20experiment")
    prefix = f"ExperimentRun/dcid.{job.run_id}/"
    connection = service.azurite.connection_string.replace(f":{lines.store.port}/", f":{lines.store._target}/")

    def objects() -> dict[str, bytes]:
        with ContainerClient.from_connection_string(connection, "azureml") as container:
            paths = [artifact["path"] for artifact in caller.listed()]
            assert len(paths) == len(set(paths))
            blobs = {name.removeprefix(prefix) for name in container.list_blob_names(name_starts_with=prefix)}
            assert set(paths) == blobs, "a path without a blob, or a blob without a path"
            return {path: container.download_blob(prefix + path).readall() for path in paths}

    world = World(
        "azureml", job.run_id, "azureml:", objects, work, monkeypatch, {}, lines.store, (lines.front,), job=job
    )
    with world.mounts:
        if tls:
            front = world.mounts.enter_context(FaultProxy(service.port, tls=_certified(tls, work, monkeypatch)))
            for name in ("AZUREML_SERVICE_ENDPOINT", "MLFLOW_TRACKING_URI"):
                there = os.environ[name].replace(f"127.0.0.1:{lines.front.port}", f"127.0.0.1:{front.port}")
                monkeypatch.setenv(name, there.replace("http://", "https://"))
            world.fronts = (front,)
        yield world


@contextmanager
def mlflow_world(
    server: MlflowServer, work: Path, monkeypatch: pytest.MonkeyPatch, *, tls: bool = False
) -> Iterator[World]:
    """A real server that proxies into a folder; read as the run's page reads it."""
    run_id = server.run()

    def objects() -> dict[str, bytes]:
        found, folders = {}, [""]
        while folders:
            for path, size in server.seen_in_ui(run_id, folders.pop()).items():
                if size is None:
                    folders.append(path)
                else:
                    assert path not in found
                    found[path] = server.opened_in_ui(run_id, path)
        return found

    with FaultProxy(server.port, tls=_certified(tls, work, monkeypatch)) as line:
        address = f"mlflow+{'https' if tls else 'http'}://127.0.0.1:{line.port}"
        world = World("mlflow", run_id, address, objects, work, monkeypatch, {}, line)
        with world.mounts:
            yield world


def _certified(tls: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext | None:
    """Return what a server on this machine shows, with every client trusting it."""
    if not tls:
        return None
    import trustme

    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    file = folder / "authority.pem"
    authority.cert_pem.write_to_path(str(file))
    for name in ("AWS_CA_BUNDLE", "MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(name, str(file))
    return context
