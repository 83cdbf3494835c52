"""Hand an ML stage's files to one call: they land, whole and proven, in MLflow, in Azure ML or in any fsspec store."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stagesink._version import __version__

if TYPE_CHECKING:
    from stagesink.archive import create_checkpoint_archive, extract_checkpoint_archive
    from stagesink.artifacts import ArtifactKey, FileSource, MemorySource, Receipt, Source, StoredArtifact
    from stagesink.deprecated import log_artifact_safe, log_artifacts_safe, upload_checkpoint_archive
    from stagesink.drain import install_drain
    from stagesink.errors import StagesinkError
    from stagesink.manifest import Manifest
    from stagesink.metrics import upload_metrics
    from stagesink.outbox.background import flush
    from stagesink.runs import get_mlflow_run_id
    from stagesink.sinks import ArtifactSink, open_sink
    from stagesink.stage_helpers import (
        upload_benchmark_artifacts,
        upload_conversion_artifacts,
        upload_hpo_artifacts,
        upload_training_artifacts,
    )
    from stagesink.transfer import Progress, Transfer, TransferOptions, list_committed, restore, verify
    from stagesink.tree import should_skip_file
    from stagesink.uploader import ArtifactUploader

# Where each public name lives. They are imported at first use: `import stagesink` stays a matter of milliseconds in
# every process of a job, also those that upload nothing.
_HOMES = {
    "stagesink.archive": ("create_checkpoint_archive", "extract_checkpoint_archive"),
    "stagesink.artifacts": ("ArtifactKey", "FileSource", "MemorySource", "Receipt", "Source", "StoredArtifact"),
    "stagesink.deprecated": ("log_artifact_safe", "log_artifacts_safe", "upload_checkpoint_archive"),
    "stagesink.drain": ("install_drain",),
    "stagesink.errors": ("StagesinkError",),
    "stagesink.manifest": ("Manifest",),
    "stagesink.metrics": ("upload_metrics",),
    "stagesink.outbox.background": ("flush",),
    "stagesink.runs": ("get_mlflow_run_id",),
    "stagesink.sinks": ("ArtifactSink", "open_sink"),
    "stagesink.stage_helpers": (
        "upload_benchmark_artifacts",
        "upload_conversion_artifacts",
        "upload_hpo_artifacts",
        "upload_training_artifacts",
    ),
    "stagesink.transfer": ("Progress", "Transfer", "TransferOptions", "list_committed", "restore", "verify"),
    "stagesink.tree": ("should_skip_file",),
    "stagesink.uploader": ("ArtifactUploader",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ArtifactKey",
    "ArtifactSink",
    "ArtifactUploader",
    "FileSource",
    "Manifest",
    "MemorySource",
    "Progress",
    "Receipt",
    "Source",
    "StagesinkError",
    "StoredArtifact",
    "Transfer",
    "TransferOptions",
    "__version__",
    "create_checkpoint_archive",
    "extract_checkpoint_archive",
    "flush",
    "get_mlflow_run_id",
    "install_drain",
    "list_committed",
    "log_artifact_safe",
    "log_artifacts_safe",
    "open_sink",
    "restore",
    "should_skip_file",
    "upload_benchmark_artifacts",
    "upload_checkpoint_archive",
    "upload_conversion_artifacts",
    "upload_hpo_artifacts",
    "upload_metrics",
    "upload_training_artifacts",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
