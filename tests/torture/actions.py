"""What a worker does: stagesink's public face, called as a training script calls it."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torture.boundaries import Boundaries

from stagesink import ArtifactUploader, TransferOptions, list_committed, open_sink, restore

_IMPORTED_LATE = (
    "azure.identity",
    "isal.igzip",
    "s3fs",
    "stagesink.sinks.azureml",
    "stagesink.sinks.fsspec",
    "stagesink.sinks.local",
    "stagesink.sinks.mlflow",
    "stagesink.sinks.obstore",
    "urllib3",
    "zstandard",
)

# So that objects of two megabytes go in parts. What is not there has been renamed, and must be here too.
_SMALLER_PARTS = {
    "stagesink.sinks.obstore.parts": {"PART_BYTES": 256 << 10},
    "stagesink.sinks.azureml.blobs": {"_WHOLE": 256 << 10, "_BLOCK": 512 << 10},
}


def warm_up() -> None:
    """Import what is imported late, as far as it is installed, but start nothing: the process is going to fork."""
    for name in _IMPORTED_LATE:
        with suppress(ImportError):
            importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        tree, file = Path(folder, "tree"), Path(folder, "file")
        (tree / "shards").mkdir(parents=True)
        for path in (file, tree / "shards" / "1"):
            path.write_bytes(b"warm")
        here = os.getcwd()
        os.chdir(folder)
        os.environ["STAGESINK_SINK"] = f"file:{folder}/store"
        job = {"run_id": "warm-up", "workers": 1}
        _upload(job, tree=str(tree), file=str(file))
        _restore(job, target=f"{folder}/restored")
        _hand_over(job, items={"checkpoint": str(tree)}, background=False)
        _sync(job)
        del os.environ["STAGESINK_MODE"]
        os.chdir(here)


def install(job: dict[str, Any], boundaries: Boundaries) -> None:
    """Make this process ready for a job's sink."""
    for name, values in _SMALLER_PARTS.items():
        with suppress(ImportError):
            module = importlib.import_module(name)
            for constant, value in values.items():
                assert isinstance(getattr(module, constant), int)
                setattr(module, constant, value)
    if job["client"] == "obstore":
        boundaries.install_obstore()
    if job["client"] == "fsspec":
        from stagesink.sinks.obstore import stores

        stores.usable = lambda: False


def run(job: dict[str, Any]) -> None:
    """Do what the job says, step by step; a step that does not succeed ends it."""
    for name, arguments in job["steps"]:
        _ACTIONS[name](job, **arguments)


def _uploader(job: dict[str, Any], **settings: Any) -> ArtifactUploader:
    return ArtifactUploader(job["run_id"], "training", workers=job["workers"], on_failure="raise", **settings)


def _upload(job: dict[str, Any], *, tree: str, file: str) -> None:
    with _uploader(job) as uploader:
        assert uploader.upload_checkpoint(tree, "checkpoint")
        assert uploader.upload_file(file, "metrics.json")
        assert uploader.upload_packed_checkpoint(str(Path(tree) / "shards"), "best.tar.gz", trial_number=1)


def _replace(job: dict[str, Any], *, tree: str) -> None:
    with _uploader(job) as uploader:
        assert uploader.upload_checkpoint(tree, "checkpoint")


def _rank(job: dict[str, Any], *, tree: str, rank: int, world_size: int, session: str) -> None:
    with _uploader(job) as uploader:
        assert uploader.upload_checkpoint(tree, "checkpoint", rank=rank, world_size=world_size, session=session)


def _restore(job: dict[str, Any], *, target: str) -> None:
    sink = open_sink(os.environ["STAGESINK_SINK"])
    manifests = list_committed(sink, job["run_id"])
    restore(sink, manifests, target, TransferOptions(workers=job["workers"]))
    sink.close()


def _hand_over(job: dict[str, Any], *, items: dict[str, str], background: bool) -> None:
    """Have files uploaded later, each taken away as soon as its call has returned: the trainer rotates.

    What has been taken away already was handed over by a worker that was killed since.
    """
    if not background:
        os.environ["STAGESINK_MODE"] = "offline"
    with _uploader(job, background=background) as uploader:
        calls: dict[str, Callable[..., bool]] = {
            "checkpoint": uploader.upload_checkpoint,
            "metrics.json": uploader.upload_file,
            "best.tar.gz": uploader.upload_packed_checkpoint,
        }
        for destination, path in items.items():
            if os.path.exists(path):
                done = calls[destination](path, destination)
                assert done is background, destination
                os.rename(path, f"{path}.rotated")
        assert all(receipt.status == "kept" for receipt in uploader.receipts)
        assert uploader.flush(60)


def _sync(job: dict[str, Any]) -> None:
    from stagesink.cli.app import app

    app(["sync", "--workers", str(job["workers"]), "--quiet"], standalone_mode=False)


def _collect_garbage(job: dict[str, Any]) -> None:
    from stagesink.cli.app import app

    app(["outbox", "gc", "--quiet"], standalone_mode=False)


_ACTIONS: dict[str, Callable[..., None]] = {
    "upload": _upload,
    "replace": _replace,
    "rank": _rank,
    "restore": _restore,
    "hand over": _hand_over,
    "sync": _sync,
    "collect garbage": _collect_garbage,
}
