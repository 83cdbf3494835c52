"""Does the store still hold what its manifests say?"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from stagesink.artifacts import ArtifactKey
from stagesink.errors import ArtifactNotFound, StagesinkError, TransferCancelled
from stagesink.manifest import Manifest, ManifestEntry
from stagesink.sinks.protocol import ArtifactSink
from stagesink.transfer.options import TransferOptions
from stagesink.transfer.pool import run_jobs
from stagesink.transfer.progress import ProgressCallback, ProgressCounter
from stagesink.transfer.read import hash_object
from stagesink.transfer.retry import RetryPolicy

CheckStatus = Literal["ok", "missing", "size", "content", "unreadable"]


@dataclass(frozen=True, slots=True)
class Check:
    """What became of one object.

    Parameters
    ----------
    key : ArtifactKey
    size : int
        Bytes the manifest names.
    status : {"ok", "missing", "size", "content", "unreadable"}
    detail : str
        What is wrong, for people.
    """

    key: ArtifactKey
    size: int
    status: CheckStatus
    detail: str = ""


def verify(
    sink: ArtifactSink,
    manifests: Sequence[Manifest],
    options: TransferOptions | None = None,
    *,
    progress: ProgressCallback | None = None,
) -> tuple[Check, ...]:
    """Hold sizes and sha256 of what lies in the store against its manifests.

    Every byte is read, unless ``options.verify`` is "size".

    Returns
    -------
    tuple of Check
        One per object, in the order of the manifests. Nothing is raised for an object that is bad or unreadable.
    """
    options = options or TransferOptions(verify="full")
    wanted = [(ArtifactKey(m.run_id, entry.path), entry) for m in manifests for entry in m.objects()]
    cancel = threading.Event()
    retry = RetryPolicy(options, cancel)
    counter = ProgressCounter("verify", len(wanted), sum(entry.size for _, entry in wanted), progress)
    # By place, not by key: two manifests may name the same object and disagree about it.
    checks: dict[int, Check] = {}

    def check(place: int, key: ArtifactKey, entry: ManifestEntry) -> None:
        try:
            checks[place] = retry.call(lambda: _check(sink, key, entry, options, cancel, retry.moved))
        except TransferCancelled:
            raise
        except StagesinkError as error:
            checks[place] = Check(key, entry.size, "unreadable", str(error))
        counter.add_bytes(entry.size)
        counter.add_file()

    jobs = [
        (entry.size, lambda place=place, key=key, entry=entry: check(place, key, entry))
        for place, (key, entry) in enumerate(wanted)
    ]
    try:
        run_jobs(jobs, workers=options.workers, cancel=cancel, tick=counter.tick)
    finally:
        counter.finish()
    return tuple(checks[place] for place in range(len(wanted)))


def _check(
    sink: ArtifactSink,
    key: ArtifactKey,
    entry: ManifestEntry,
    options: TransferOptions,
    cancel: threading.Event,
    moved: Callable[[], None],
) -> Check:
    if options.verify == "size":
        stored = sink.stat(key)
        if stored is None:
            return Check(key, entry.size, "missing", "The store does not hold it.")
        size, sha256 = stored.size, entry.sha256
    else:
        try:
            size, sha256 = hash_object(sink, key, cancel, moved)
        except ArtifactNotFound:
            return Check(key, entry.size, "missing", "The store does not hold it.")
    if size != entry.size:
        return Check(key, entry.size, "size", f"The store holds {size} bytes, the manifest says {entry.size}.")
    if sha256 != entry.sha256:
        return Check(key, entry.size, "content", f"Its sha256 is {sha256}, the manifest says {entry.sha256}.")
    return Check(key, entry.size, "ok")
