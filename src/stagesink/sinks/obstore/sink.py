"""Object stores through obstore; what it cannot do is carried by fsspec, in the same store under the same names."""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any, BinaryIO, cast

from stagesink.artifacts import ArtifactKey, Source, StoredArtifact, lies_under
from stagesink.errors import ArtifactNotFound, ConfigError, InvalidKey, RunNotFound, SinkError
from stagesink.redaction import address_of
from stagesink.sinks._backend_errors import made_up
from stagesink.sinks._forks import never_dropped_in_children
from stagesink.sinks._hosts import configured, host_of
from stagesink.sinks.fsspec import FsspecSink, open_fsspec
from stagesink.sinks.obstore import azure, google, s3, stores
from stagesink.sinks.obstore.azure_list import listed
from stagesink.sinks.obstore.digests import Encryption, digests_of_head, md5_of, md5_of_base64
from stagesink.sinks.obstore.errors import error_of, sink_error
from stagesink.sinks.obstore.look import Look
from stagesink.sinks.obstore.parts import PART_BYTES, Budget, Pieces, part_bytes
from stagesink.sinks.obstore.reader import ObjectReader
from stagesink.sinks.obstore.settings import Settings
from stagesink.sinks.protocol import ArtifactSink, OnBytes
from stagesink.sinks.registry import scheme_of

_PROVIDERS: dict[str, Callable[[str, Mapping[str, Any], Mapping[str, str]], Settings | None]] = {
    **dict.fromkeys(("s3", "s3a"), s3.settings),
    **dict.fromkeys(("az", "abfs", "abfss"), azure.settings),
    **dict.fromkeys(("gs", "gcs"), google.settings),
}
_READ_BYTES = 1 << 16
_PAGE = 1_000  # objects
_budget = Budget()


def open_obstore(uri: str, storage_options: Mapping[str, Any]) -> ArtifactSink:
    """Open an object store by obstore, or by fsspec where obstore does not do what is asked for."""
    settings = _PROVIDERS[scheme_of(uri)](uri, storage_options, os.environ) if stores.usable() else None
    if settings is None or configured(uri):  # which fsspec heeds, and may mean another store
        return open_fsspec(uri, storage_options)
    return ObstoreSink(uri, storage_options, settings)


class ObstoreSink:
    """Objects at ``<root>/<run_id>/<path>`` in a bucket or container.

    Small objects go in one request, large ones in parts, some at once; all objects in flight share one budget of
    memory. The client's own retries are off. A child of a fork is carried by fsspec.

    Parameters
    ----------
    uri : str
        As fsspec knows it.
    storage_options : mapping
        As the fsspec implementation names them.
    settings : Settings
        What they come to.
    """

    def __init__(self, uri: str, storage_options: Mapping[str, Any], settings: Settings) -> None:
        self._url = uri
        self._shown = address_of(uri)
        self._options = dict(storage_options)
        self.host = host_of(self._url, self._options)  # as LocatedSink has it
        self._settings = settings
        # By process id: nothing here is used on both sides of a fork.
        self._clients: dict[int, _Client] = {}
        self._others: dict[int, FsspecSink] = {}
        with suppress(ConfigError):  # the first operation tells
            self._client()  # now, so that the first object does not wait for it

    @property
    def uri(self) -> str:
        """Printable address of the sink, without a slash at its end."""
        return self._shown

    @property
    def reports(self) -> Mapping[str, int]:
        """What Azure computes of an object that goes in one request, as :class:`.ReportingSink` has it."""
        return {"md5": PART_BYTES} if self._settings.kind == "AzureStore" else {}

    def __repr__(self) -> str:
        return f"ObstoreSink({self.uri!r})"

    def __reduce__(self) -> tuple[Callable[..., ArtifactSink], tuple[str, dict[str, Any]]]:
        return open_obstore, (self._url, self._options)

    # -- the protocol --------------------------------------------------------------------------------------------------

    def put(self, key: ArtifactKey, source: Source, *, on_bytes: OnBytes | None = None) -> StoredArtifact:
        """Store all bytes of ``source`` under ``key``; see :meth:`.ArtifactSink.put`."""
        if (other := self._after_fork()) is not None:
            return other.put(key, source, on_bytes=on_bytes)
        path, size = self._path(key), source.size
        part = part_bytes(size)
        address = self._address(key)
        with source.open() as stream, _budget.taking(size, part) as at_once:
            pieces = Pieces(stream, size, part, on_bytes)
            data = pieces.whole()
            if data is not None:
                etag = self._send(data, pieces, address, path, use_multipart=False)
            else:
                how = {"use_multipart": True, "chunk_size": part, "max_concurrency": at_once}
                etag = self._send(pieces, pieces, address, path, **how)
        return StoredArtifact(key, address, pieces.count, self._digests(etag, path))

    def stat(self, key: ArtifactKey) -> StoredArtifact | None:
        """Return what is held under ``key``, or None."""
        if (other := self._after_fork()) is not None:
            return other.stat(key)
        return self._stat(key)

    def open(self, key: ArtifactKey) -> BinaryIO:
        """Open the object for reading; raises :class:`~stagesink.errors.ArtifactNotFound` when it is not there."""
        if (other := self._after_fork()) is not None:
            return other.open(key)
        import obstore

        path = self._path(key)
        reading = f"{self._address(key)} could not be read"
        with self._translating(reading, path):
            result = obstore.get(self._client().store, path)
        reader = ObjectReader(result, reading, lambda error: self._error(error, reading, path))
        never_dropped_in_children(reader)
        self._must_be_the_stores(result.meta["e_tag"], reading)
        return cast("BinaryIO", io.BufferedReader(reader, _READ_BYTES))

    def list(self, run_id: str, prefix: str = "") -> Iterator[StoredArtifact]:
        """Yield the objects of a run, or those under one object's or folder's name."""
        ArtifactKey(run_id, prefix or "any")  # refuses what would leave the run
        if (other := self._after_fork()) is not None:
            yield from other.list(run_id, prefix)
            return
        with ThreadPoolExecutor(1, "stagesink-list") as pool:
            # obstore lists folders; whether an object has the very name is asked meanwhile.
            alone = pool.submit(self._beside_listing, ArtifactKey(run_id, prefix)) if prefix else None
            yield from self._find(run_id, prefix)
            if alone is not None and (stored := alone.result()) is not None:
                yield stored

    def delete(self, key: ArtifactKey) -> None:
        """Remove the object, if it is there."""
        if (other := self._after_fork()) is not None:
            other.delete(key)
            return
        import obstore

        path = self._path(key)
        with suppress(ArtifactNotFound), self._translating(f"{self._address(key)} could not be deleted", path):
            obstore.delete(self._client().store, path)

    def notes(self) -> ObstoreSink:
        """Return a view for what writers leave each other, with fewer questions; see :class:`_Notes`."""
        return _Notes(self)

    def sweep(self, older_than: timedelta) -> builtins.list[str] | None:
        """Abort uploads that nobody finished, on S3; obstore cannot list them, so fsspec's client does it."""
        return self._other().sweep(older_than) if self._settings.kind == "S3Store" else None

    def close(self) -> None:
        """Let go of this process's connections."""
        client = self._clients.pop(os.getpid(), None)
        if client is not None:
            client.look.close()
        other = self._others.pop(os.getpid(), None)
        if other is not None:
            other.close()

    # -- how it is done ------------------------------------------------------------------------------------------------

    def _send(self, body: Any, pieces: Pieces, address: str, path: str, **how: Any) -> str | None:
        import obstore

        doing = f"{address} could not be put"
        try:
            etag: str | None = obstore.put(self._client().store, path, body, **how)["e_tag"]
        except BaseException as error:
            if pieces.error is not None:
                raise pieces.error from pieces.error.__cause__
            if isinstance(error, stores.errors()):
                raise self._error(error, doing, path, missing=RunNotFound) from None
            raise
        self._must_be_the_stores(etag, doing)
        return etag

    def _stat(self, key: ArtifactKey) -> StoredArtifact | None:
        path, looking = self._path(key), f"{self._address(key)} could not be looked up"
        if self._settings.kind == "GCSStore":
            return self._stat_by_obstore(key, path, looking)
        # obstore tells neither how S3 encrypts an object nor the MD5 that Azure has.
        answer = self._client().look.head(path, looking)
        error = error_of(answer, looking, ArtifactNotFound)
        if error is not None and answer.status != 404:  # without the bucket there is no object either
            raise error
        if answer.status >= 400 or answer.headers.get("x-ms-resource-type") == "directory":
            return None
        size = answer.headers.get("content-length", "")
        if not size.isdigit():
            raise made_up(looking)
        digests = (
            digests_of_head(answer)
            if self._settings.kind == "S3Store"
            else md5_of_base64(answer.headers.get("content-md5"))
        )
        return StoredArtifact(key, self._address(key), int(size), digests)

    def _beside_listing(self, key: ArtifactKey) -> StoredArtifact | None:
        """Look up what is seldom there, on Azure by one of obstore's connections: ours is busy with the listing."""
        looking = f"{self._address(key)} could not be looked up"
        if self._settings.kind == "AzureStore" and self._stat_by_obstore(key, self._path(key), looking) is None:
            return None
        return self._stat(key)

    def _stat_by_obstore(self, key: ArtifactKey, path: str, looking: str) -> StoredArtifact | None:
        import obstore

        try:
            with self._translating(looking, path):
                meta = obstore.head(self._client().store, path)
        except ArtifactNotFound:
            return None
        self._must_be_the_stores(meta["e_tag"], looking)
        return StoredArtifact(key, self._address(key), meta["size"])

    def _find(self, run_id: str, prefix: str) -> Iterator[StoredArtifact]:
        base = f"{self._settings.root}/{run_id}".lstrip("/")
        listing = f"{self._address(run_id)} could not be listed"
        find = self._find_on_azure if self._settings.kind == "AzureStore" else self._find_by_obstore
        return find(run_id, prefix, base, listing)

    def _find_on_azure(self, run_id: str, prefix: str, base: str, listing: str) -> Iterator[StoredArtifact]:
        folder = f"{base}/{prefix}/" if prefix else f"{base}/"
        for path, size, digests in listed(self._client().look, folder, listing):
            key = _key(run_id, path[len(base) + 1 :])
            if key is not None:
                yield StoredArtifact(key, self._address(key), size, digests)

    def _find_by_obstore(self, run_id: str, prefix: str, base: str, listing: str) -> Iterator[StoredArtifact]:
        import obstore

        # Called by what is never dropped: nobody else refers to the pages.
        pages = partial(obstore.list, self._client().store, f"{base}/{prefix}", chunk_size=_PAGE)
        found = never_dropped_in_children(self._pages(pages, listing))
        seen: set[str] = set()
        held: StoredArtifact | None = None
        try:
            for meta in found:
                key = _key(run_id, meta["path"][len(base) + 1 :])
                if held is not None and (
                    key is None or not lies_under(key.path, held.key.path) or self._stat(held.key)
                ):
                    yield held
                held = None
                if key is None or key.path in seen:
                    continue
                seen.add(key.path)
                stored = StoredArtifact(key, self._address(key), meta["size"])
                if stored.size:
                    yield stored
                else:
                    held = stored  # obstore lists somebody's empty object "folder/" as "folder"
            if held is not None and self._stat(held.key):
                yield held
            if not seen:
                self._must_be_a_listing(listing)
        except obstore.exceptions.InvalidPathError:
            # Somebody's object has a name that obstore cannot say ("a//b"), for which it gives up the whole listing.
            seen.add(prefix)  # the caller's
            if held is not None:
                seen.discard(held.key.path)
            for stored in self._other().list(run_id, prefix):
                if stored.key.path not in seen:
                    yield StoredArtifact(stored.key, stored.uri, stored.size)

    def _pages(self, pages: Callable[[], Iterable[Any]], listing: str) -> Iterator[Any]:
        from obstore import exceptions

        try:
            for page in pages():
                yield from page
        except exceptions.InvalidPathError:
            raise
        except stores.errors() as error:
            raise self._error(error, listing, None) from None

    def _digests(self, etag: str | None, path: str) -> dict[str, str]:
        md5 = md5_of(etag) if self._settings.kind == "S3Store" else None
        return {"md5": md5} if md5 is not None and self._client().encryption.keeps_md5(path) else {}

    @contextmanager
    def _translating(self, doing: str, path: str | None) -> Iterator[None]:
        try:
            yield
        except stores.errors() as error:
            raise self._error(error, doing, path) from None

    def _error(
        self, error: BaseException, doing: str, path: str | None, *, missing: type[SinkError] = ArtifactNotFound
    ) -> SinkError:
        look = self._client().look
        again = partial(look.listing, doing) if path is None else partial(look.at, path, doing)
        return sink_error(error, doing, missing, again if look.can_sign else None, self._settings.hint)

    def _must_be_a_listing(self, listing: str) -> None:
        """See that it is the store that holds nothing: a proxy's page reads like an empty listing."""
        look = self._client().look
        if look.can_sign and (error := error_of(look.listing(listing), listing, ArtifactNotFound)) is not None:
            raise error

    def _must_be_the_stores(self, etag: str | None, doing: str) -> None:
        if etag is None:
            raise made_up(doing)

    def _address(self, what: ArtifactKey | str) -> str:
        return f"{self._shown}/{what}"

    def _path(self, key: ArtifactKey) -> str:
        return f"{self._settings.root}/{key}".lstrip("/")

    def _client(self) -> _Client:
        client = self._clients.get(os.getpid())
        if client is None:
            client = self._clients.setdefault(os.getpid(), _Client(self._settings, self.uri))
        return client

    def _after_fork(self) -> FsspecSink | None:
        """Return who carries a child of a process that had loaded obstore; None where obstore may be used."""
        return None if stores.usable() else self._other()

    def _other(self) -> FsspecSink:
        other = self._others.get(os.getpid())
        return other or self._others.setdefault(os.getpid(), FsspecSink(self._url, self._options))


class _Notes(ObstoreSink):
    """The sink, as notes need it: they lie in a folder, and no object has the folder's own name."""

    def __init__(self, sink: ObstoreSink) -> None:
        self.__dict__ = sink.__dict__

    def list(self, run_id: str, prefix: str = "") -> Iterator[StoredArtifact]:
        if (other := self._after_fork()) is not None:
            return other.list(run_id, prefix)
        return self._find(run_id, prefix)


class _Client:
    """What one process talks to the store with."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.store = stores.make(settings)
        self.look = Look(settings, self.store, name)
        self.encryption = Encryption(self.look)


def _key(run_id: str, path: str) -> ArtifactKey | None:
    try:
        return ArtifactKey(run_id, path)
    except InvalidKey:
        return None  # nobody can have put it here through us
