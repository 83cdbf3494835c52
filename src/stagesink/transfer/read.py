"""Reading from a store: manifests, and objects with their digest taken while the bytes pass."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable

from stagesink.artifacts import NOTES_FOLDER, ArtifactKey, StoredArtifact, lies_under
from stagesink.errors import ArtifactNotFound, ManifestError, TransferCancelled
from stagesink.manifest import MAX_MANIFEST_BYTES, Manifest, is_manifest_path
from stagesink.sinks.protocol import ArtifactSink
from stagesink.streams import chunks
from stagesink.transfer.options import TransferOptions
from stagesink.transfer.retry import RetryPolicy


def read_manifest(sink: ArtifactSink, key: ArtifactKey) -> Manifest | None:
    """Return the manifest that lies at ``key``, None when there is nothing.

    Raises
    ------
    ManifestError
        What lies there is no manifest, or one that was moved there from elsewhere.
    """
    try:
        stream = sink.open(key)
    except ArtifactNotFound:
        return None
    with stream:
        data = bytearray()
        for chunk in chunks(stream):
            data += chunk
            if len(data) > MAX_MANIFEST_BYTES:
                raise ManifestError(f"{key} is larger than any manifest.", hint="Something else has taken its name.")
    manifest = Manifest.from_bytes(bytes(data))
    if manifest.key != key:
        raise ManifestError(f"The manifest at {key} describes {manifest.run_id}/{manifest.path}.")
    return manifest


def hash_object(
    sink: ArtifactSink, key: ArtifactKey, cancel: threading.Event, moved: Callable[[], None]
) -> tuple[int, str]:
    """Read an object to its end and return its size in bytes and its sha256. ``moved`` is called after each piece."""
    digest = hashlib.sha256()
    size = 0
    with sink.open(key) as stream:
        for chunk in chunks(stream):
            if cancel.is_set():
                raise TransferCancelled("The transfer was stopped.")
            digest.update(chunk)
            size += len(chunk)
            moved()
    return size, digest.hexdigest()


def list_objects(
    sink: ArtifactSink, run_id: str, prefix: str = "", options: TransferOptions | None = None
) -> tuple[StoredArtifact, ...]:
    """Return everything that lies in a run, committed or not, by path; but not what writers say to each other.

    Parameters
    ----------
    sink : ArtifactSink
    run_id : str
    prefix : str
        An object, or a folder.
    options : TransferOptions, optional
        How hard to try.

    Raises
    ------
    SinkError
        The store cannot be read.
    """
    retry = RetryPolicy(options or TransferOptions(), threading.Event())
    listed = retry.call(lambda: list(sink.list(run_id, prefix)))  # in one go: a listing cut off begins anew
    found = (stored for stored in listed if not lies_under(stored.key.path, NOTES_FOLDER))
    return tuple(sorted(found, key=lambda stored: stored.key.path))


def list_committed(sink: ArtifactSink, run_id: str, options: TransferOptions | None = None) -> tuple[Manifest, ...]:
    """Return the manifests of everything that is whole in a run, by path.

    Parameters
    ----------
    sink : ArtifactSink
    run_id : str
    options : TransferOptions, optional
        How hard to try.

    Raises
    ------
    SinkError
        The store cannot be read.
    """
    return read_committed(sink, list_objects(sink, run_id, options=options), options)


def read_committed(
    sink: ArtifactSink, objects: Iterable[StoredArtifact], options: TransferOptions | None = None
) -> tuple[Manifest, ...]:
    """Return the manifests among the objects of a run that were listed already, by path.

    Parameters
    ----------
    sink : ArtifactSink
    objects : iterable of StoredArtifact
        As :func:`list_objects` returns them.
    options : TransferOptions, optional
        How hard to try.

    Raises
    ------
    SinkError
        The store cannot be read.
    """
    retry = RetryPolicy(options or TransferOptions(), threading.Event())
    found = []
    for key in (stored.key for stored in objects if is_manifest_path(stored.key.path)):
        try:
            manifest = retry.call(lambda key=key: read_manifest(sink, key))  # type: ignore[misc]
        except ManifestError:
            continue  # a user's own file that only looks like one by its name
        if manifest is not None:
            found.append(manifest)
    return tuple(sorted(found, key=lambda manifest: manifest.path))
