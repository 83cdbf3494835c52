"""``memory:`` keeps objects in this process: for tests and dry runs."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from stagesink.artifacts import ArtifactKey, Source, StoredArtifact, lies_under
from stagesink.errors import ArtifactNotFound
from stagesink.sinks.protocol import OnBytes
from stagesink.streams import chunks


class _Store:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.objects: dict[ArtifactKey, bytes] = {}


_stores: dict[str, _Store] = {}
_stores_lock = threading.Lock()


class MemorySink:
    """Objects in a dict. ``memory:NAME`` is the same store for all who open it in this process; ``memory:`` is one too.

    A forked child has a copy of the store as it was, a pickled sink finds the store of that name where it is unpickled:
    the memory of one process is not another's.

    Parameters
    ----------
    name : str
        Of the store.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        with _stores_lock:
            self._store = _stores.setdefault(name, _Store())

    @property
    def uri(self) -> str:
        """Printable address of the sink."""
        return f"memory:{self.name}"

    def __reduce__(self) -> tuple[type[MemorySink], tuple[str]]:
        return MemorySink, (self.name,)

    def put(self, key: ArtifactKey, source: Source, *, on_bytes: OnBytes | None = None) -> StoredArtifact:
        """Store all bytes of ``source`` under ``key``; see :meth:`.ArtifactSink.put`."""
        parts = []
        with source.open() as stream:
            for chunk in chunks(stream):
                parts.append(bytes(chunk))
                if on_bytes is not None:
                    on_bytes(len(chunk))
        data = b"".join(parts)
        with self._store.lock:
            self._store.objects[key] = data
        return self._describe(key, data)

    def stat(self, key: ArtifactKey) -> StoredArtifact | None:
        """Return what is held under ``key``, or None."""
        data = self._store.objects.get(key)
        return None if data is None else self._describe(key, data)

    def open(self, key: ArtifactKey) -> BinaryIO:
        """Open the object for reading; raises :class:`~stagesink.errors.ArtifactNotFound` when it is not there."""
        data = self._store.objects.get(key)
        if data is None:
            raise ArtifactNotFound(f"{self.uri} holds no {key}.")
        return io.BytesIO(data)

    def list(self, run_id: str, prefix: str = "") -> Iterator[StoredArtifact]:
        """Yield the objects of a run, or those under one object's or folder's name."""
        with self._store.lock:
            found = [
                (key, data)
                for key, data in self._store.objects.items()
                if key.run_id == run_id and lies_under(key.path, prefix)
            ]
        return (self._describe(key, data) for key, data in found)

    def delete(self, key: ArtifactKey) -> None:
        """Remove the object, if it is there."""
        with self._store.lock:
            self._store.objects.pop(key, None)

    def close(self) -> None:
        """Nothing to let go of: the store lives as long as the process."""

    def _describe(self, key: ArtifactKey, data: bytes) -> StoredArtifact:
        # No digests: what is computed from our own copy would prove nothing that the copy itself does not.
        return StoredArtifact(key, f"{self.uri}/{key}" if self.name else f"{self.uri}{key}", len(data))


def open_memory(uri: str, storage_options: Mapping[str, Any]) -> MemorySink:
    """Open ``memory:``, ``memory:NAME`` or ``memory://NAME``."""
    return MemorySink(uri.partition(":")[2].strip("/"))
