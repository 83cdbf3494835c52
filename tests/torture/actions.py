"""What a worker does: stagesink's public face, called as a training script calls it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from stagesink import ArtifactUploader, TransferOptions, list_committed, open_sink, restore
from torture.boundaries import Boundaries

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
    "stagesink.sinks.fsspec.sink": {"PART_BYTES": 512 << 10},
    "stagesink.sinks.azureml.blobs": {"_WHOLE": 256 << 10, "_BLOCK": 512 << 10},
}


def warm_up() -> None:
    """Import what is imported late, as far as it is installed, but start nothing: the process is going to fork."""
    for name in _IMPORTED_LATE:
        with suppress(ImportError):
            importlib.import_module(name)


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


def run(job: dict[str, Any]) -> None:
    """Do what the job says, step by step; a step that does not succeed ends it."""
    for name, arguments in job["steps"]:
        _ACTIONS[name](job, **arguments)


def _uploader(job: dict[str, Any]) -> ArtifactUploader:
    sink, options = job["sink"], job["options"]
    if job["client"] == "fsspec":
        sink, options = _by_fsspec(job), None
    return ArtifactUploader(
        job["run_id"], "training", sink=sink, storage_options=options, workers=job["workers"], on_failure="raise"
    )


def _by_fsspec(job: dict[str, Any]) -> Any:
    from stagesink.sinks.fsspec import open_fsspec

    return open_fsspec(job["sink"], job["options"])


def _upload(job: dict[str, Any], *, tree: str, file: str) -> None:
    with _uploader(job) as uploader:
        assert uploader.upload_checkpoint(tree, "checkpoint")
        assert uploader.upload_file(file, "metrics.json")
        assert uploader.upload_packed_checkpoint(str(Path(tree) / "shards"), "best.tar.gz", trial_number=1)


def _replace(job: dict[str, Any], *, tree: str) -> None:
    with _uploader(job) as uploader:
        assert uploader.upload_checkpoint(tree, "checkpoint")


def _restore(job: dict[str, Any], *, target: str) -> None:
    sink = _by_fsspec(job) if job["client"] == "fsspec" else open_sink(job["sink"], storage_options=job["options"])
    manifests = list_committed(sink, job["run_id"])
    restore(sink, manifests, target, TransferOptions(workers=job["workers"]))
    sink.close()


_ACTIONS: dict[str, Callable[..., None]] = {"upload": _upload, "replace": _replace, "restore": _restore}
