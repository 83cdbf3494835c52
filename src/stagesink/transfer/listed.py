"""A sink around another that spares it questions, where many small uploads would ask more than they send."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from stagesink.artifacts import ArtifactKey, Source, StoredArtifact, lies_under
from stagesink.errors import ArtifactNotFound
from stagesink.sinks.protocol import ArtifactSink, OnBytes


class ListedSink:
    """Answers out of one listing of the run, and of what was put since.

    What it says of an object that was put is the word of the ``put``: :meth:`lost` holds it against the store, and
    until then nothing is proven.

    Parameters
    ----------
    inner : ArtifactSink
    run_id : str
        The one run that it is asked about.
    """

    def __init__(self, inner: ArtifactSink, run_id: str) -> None:
        self._inner = inner
        self._run_id = run_id
        self._known = {stored.key: stored for stored in inner.list(run_id)}

    @property
    def uri(self) -> str:
        return self._inner.uri

    def put(self, key: ArtifactKey, source: Source, *, on_bytes: OnBytes | None = None) -> StoredArtifact:
        self._known.pop(key, None)  # while it is replaced nobody knows
        stored = self._inner.put(key, source, on_bytes=on_bytes)
        self._known[key] = stored
        return stored

    def stat(self, key: ArtifactKey) -> StoredArtifact | None:
        return self._known.get(key)

    def open(self, key: ArtifactKey) -> BinaryIO:
        if key not in self._known:
            raise ArtifactNotFound(f"{self.uri} holds no {key}.")
        return self._inner.open(key)

    def list(self, run_id: str, prefix: str = "") -> Iterator[StoredArtifact]:
        return iter([stored for key, stored in list(self._known.items()) if lies_under(key.path, prefix)])

    def delete(self, key: ArtifactKey) -> None:
        self._inner.delete(key)
        self._known.pop(key, None)

    def close(self) -> None:
        """The sink inside is somebody else's."""

    def lost(self) -> set[ArtifactKey]:
        """Ask the store once more, and return what it does not hold with the size that it should have."""
        sizes = {stored.key: stored.size for stored in self._inner.list(self._run_id)}
        return {key for key, stored in self._known.items() if sizes.get(key) != stored.size}
