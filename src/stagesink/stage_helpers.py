"""The four stage helpers: one line at the end of a stage, and its artifacts are where the stage table says.

Each takes ``sink=`` and the other keyword arguments of :class:`stagesink.ArtifactUploader` as well.
"""

from __future__ import annotations

from typing import Any

from stagesink.planning import StrPath
from stagesink.sinks import ArtifactSink
from stagesink.uploader import ArtifactUploader


def upload_training_artifacts(
    checkpoint_dir: StrPath | None,
    metrics_json_path: StrPath | None = None,
    run_id: str | None = None,
    config_dir: StrPath | None = None,
    *,
    sink: StrPath | ArtifactSink | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    session: str | None = None,
    **options: Any,
) -> dict[str, bool]:
    """Upload what training hands over.

    Parameters
    ----------
    checkpoint_dir : path or None
        Lands as ``checkpoint/``.
    metrics_json_path : path, optional
        Lands as ``metrics.json``.
    run_id : str, optional
    config_dir : path, optional
        Folder that holds ``mlflow.yaml``.
    sink : str, path or ArtifactSink, optional
    rank, world_size : int, optional
        The checkpoint is this rank's part of one that all ranks upload, see
        :meth:`.ArtifactUploader.upload_checkpoint`. Hand over the metrics on one rank only.
    session : str, optional
    **options
        Of :class:`stagesink.ArtifactUploader`: ``on_failure``, ``verify``, ``workers``, ``progress``.

    Returns
    -------
    dict of str to bool
        ``checkpoint`` and ``metrics_json``, for those that were given: True when it landed.
    """
    with ArtifactUploader(run_id, "training", config_dir, sink=sink, **options) as uploader:
        paths = _given(checkpoint=checkpoint_dir, metrics_json=metrics_json_path)
        return uploader.upload_slots(paths, ranks=(rank, world_size, session))


def upload_conversion_artifacts(
    onnx_path: StrPath,
    run_id: str | None = None,
    config_dir: StrPath | None = None,
    *,
    sink: StrPath | ArtifactSink | None = None,
    conversion_log_path: StrPath | None = None,
    **options: Any,
) -> bool:
    """Upload what a conversion hands over.

    Parameters
    ----------
    onnx_path : path
        Lands as ``onnx_model/<file name>``.
    run_id : str, optional
    config_dir : path, optional
    conversion_log_path : path, optional
        Lands as ``conversion_log.txt``.
    sink : str, path or ArtifactSink, optional
    **options
        Of :class:`stagesink.ArtifactUploader`: ``on_failure``, ``verify``, ``workers``, ``progress``.

    Returns
    -------
    bool
        True when everything that was given landed.
    """
    with ArtifactUploader(run_id, "conversion", config_dir, sink=sink, **options) as uploader:
        slots = {"onnx_model": onnx_path, **_given(conversion_log=conversion_log_path)}
        return all(uploader.upload_slots(slots).values())


def upload_benchmark_artifacts(
    benchmark_json_path: StrPath | None = None,
    run_id: str | None = None,
    config_dir: StrPath | None = None,
    *,
    sink: StrPath | ArtifactSink | None = None,
    **options: Any,
) -> dict[str, bool]:
    """Upload what a benchmark hands over.

    Parameters
    ----------
    benchmark_json_path : path, optional
        Lands as ``benchmark_results.json``.
    run_id : str, optional
    config_dir : path, optional
    sink : str, path or ArtifactSink, optional
    **options
        Of :class:`stagesink.ArtifactUploader`: ``on_failure``, ``verify``, ``workers``, ``progress``.

    Returns
    -------
    dict of str to bool
        ``benchmark_json``, when it was given.
    """
    with ArtifactUploader(run_id, "benchmark", config_dir, sink=sink, **options) as uploader:
        return uploader.upload_slots(_given(benchmark_json=benchmark_json_path))


def upload_hpo_artifacts(
    checkpoint_dir: StrPath,
    trial_number: int,
    run_id: str | None = None,
    config_dir: StrPath | None = None,
    *,
    sink: StrPath | ArtifactSink | None = None,
    **options: Any,
) -> bool:
    """Upload the best trial's checkpoint, packed while it is sent.

    Parameters
    ----------
    checkpoint_dir : path
        Lands as ``best_trial_checkpoint.tar.gz``, with ``best_trial_checkpoint_manifest.json`` beside it.
    trial_number : int
    run_id : str, optional
    config_dir : path, optional
    sink : str, path or ArtifactSink, optional
    **options
        Of :class:`stagesink.ArtifactUploader`: ``on_failure``, ``verify``, ``workers``, ``progress``.

    Returns
    -------
    bool
        True when it landed.
    """
    with ArtifactUploader(run_id, "hpo", config_dir, sink=sink, **options) as uploader:
        return uploader.upload_slots({"checkpoint": checkpoint_dir}, trial_number=trial_number)["checkpoint"]


def _given(**paths: StrPath | None) -> dict[str, StrPath]:
    """Leave out what was not handed over."""
    return {name: path for name, path in paths.items() if path is not None}
