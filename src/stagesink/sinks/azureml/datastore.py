"""A workspace's datastore: blob storage that the service names, for what is too large for run history."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from ipaddress import ip_address
from itertools import chain
from typing import Any, BinaryIO, NamedTuple, cast
from urllib.parse import quote

from stagesink.artifacts import ArtifactKey, Source, StoredArtifact
from stagesink.errors import ArtifactNotFound, ConfigError, RunNotFound, SinkAuthError, SinkError, TransientSinkError
from stagesink.redaction import without_secrets
from stagesink.sinks._hosts import configured
from stagesink.sinks._http.client import HttpClient, json_of
from stagesink.sinks.azureml.address import Address, Datastore, Workspace
from stagesink.sinks.azureml.service import error_of
from stagesink.sinks.azureml.signed import expiry
from stagesink.sinks.protocol import ArtifactSink, OnBytes
from stagesink.sinks.registry import open_sink

_MARGIN = 300.0  # seconds before its end, or half of a shorter time: a large object must land before
_SECRETS = ("connection_string", "account_key", "sas_token")
"""Options, and variables, that a client would use for any account."""
_BLOBS = {"AzureBlob", "AzureDataLakeGen2"}  # the second has folders besides
_READ_BYTES = 1 << 16
_LEAST = 10.0  # seconds: what has ended when it comes does so by this machine's clock alone


class _Opened(NamedTuple):
    """The sink that carries, until when it is used for what begins, and when what opens it ends; monotonic times."""

    sink: ArtifactSink
    until: float | None = None
    ends: float | None = None


class DatastoreSink:
    """Objects at ``<path>/<run_id>/...`` of a datastore, carried by the sink for ``az://``.

    The service is asked once which account and container the name stands for and what opens them, and asked again
    before a signature ends.

    Parameters
    ----------
    address : Address
        With its datastore.
    http : HttpClient
        For the service; brings the token.
    storage_options : mapping
        For the store's own client; they go before what the service says. ``credential`` is for the service.
    reopen : callable
        Makes the same sink from ``address`` and ``storage_options``, in another process.
    """

    def __init__(
        self,
        address: Address,
        http: HttpClient,
        storage_options: Mapping[str, Any],
        reopen: Callable[[Address, dict[str, Any]], ArtifactSink],
    ) -> None:
        if address.datastore is None:
            raise ConfigError("The URI names no datastore.", hint="Write azureml://.../datastores/<name>/paths/<path>.")
        self._address = address
        self._datastore: Datastore = address.datastore
        self._http = http
        self._options = dict(storage_options)
        self._reopen = reopen
        self._opened: _Opened | None = None
        self._replaced: list[ArtifactSink] = []  # uploads may still be using them
        self._locks: dict[int, threading.Lock] = {}  # by process id: a fork may come while the parent holds its own

    @property
    def uri(self) -> str:
        """Printable address of the folder."""
        path = f"/paths/{self._datastore.path}" if self._datastore.path else ""
        return f"{self._address.workspace.tracking_uri}/datastores/{self._datastore.name}{path}"

    def __repr__(self) -> str:
        return f"DatastoreSink({self.uri!r})"

    def __reduce__(self) -> tuple[Callable[..., ArtifactSink], tuple[Address, dict[str, Any]]]:
        return self._reopen, (self._address, self._options)

    def put(self, key: ArtifactKey, source: Source, *, on_bytes: OnBytes | None = None) -> StoredArtifact:
        """Store all bytes of ``source`` under ``key``; see :meth:`.ArtifactSink.put`."""
        with self._inner() as sink:
            return sink.put(key, source, on_bytes=on_bytes)

    def stat(self, key: ArtifactKey) -> StoredArtifact | None:
        """Return what is held under ``key``, or None."""
        with self._inner() as sink:
            return sink.stat(key)

    def open(self, key: ArtifactKey) -> BinaryIO:
        """Open the object for reading; raises :class:`~stagesink.errors.ArtifactNotFound` when it is not there."""
        opened = self._current()
        with self._while_signed(opened):
            stream = opened.sink.open(key)
        reader = _Reader(stream, lambda: self._while_signed(opened))
        return cast("BinaryIO", io.BufferedReader(reader, _READ_BYTES))

    def list(self, run_id: str, prefix: str = "") -> Iterator[StoredArtifact]:
        """Yield the objects of a run, or those under one object's or folder's name."""
        with self._inner() as sink:
            yield from sink.list(run_id, prefix)

    def delete(self, key: ArtifactKey) -> None:
        """Remove the object, if it is there."""
        with self._inner() as sink:
            sink.delete(key)

    def close(self) -> None:
        """Let go of connections."""
        self._drop()
        while self._replaced:
            self._replaced.pop().close()
        self._http.close()

    @contextmanager
    def _inner(self) -> Iterator[ArtifactSink]:
        opened = self._current()
        with self._while_signed(opened):
            yield opened.sink

    @contextmanager
    def _while_signed(self, opened: _Opened) -> Iterator[None]:
        """Turn what the store says against a signature that has ended meanwhile into a reason to try again."""
        try:
            yield
        except SinkAuthError as error:
            if opened.ends is None or time.monotonic() < opened.ends:
                raise
            with self._lock:
                if self._opened is opened:
                    self._drop()
            raise TransientSinkError(
                f"{error.message} The signature had ended meanwhile; the next attempt has a new one.",
                hint="What takes longer than a signature lasts needs a key, or identity-based access.",
            ) from None

    def _current(self) -> _Opened:
        with self._lock:
            if self._opened is not None and self._opened.until is not None and self._opened.until <= time.monotonic():
                self._drop()
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    def _drop(self) -> None:
        if self._opened is not None:
            self._replaced.append(self._opened.sink)
            self._opened = None

    @property
    def _lock(self) -> threading.Lock:
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def _open(self) -> _Opened:
        section = _section(self._http, self._address.workspace, self._datastore.name)
        path = f"/{self._datastore.path}" if self._datastore.path else ""
        sas = _secret(section, "Sas")
        given = {name: value for name, value in self._options.items() if name != "credential"}  # that is the service's
        sink = open_sink(
            f"az://{section['containerName']}{path}", storage_options={**_options(section, given), **given}
        )
        ends = expiry(f"?{sas.lstrip('?')}") if sas else None
        if ends is None:
            return _Opened(sink)
        now, left = time.monotonic(), ends - time.time()
        return _Opened(sink, now + max(left - _MARGIN, left / 2, _LEAST), now + left)


class _Reader(io.RawIOBase):
    """What the store's sink reads; the end of a signature shows here too, since each window is a request."""

    def __init__(self, stream: BinaryIO, while_signed: Callable[[], AbstractContextManager[None]]) -> None:
        self._stream = stream
        self._while_signed = while_signed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._while_signed():
            return cast("io.BufferedIOBase", self._stream).readinto(buffer)

    def close(self) -> None:
        self._stream.close()
        super().close()


def _section(http: HttpClient, workspace: Workspace, name: str) -> Mapping[str, Any]:
    """Ask the service what a datastore is.

    ``GET /datastore/v1.0/.../datastores/<name>``; its answer, ``azureStorageSection``, is that of the client
    azureml-core.
    """
    doing = f"The datastore {name} of {workspace.name} could not be looked up"
    url = f"{workspace.service}/datastore/v1.0/{workspace.path}/datastores/{quote(name, safe='')}"
    response = http.request("GET", url, doing)
    error = error_of(response, doing, http.name)
    if isinstance(error, ArtifactNotFound):
        raise RunNotFound(error.message, hint="Check the datastore's name; the studio lists them under Data.")
    if error is not None:
        raise error
    answer = json_of(response)
    kind, section = answer.get("dataStoreType"), answer.get("azureStorageSection")
    if isinstance(kind, str) and kind not in _BLOBS:  # a file share's section looks the same
        raise ConfigError(
            f"{doing}: it is of the type {without_secrets(kind)}, and holds no blobs.",
            hint="Take a datastore of the type Azure Blob Storage, such as workspaceblobstore.",
        )
    if not isinstance(section, Mapping) or not section.get("accountName") or not section.get("containerName"):
        raise SinkError(f"{doing}: it is no blob container.", hint="Take a datastore of the type Azure Blob Storage.")
    return section


def _secret(section: Mapping[str, Any], kind: str) -> str | None:
    """Return what opens the store, if it is of this kind; ``sasToken`` and ``accountKey`` are older names for it."""
    older = section.get({"Sas": "sasToken", "AccountKey": "accountKey"}[kind])
    secret = older or (section.get("credential") if section.get("credentialType") == kind else None)
    return secret if isinstance(secret, str) else None


def _options(section: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the storage options of ``az://``: a connection string where the service hands out something secret.

    Raises
    ------
    ConfigError
        It hands out nothing, and the environment or fsspec's configuration names another account.
    """
    account = section["accountName"]
    endpoint, protocol = section.get("endpoint") or "core.windows.net", section.get("protocol") or "https"
    store = f"{protocol}://{account}.blob.{endpoint}"
    if _is_address(endpoint):  # an emulator: its accounts have no host names
        store = f"{protocol}://{endpoint}/{account}"
    place = f"BlobEndpoint={store};AccountName={account}"
    if sas := _secret(section, "Sas"):
        return {"connection_string": f"{place};SharedAccessSignature={sas.lstrip('?')}"}
    if key := _secret(section, "AccountKey"):
        return {"connection_string": f"{place};AccountKey={key}"}
    # We show ourselves who we are; to nobody else, so nothing may stand for another account.
    variables = (name for name in (f"AZURE_STORAGE_{option.upper()}" for option in _SECRETS) if os.environ.get(name))
    options = (f"fsspec's {option}" for option in _SECRETS if option in configured("az://"))
    another = next(chain(variables, options), None)
    if another is not None and not given.keys() & set(_SECRETS):
        raise ConfigError(
            f"{another} is another account's, and would be used for this datastore.",
            hint=f"Unset {another} for this process.",
        )
    host = {} if _is_address(endpoint) else {"account_host": f"{account}.blob.{endpoint}"}
    return {"account_name": account, "anon": False, **host}


def _is_address(endpoint: str) -> bool:
    try:
        ip_address(endpoint.partition(":")[0])
    except ValueError:
        return False
    return True
