"""The functions that stagesink replaces, for code that still calls them: an import is all that changes.

They land where they always did, but for an archive, which lands at its destination itself where an older
:func:`upload_checkpoint_archive` made a folder of that name. They answer with the same booleans. Each call warns with
what to write instead; ``stagesink migrate`` lists the calls of a whole code base.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from stagesink.planning import StrPath
from stagesink.sinks import ArtifactSink
from stagesink.uploader import ArtifactUploader

_ARCHIVE = "best_trial_checkpoint.tar.gz"


def log_artifact_safe(
    local_path: StrPath,
    artifact_path: str | None = None,
    run_id: str | None = None,
    max_retries: int | None = None,
    base_delay: float | None = None,
    config_dir: StrPath | None = None,
    *,
    sink: StrPath | ArtifactSink | None = None,
) -> bool:
    """Upload one file as ``mlflow.log_artifact`` would; never raises.

    .. deprecated:: 0.1
        Use :meth:`stagesink.ArtifactUploader.upload_file`, which takes the exact destination.

    Parameters
    ----------
    local_path : path
        A file; a folder lands under its own name.
    artifact_path : str, optional
        The FOLDER in the run that it is put into: ``log_artifact_safe("m.json", "m.json")`` makes ``m.json/m.json``.
        Default: the run's root.
    run_id : str, optional
    max_retries : int, optional
        Times it is tried. Default: ``artifacts.retries.attempts``.
    base_delay : float, optional
        Seconds before the second attempt, at most. Default: ``artifacts.retries.initial``.
    config_dir : path, optional
    sink : str, path or ArtifactSink, optional

    Returns
    -------
    bool
        True when it landed.
    """
    _warn("log_artifact_safe", "ArtifactUploader().upload_file(path, exact_destination)")
    folder = artifact_path or None
    if _is_path(local_path) and os.path.isdir(local_path):
        folder = _join(folder, local_path)
    with _uploader(run_id, max_retries, base_delay, config_dir, sink) as uploader:
        return uploader.add_files(local_path, folder)


def log_artifacts_safe(
    local_dir: StrPath,
    artifact_path: str | None = None,
    run_id: str | None = None,
    max_retries: int | None = None,
    base_delay: float | None = None,
    config_dir: StrPath | None = None,
    *,
    sink: StrPath | ArtifactSink | None = None,
) -> bool:
    """Upload what a folder holds as ``mlflow.log_artifacts`` would; never raises.

    .. deprecated:: 0.1
        Use :meth:`stagesink.ArtifactUploader.upload_checkpoint`, which replaces what an earlier upload left there, or
        :meth:`stagesink.ArtifactUploader.add_files`, which leaves it as this function does.

    Parameters
    ----------
    local_dir : path
    artifact_path : str, optional
        The folder in the run that its content is put into. Default: the run's root.
    run_id, max_retries, base_delay, config_dir, sink
        As for :func:`log_artifact_safe`.

    Returns
    -------
    bool
        True when every file landed.
    """
    _warn("log_artifacts_safe", "ArtifactUploader().upload_checkpoint(folder, destination) or .add_files(folder)")
    with _uploader(run_id, max_retries, base_delay, config_dir, sink) as uploader:
        if _is_path(local_dir) and os.path.isdir(local_dir):
            return uploader.add_files(local_dir, artifact_path or None)
        return uploader.upload_checkpoint(local_dir)  # no folder: it says what is wrong with it


def upload_checkpoint_archive(
    archive_path: StrPath,
    manifest: Mapping[str, Any] | None = None,
    artifact_path: str | None = _ARCHIVE,
    run_id: str | None = None,
    max_retries: int | None = None,
    base_delay: float | None = None,
    config_dir: StrPath | None = None,
    *,
    sink: StrPath | ArtifactSink | None = None,
) -> bool:
    """Upload an archive and its manifest; never raises, and never deletes the archive.

    .. deprecated:: 0.1
        Use :meth:`stagesink.ArtifactUploader.upload_checkpoint_archive`, or
        :func:`stagesink.upload_hpo_artifacts`, which packs while it sends.

    Parameters
    ----------
    archive_path : path
    manifest : mapping, optional
        What :func:`stagesink.create_checkpoint_archive` returned with it.
    artifact_path : str, optional
        Its destination; a name that does not end as the archive does is a folder that it is put into.
    run_id, max_retries, base_delay, config_dir, sink
        As for :func:`log_artifact_safe`.

    Returns
    -------
    bool
        True when archive and manifest landed.
    """
    _warn("upload_checkpoint_archive", "ArtifactUploader().upload_checkpoint_archive(archive, manifest)")
    destination = artifact_path or _ARCHIVE
    given = _is_path(archive_path) and _is_path(destination)
    if given and not os.fspath(destination).endswith(PurePath(archive_path).suffix):
        destination = _join(destination, archive_path)
    with _uploader(run_id, max_retries, base_delay, config_dir, sink) as uploader:
        return uploader.upload_checkpoint_archive(archive_path, manifest, destination)


def _warn(name: str, replacement: str) -> None:
    warnings.warn(
        f"{name} is deprecated: write {replacement} instead; `stagesink migrate PATH` lists every call.",
        DeprecationWarning,
        stacklevel=3,
    )


def _uploader(
    run_id: str | None,
    max_retries: int | None,
    base_delay: float | None,
    config_dir: StrPath | None,
    sink: StrPath | ArtifactSink | None,
) -> ArtifactUploader:
    attempts = 1 if max_retries == 0 else max_retries  # no second attempt is what 0 asked for
    return ArtifactUploader(
        run_id or None, config_dir=config_dir, sink=sink, on_failure="keep", attempts=attempts, initial=base_delay
    )


def _is_path(value: object) -> bool:
    return isinstance(value, (str, os.PathLike))  # what is none is refused by the uploader, in one sentence


def _join(folder: str | None, path: StrPath) -> str:
    name = os.path.basename(os.path.abspath(path))
    return f"{folder}/{name}" if folder else name
