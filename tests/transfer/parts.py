"""Sinks, sources and folders that the engine is tried on."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

from stagesink.artifacts import NOTES_FOLDER, ArtifactKey, FileSource, MemorySource, Source, StoredArtifact, lies_under
from stagesink.manifest import Manifest
from stagesink.sinks.protocol import ArtifactSink, OnBytes
from stagesink.transfer import Plan, TransferOptions
from stagesink.transfer.plan import PlannedObject

RUN = "run"
QUICK = TransferOptions(workers=4, initial=0.0, max_wait=0.0)
"""Retries as ever, without a wait."""


class Recording:
    """Any sink; what was asked of it is listed in ``calls``, in order, as (operation, path)."""

    def __init__(self, inner: ArtifactSink) -> None:
        self.inner = inner
        self.calls: list[tuple[str, str]] = []
        self._lock = threading.Lock()

    @property
    def uri(self) -> str:
        return self.inner.uri

    def asked(self, operation: str) -> list[str]:
        """Paths of all calls of one operation."""
        return [path for name, path in self.calls if name == operation]

    def note(self, operation: str, path: str) -> None:
        if lies_under(path, NOTES_FOLDER):
            return  # of tests/transfer/test_turns.py and test_ranks.py
        with self._lock:
            self.calls.append((operation, path))

    def put(self, key: ArtifactKey, source: Source, *, on_bytes: OnBytes | None = None) -> StoredArtifact:
        self.note("put", key.path)
        return self.inner.put(key, source, on_bytes=on_bytes)

    def stat(self, key: ArtifactKey) -> StoredArtifact | None:
        self.note("stat", key.path)
        return self.inner.stat(key)

    def open(self, key: ArtifactKey) -> BinaryIO:
        self.note("open", key.path)
        return self.inner.open(key)

    def list(self, run_id: str, prefix: str = "") -> Iterator[StoredArtifact]:
        self.note("list", prefix)
        return self.inner.list(run_id, prefix)

    def delete(self, key: ArtifactKey) -> None:
        self.note("delete", key.path)
        self.inner.delete(key)

    def close(self) -> None:
        self.inner.close()


class Failing(Recording):
    """Fails by name: ``faults`` maps a path to the errors of its first puts; the last one stays when ``forever``."""

    def __init__(self, inner: ArtifactSink, faults: dict[str, list[Exception]], *, forever: bool = False) -> None:
        super().__init__(inner)
        self.faults = {path: list(errors) for path, errors in faults.items()}
        self.forever = forever

    def put(self, key: ArtifactKey, source: Source, *, on_bytes: OnBytes | None = None) -> StoredArtifact:
        self.note("put", key.path)
        if errors := self.faults.get(key.path):
            raise errors[0] if self.forever and len(errors) == 1 else errors.pop(0)
        return self.inner.put(key, source, on_bytes=on_bytes)


class DigestReporting(Recording):
    """A store that computes a digest of what it has got, as object stores do."""

    def __init__(self, inner: ArtifactSink, algorithm: str = "md5", *, wrong_first: int = 0) -> None:
        super().__init__(inner)
        self.algorithm = algorithm
        self.wrong = wrong_first

    def put(self, key: ArtifactKey, source: Source, *, on_bytes: OnBytes | None = None) -> StoredArtifact:
        stored = super().put(key, source, on_bytes=on_bytes)
        with self.inner.open(key) as stream:
            data = stream.read()
        if self.wrong and not lies_under(key.path, NOTES_FOLDER):
            self.wrong -= 1
            data += b"?"
        try:
            digest = hashlib.new(self.algorithm, data).hexdigest()
        except ValueError:
            digest = "an algorithm that the engine cannot take"
        return replace(stored, digests={self.algorithm: digest})


class DigestListing(DigestReporting):
    """One that tells it when it is asked what it holds, and not in its answer to a put."""

    reports: ClassVar = {"md5": 100}

    def __init__(self, inner: ArtifactSink, algorithm: str = "md5", *, wrong_first: int = 0) -> None:
        super().__init__(inner, algorithm, wrong_first=wrong_first)
        self.told: dict[ArtifactKey, StoredArtifact] = {}

    def put(self, key: ArtifactKey, source: Source, *, on_bytes: OnBytes | None = None) -> StoredArtifact:
        self.told[key] = stored = super().put(key, source, on_bytes=on_bytes)
        return replace(stored, digests={})

    def stat(self, key: ArtifactKey) -> StoredArtifact | None:
        found = super().stat(key)
        return found and self.told.get(key, found)

    def list(self, run_id: str, prefix: str = "") -> Iterator[StoredArtifact]:
        return (self.told.get(stored.key, stored) for stored in super().list(run_id, prefix))


@dataclass(frozen=True)
class Hooked:
    """A file whose reader calls ``hook`` when the first piece has been read, each time it is opened."""

    path: Path
    hook: Callable[[], None]

    @property
    def size(self) -> int:
        return FileSource(self.path).size

    def fingerprint(self) -> Any:
        return FileSource(self.path).fingerprint()

    def open(self) -> BinaryIO:
        return cast("BinaryIO", _HookedStream(FileSource(self.path).open(), self.hook, self.size // 2))


class _HookedStream(io.RawIOBase):
    """Gives less than it is asked for, as a raw stream may; the hook runs before the second piece."""

    def __init__(self, inner: BinaryIO, hook: Callable[[], None], piece: int) -> None:
        self._inner, self._hook, self._piece, self._read_before = inner, hook, piece, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._read_before:
            self._hook()
            self._hook = lambda: None
        self._read_before = True
        view = memoryview(buffer)
        data = self._inner.read(min(len(view), self._piece))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._inner.close()
        super().close()


class Counting:
    """A source that counts how often it was opened."""

    def __init__(self, data: bytes) -> None:
        self.inner = MemorySource(data)
        self.opened = 0

    @property
    def size(self) -> int:
        return self.inner.size

    def fingerprint(self) -> Any:
        return self.inner.fingerprint()

    def open(self) -> BinaryIO:
        self.opened += 1
        return self.inner.open()


def plan(files: dict[str, bytes | Source], path: str = "tree", run_id: str = RUN) -> Plan:
    """A tree of such files."""
    sources = {name: MemorySource(data) if isinstance(data, bytes) else data for name, data in files.items()}
    objects = tuple(PlannedObject(ArtifactKey(run_id, f"{path}/{name}"), s, s.size) for name, s in sources.items())
    return Plan(run_id, path, "tree", objects)


def one(source: bytes | Source, path: str = "one.bin", run_id: str = RUN) -> Plan:
    """One file."""
    source = MemorySource(source) if isinstance(source, bytes) else source
    return Plan(run_id, path, "file", (PlannedObject(ArtifactKey(run_id, path), source, source.size),))


def held(sink: ArtifactSink, run_id: str = RUN) -> dict[str, bytes]:
    """Everything a run holds, manifests and writers' notes left out."""
    return {
        path: data
        for path, data in everything(sink, run_id).items()
        if not path.endswith("manifest.json") and not lies_under(path, NOTES_FOLDER)
    }


def everything(sink: ArtifactSink, run_id: str = RUN) -> dict[str, bytes]:
    found = {}
    for stored in sink.list(run_id):
        with sink.open(stored.key) as stream:
            found[stored.key.path] = stream.read()
    return found


def manifest_in(sink: ArtifactSink, path: str = "tree.manifest.json", run_id: str = RUN) -> Manifest | None:
    key = ArtifactKey(run_id, path)
    if sink.stat(key) is None:
        return None
    with sink.open(key) as stream:
        return Manifest.from_bytes(stream.read())


def folder_of(folder: Path, files: dict[str, bytes]) -> Path:
    """Write such a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def files_in(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, hidden and temporary files included."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
