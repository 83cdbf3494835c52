"""The driver protocol. The numbered clauses of :class:`ArtifactSink` are the contract."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import BinaryIO, Protocol, runtime_checkable

from stagesink.artifacts import ArtifactKey, Source, StoredArtifact

OnBytes = Callable[[int], None]
"""Told how many more bytes were sent; a negative number takes back what an inner restart has to send again."""


@runtime_checkable
class ArtifactSink(Protocol):
    """Puts ONE object into ONE backend, whole or not at all, and gets it out again.

    A sink does not retry, reads no configuration, knows nothing of stages or other objects and swallows no error. The
    contract, which :class:`stagesink.testing.SinkConformance` checks clause by clause:

    1.  ``put`` is all or nothing: a reader at any moment sees the old object, or the new one, or none; never a part. An
        error raised by the source while it is read reaches the caller unchanged, and nothing has landed.
    2.  ``put`` overwrites; the same bytes twice is a no-op in effect.
    3.  What ``put`` returned, ``stat`` returns; ``digests`` are what the BACKEND computed or stored, not an echo of
        ours. ``stat`` may tell more of them, where the answer to a put tells fewer.
    4.  ``list`` yields every object under the prefix exactly once, over any number of pages, and nothing half-written.
        A prefix names an object or a folder: ``"a"`` covers ``a`` and ``a/b``, not ``ab``. A run that holds nothing is
        empty.
    5.  A missing object: ``stat`` gives None, ``open`` raises :class:`~stagesink.errors.ArtifactNotFound`, ``delete``
        is silent.
    6.  Every failure is a :class:`~stagesink.errors.SinkError`; its class decides whether the engine retries.
    7.  Thread-safe; usable after fork and after pickling.
    8.  Bounded memory: an object of any size within a fixed number of part buffers.
    9.  Zero-byte objects, names with spaces, unicode, ``%``, ``#``, ``+``, segments of 255 bytes.
    10. ``on_bytes`` counts exactly ``size`` bytes for a successful put, also after an inner restart.

    Attributes
    ----------
    uri : str
        Printable address of the sink; secrets never appear in it.
    """

    @property
    def uri(self) -> str: ...

    def put(self, key: ArtifactKey, source: Source, *, on_bytes: OnBytes | None = None) -> StoredArtifact:
        """Store all bytes of ``source`` under ``key``."""
        ...

    def stat(self, key: ArtifactKey) -> StoredArtifact | None:
        """Ask the backend what it holds under ``key``."""
        ...

    def open(self, key: ArtifactKey) -> BinaryIO:
        """Open the object for reading, from its first byte."""
        ...

    def list(self, run_id: str, prefix: str = "") -> Iterator[StoredArtifact]:
        """Yield what lies under ``prefix``, in no particular order."""
        ...

    def delete(self, key: ArtifactKey) -> None:
        """Remove the object, if it is there.

        Raises
        ------
        DeleteNotSupported
            The backend cannot remove it, or not without others; nothing was removed.
        """
        ...

    def close(self) -> None:
        """Let go of connections. The sink is not used afterwards."""
        ...


@runtime_checkable
class BatchingSink(ArtifactSink, Protocol):
    """A sink whose objects can share the cost of becoming durable. A capability, not part of the contract.

    The engine uses it where it is there, and writes the commit marker only after the block.
    """

    def batch(self) -> AbstractContextManager[ArtifactSink]:
        """Yield a view of this sink; what is put through it is durable at the end of the block, and visible as ever."""
        ...


@runtime_checkable
class ExpectingSink(ArtifactSink, Protocol):
    """A sink that is quicker when it knows what comes. A capability, not part of the contract."""

    def expecting(self, keys: Sequence[ArtifactKey]) -> AbstractContextManager[None]:
        """Say what is going to be put before the block ends, as far as is known; some of it may never come.

        Parameters
        ----------
        keys : sequence of ArtifactKey
            Of one run.
        """
        ...


@runtime_checkable
class ReportingSink(ArtifactSink, Protocol):
    """A sink that knows which digests its backend is going to tell. A capability, not part of the contract.

    The engine takes them while the bytes pass, so that what ``put``, ``stat`` or ``list`` tells can be compared.

    Attributes
    ----------
    reports : mapping of str to int
        Names of digests, and of objects of up to how many bytes they are told.
    """

    @property
    def reports(self) -> Mapping[str, int]: ...


@runtime_checkable
class NotingSink(ArtifactSink, Protocol):
    """A sink with a better way for the notes that writers leave each other. A capability, not part of the contract."""

    def notes(self) -> ArtifactSink:
        """Return a view of this sink.

        What is put through it need not outlive a power cut. It lists as one byte what a killed writer has begun and
        nobody can read, where that would stay in others' way.
        """
        ...


@runtime_checkable
class LastingSink(ArtifactSink, Protocol):
    """A sink that may be unable to remove any object of a run, and knows. A capability, not part of the contract."""

    def removes(self, run_id: str) -> bool:
        """Tell whether objects of that run can be removed, as far as is known."""
        ...


@runtime_checkable
class ScratchRunSink(ArtifactSink, Protocol):
    """A sink that can make a run to be tried out in. A capability, not part of the contract."""

    def scratch_run(self) -> AbstractContextManager[str]:
        """Make a run, yield its id, and delete it at the end of the block."""
        ...


@runtime_checkable
class TrackedSink(ArtifactSink, Protocol):
    """A sink whose runs are made by a tracking server. A capability, not part of the contract.

    Attributes
    ----------
    tracks_runs : bool
        True: an upload needs a run that the server knows, so none is invented for it.
    tracking_uri : str
        Where trackers start and end those runs, as MLflow's client takes it. May hold a password, so it is never shown.
    """

    tracks_runs: bool
    tracking_uri: str


@runtime_checkable
class LocatedSink(ArtifactSink, Protocol):
    """A sink whose URI does not say which store it lies in. A capability, not part of the contract.

    Attributes
    ----------
    host : str
        Printable address of that store; what was kept for one is not uploaded to another. Empty where it is not known.
    """

    @property
    def host(self) -> str: ...


def host_of_sink(sink: ArtifactSink) -> str:
    """Return the address of the store that a sink lies in, "" where its URI says it."""
    return sink.host if isinstance(sink, LocatedSink) else ""


@runtime_checkable
class SweepingSink(ArtifactSink, Protocol):
    """A sink in whose store a killed process leaves something behind. A capability, not part of the contract."""

    def sweep(self, older_than: timedelta) -> builtins.list[str] | None:
        """Remove what was begun under this sink's address longer ago than that and never finished; no object is.

        Returns
        -------
        list of str or None
            What was removed, printable. None: such a store is not looked through.
        """
        ...
