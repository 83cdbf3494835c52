"""Getting uploads back into a folder: the same engine, the other way round."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

from stagesink.artifacts import ArtifactKey, FileSource, lies_under
from stagesink.errors import (
    ArtifactNotFound,
    InvalidKey,
    RestoreError,
    RestoreFailed,
    SourceError,
    StagesinkError,
    TransferCancelled,
    VerificationError,
)
from stagesink.manifest import Manifest, ManifestEntry
from stagesink.sinks import open_sink
from stagesink.sinks.protocol import ArtifactSink, BatchingSink
from stagesink.streams import filler
from stagesink.transfer.options import TransferOptions
from stagesink.transfer.patterns import Patterns
from stagesink.transfer.pool import run_jobs
from stagesink.transfer.progress import ProgressCallback, ProgressCounter
from stagesink.transfer.reader import digest_of
from stagesink.transfer.retry import RetryPolicy

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


@dataclass(frozen=True, slots=True)
class Restored:
    """One file that is now in the folder.

    Parameters
    ----------
    path : Path
    size : int
        Bytes.
    sha256 : str
        Of the bytes that passed, equal to the manifest's.
    status : {"restored", "unchanged"}
        ``unchanged``: these very bytes were there already.
    """

    path: Path
    size: int
    sha256: str
    status: Literal["restored", "unchanged"]


def restore(
    sink: ArtifactSink,
    manifests: Sequence[Manifest],
    target: str | os.PathLike[str],
    options: TransferOptions | None = None,
    *,
    progress: ProgressCallback | None = None,
) -> tuple[Restored, ...]:
    """Download what ``manifests`` name into ``target``, verified while the bytes pass, landed by rename.

    A file that is there already with the same bytes is left as it is, so an interrupted restore goes on where it was.

    Parameters
    ----------
    sink : ArtifactSink
    manifests : sequence of Manifest
        As :func:`stagesink.transfer.list_committed` returns them.
    target : path
        Made when missing. ``checkpoint/model.bin`` lands as ``target/checkpoint/model.bin``.

    Raises
    ------
    RestoreError
        A file would land outside ``target`` (through a symbolic link that lies in it), or ``target`` is not a folder.
    RestoreFailed
        Some files could not be restored: lost or altered in the store, no room in the folder.
    """
    folder = Path(os.path.abspath(target))
    _check_target(folder)
    return _Restore(sink, folder, options or TransferOptions(), progress).run(manifests)


class _Restore:
    def __init__(
        self, sink: ArtifactSink, folder: Path, options: TransferOptions, progress: ProgressCallback | None
    ) -> None:
        self.sink = sink
        self.folder = folder
        self.options = options
        self.progress = progress
        self.cancel = threading.Event()
        self.retry = RetryPolicy(options, self.cancel)
        self.failures: dict[str, StagesinkError] = {}
        self.restored: dict[str, Restored] = {}

    def run(self, manifests: Sequence[Manifest]) -> tuple[Restored, ...]:
        wanted = [(ArtifactKey(m.run_id, entry.path), entry) for m in manifests for entry in m.objects()]
        for parent in {(self.folder / key.path).parent for key, _ in wanted}:
            check_inside(self.folder, parent)
        self.counter = ProgressCounter("restore", len(wanted), sum(entry.size for _, entry in wanted), self.progress)
        # A folder is landed in as the file: sink does it: temporary file, fsync, rename, leftovers swept.
        local = open_sink(str(self.folder.parent))
        jobs = [(entry.size, lambda key=key, entry=entry: self._restore(key, entry)) for key, entry in wanted]
        try:
            with local.batch() if isinstance(local, BatchingSink) else nullcontext(local) as self.local:
                counter = self.counter
                run_jobs(
                    jobs,
                    workers=self.options.workers,
                    cancel=self.cancel,
                    tick=counter.tick,
                    moved=counter.moved,
                )
        except TransferCancelled:
            raise
        except StagesinkError as error:  # the disk refuses at the end what the batch had put off
            self.failures[str(self.folder)] = error
        finally:
            self.counter.finish()
        if self.failures:
            raise RestoreFailed(dict(sorted(self.failures.items())))
        return tuple(self.restored[key.path] for key, _ in wanted)

    def _restore(self, key: ArtifactKey, entry: ManifestEntry) -> None:
        try:
            self.restored[key.path] = self.retry.call(lambda: self._fetch(key, entry))
        except TransferCancelled:
            raise
        except StagesinkError as error:
            self.failures[key.path] = error
        self.counter.add_file()

    def _fetch(self, key: ArtifactKey, entry: ManifestEntry) -> Restored:
        path = self.folder / key.path
        check_inside(self.folder, path.parent)  # again: what was a folder at the start may be a link by now
        if self._is_there(path, entry):
            self.counter.add_bytes(entry.size)
            return Restored(path, entry.size, entry.sha256, "unchanged")
        source = _StoredSource(self.sink, key, entry, self.cancel)
        sent = 0

        def on_bytes(count: int) -> None:
            nonlocal sent
            sent += count
            self.counter.add_bytes(count)
            self.retry.moved()

        try:
            self.local.put(ArtifactKey(self.folder.name, key.path), source, on_bytes=on_bytes)
        except BaseException:
            self.counter.add_bytes(-sent)
            raise
        return Restored(path, entry.size, entry.sha256, "restored")

    def _is_there(self, path: Path, entry: ManifestEntry) -> bool:
        if os.path.islink(path):
            return False  # what it leads to is not in the folder; landing replaces the link
        source = FileSource(path)
        try:
            return source.size == entry.size and digest_of(source, self.cancel) == entry.sha256
        except SourceError:
            return False  # not there, or nothing that can be read: it is fetched, and landing says what is wrong


class _StoredSource:
    """An object in a store as a source, held against its manifest entry before its last byte is handed on."""

    def __init__(self, sink: ArtifactSink, key: ArtifactKey, entry: ManifestEntry, cancel: threading.Event) -> None:
        self.size = entry.size
        self._object = (sink, key, entry, cancel)

    def open(self) -> BinaryIO:
        sink, key, entry, cancel = self._object
        # Opened first: a stream that was never whole would still be closed when it is collected.
        raw = sink.open(key)
        return cast("BinaryIO", _VerifyingStream(raw, f"{sink.uri} for {key}", entry, cancel))

    def fingerprint(self) -> Hashable:
        return None


class _VerifyingStream(io.RawIOBase):
    def __init__(self, raw: BinaryIO, what: str, entry: ManifestEntry, cancel: threading.Event) -> None:
        self._raw = raw
        self._fill = filler(raw)
        self._what = what
        self._entry = entry
        self._cancel = cancel
        self._digest = hashlib.sha256()
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        if self._cancel.is_set():
            raise TransferCancelled("The restore was stopped.")
        view = memoryview(buffer)
        if not view:
            return 0  # asking for nothing and getting it is not the end
        count = self._fill(view)
        self._digest.update(view[:count])
        self._count += count
        if self._count > self._entry.size or (count == 0 and self._count < self._entry.size):
            raise VerificationError(f"{self._what} gives another number of bytes than its manifest says.")
        if count == 0 and self._digest.hexdigest() != self._entry.sha256:
            raise VerificationError(f"{self._what} gives other bytes than its manifest says.")
        return count

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


def check_inside(folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Refuse to land at ``path`` when a symbolic link in ``folder`` leads it out of there.

    Parameters
    ----------
    folder : path
        May itself be a link, and need not exist.
    path : path
        With the folder in front: ``folder/checkpoint``. Links are followed to its very end.

    Raises
    ------
    RestoreError
        ``path`` lies outside.
    """
    real = os.path.realpath(folder)
    if os.path.commonpath([real, os.path.realpath(path)]) != real:
        raise RestoreError(
            f"{path} lies outside {folder}, through a symbolic link.", hint="Restore into an empty folder."
        )


def _check_target(folder: Path) -> None:
    if not folder.name:
        raise RestoreError(f"{folder} is the root of the file system.", hint="Name a folder to restore into.")
    try:
        ArtifactKey(folder.name, "any")  # the folder is landed in as if it were a run
    except InvalidKey as error:
        raise RestoreError(f"{str(folder)!r} cannot be restored into. {error.message}", hint=error.hint) from error
    if "\0" in str(folder):
        raise RestoreError(f"{str(folder)!r} contains a NUL byte.", hint="Name a folder to restore into.")
    # Not Path.exists(), which raises where the system minds the path itself.
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise RestoreError(f"{folder} is not a folder.", hint="Name a folder to restore into.")


def select(
    manifests: Sequence[Manifest],
    path: str | None,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> tuple[Manifest, ...]:
    """Return the manifests at or under ``path``; all when it is None.

    A tree's manifest then names only the files that are wanted: to verify and restore from, not to store.

    Parameters
    ----------
    path : str or None
        May lie in a tree, too: then its files there are chosen.
    include, exclude : sequence of str
        See :class:`stagesink.transfer.patterns.Patterns`; held against paths in the run and in their tree.

    Raises
    ------
    ArtifactNotFound
        Nothing committed lies there.
    """
    path = path.rstrip("/") if path is not None else None
    found = [part for m in manifests if (part := _part_at(m, path)) is not None]
    if path is not None and not found:
        raise ArtifactNotFound(f"Nothing whole lies at {path!r}.")
    wanted = tuple(part for m in found if (part := _narrowed(m, Patterns(include, exclude))) is not None)
    if found and not wanted:
        raise ArtifactNotFound(f"include and exclude leave nothing of {len(found)} uploads.")
    return wanted


def _part_at(manifest: Manifest, path: str | None) -> Manifest | None:
    if path is None or manifest.path == path or manifest.path.startswith(f"{path}/"):
        return manifest
    folder = f"{manifest.path}/"
    if manifest.kind != "tree" or not path.startswith(folder):
        return None
    inside = path[len(folder) :]
    files = tuple(f for f in manifest.files if lies_under(f.path, inside))
    return replace(manifest, files=files) if files else None


def _narrowed(manifest: Manifest, patterns: Patterns) -> Manifest | None:
    if manifest.kind != "tree":
        return manifest if patterns.select(manifest.path) else None
    files = tuple(f for f in manifest.files if patterns.select(f.path, f"{manifest.path}/{f.path}"))
    return replace(manifest, files=files) if files else None
