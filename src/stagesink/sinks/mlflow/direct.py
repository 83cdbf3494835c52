"""A run whose artifacts lie in a store that we reach ourselves: no detour over the server."""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from stagesink.artifacts import ArtifactKey, Source, StoredArtifact
from stagesink.errors import ConfigError, SinkConflict
from stagesink.sinks.protocol import ArtifactSink, BatchingSink, OnBytes
from stagesink.sinks.registry import open_sink

_AZURE = ("wasbs", "wasb", "abfss", "abfs")


def opens(root: str) -> bool:
    """Tell whether one of our own sinks serves this artifact root."""
    return is_local(root) or urlsplit(root).scheme in ("s3", "gs", *_AZURE)


def is_local(root: str) -> bool:
    """Tell whether the root is a folder of some machine."""
    return urlsplit(root).scheme in ("", "file")


class DirectRoot:
    """One run's artifacts, in the sink that serves the folder above its root; the root's last segment is its run there.

    Parameters
    ----------
    root : str
        The run's artifact URI.
    run_id : str
    storage_options : mapping
        For the store's client; they go before what mlflow's variables say.
    seen : callable, optional
        Told of the first object's path; raises when the tracking server does not see it.
    """

    def __init__(
        self,
        root: str,
        run_id: str,
        storage_options: Mapping[str, Any],
        seen: Callable[[str], None] | None = None,
    ) -> None:
        uri, options = _location(root)
        above, _, self._name = uri.rstrip("/").rpartition("/")
        self._sink = open_sink(above, storage_options={**options, **storage_options})
        self._run_id = run_id
        self._unseen = seen

    @property
    def uri(self) -> str:
        return f"{self._sink.uri}/{self._name}"

    def put(self, key: ArtifactKey, source: Source, *, on_bytes: OnBytes | None = None) -> StoredArtifact:
        stored = self._outer(self._sink.put(self._inner(key), source, on_bytes=on_bytes))
        if self._unseen is not None:
            self._unseen(key.path)
            self._unseen = None
        return stored

    def stat(self, key: ArtifactKey) -> StoredArtifact | None:
        stored = self._sink.stat(self._inner(key))
        return None if stored is None else self._outer(stored)

    def open(self, key: ArtifactKey) -> BinaryIO:
        return self._sink.open(self._inner(key))

    def list(self, run_id: str, prefix: str = "") -> Iterator[StoredArtifact]:
        return map(self._outer, self._sink.list(self._name, prefix))

    def delete(self, key: ArtifactKey) -> None:
        self._sink.delete(self._inner(key))

    def close(self) -> None:
        self._sink.close()

    @contextmanager
    def batch(self) -> Iterator[ArtifactSink]:
        """Share the waiting for the disk, where the inner sink knows how."""
        if not isinstance(self._sink, BatchingSink):
            yield self
            return
        with self._sink.batch() as inner:
            view = object.__new__(DirectRoot)
            view.__dict__.update({**self.__dict__, "_sink": inner})
            yield view

    def _inner(self, key: ArtifactKey) -> ArtifactKey:
        return ArtifactKey(self._name, key.path)

    def _outer(self, stored: StoredArtifact) -> StoredArtifact:
        return StoredArtifact(ArtifactKey(self._run_id, stored.key.path), stored.uri, stored.size, stored.digests)


def not_seen(root: str, server: str, path: str) -> SinkConflict:
    """Say that the server's folder of this name is on another machine: mlflow's client would write and tell nobody."""
    return SinkConflict(
        f"{server} does not see {path} in {root}: its artifact root is a folder of its own machine, not of this one.",
        hint="Start the server with --artifacts-destination, or mount the folder here.",
    )


def _location(root: str) -> tuple[str, dict[str, Any]]:
    """Return the URI for our own sinks, and what mlflow's variables say to the store's client."""
    parts = urlsplit(root)
    if is_local(root):
        # MLflow writes file URIs percent-encoded, and bare paths as they are.
        path = unquote(parts.path) if parts.scheme == "file" else root
        return f"file:{os.path.abspath(path)}", {}
    if parts.scheme == "s3":
        return root, _s3_options()
    if parts.scheme in _AZURE:
        # <scheme>://container@account.host/path
        container, _, host = parts.netloc.partition("@")
        return f"az://{posixpath.join(container, parts.path.lstrip('/'))}", _azure_options(host)
    return root, {}


def _s3_options() -> dict[str, Any]:
    """``mlflow/store/artifact/s3_artifact_repo.py``."""
    options: dict[str, Any] = {}
    if endpoint := os.environ.get("MLFLOW_S3_ENDPOINT_URL"):
        options["endpoint_url"] = endpoint
    if os.environ.get("MLFLOW_S3_IGNORE_TLS", "").lower() in ("true", "1"):
        options["client_kwargs"] = {"verify": False}
    if extra := os.environ.get("MLFLOW_S3_UPLOAD_EXTRA_ARGS"):
        try:
            arguments = json.loads(extra)
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise ConfigError(
                "MLFLOW_S3_UPLOAD_EXTRA_ARGS is no JSON object.",
                hint="""Write it like '{"ServerSideEncryption": "AES256"}'.""",
            )
        options["s3_additional_kwargs"] = arguments
    return options


def _azure_options(host: str) -> dict[str, Any]:
    """``mlflow/store/artifact/azure_blob_artifact_repo.py``; without either variable the default credential."""
    account, _, rest = host.partition(".")
    options: dict[str, Any] = {"account_name": account} if account else {}
    suffix = rest.partition(".")[2]  # behind "blob" or "dfs"
    if account and suffix and suffix != "core.windows.net":
        options["account_host"] = f"{account}.blob.{suffix}"
    if connection := os.environ.get("AZURE_STORAGE_CONNECTION_STRING"):
        options["connection_string"] = connection
    elif key := os.environ.get("AZURE_STORAGE_ACCESS_KEY"):
        options["account_key"] = key
    else:
        options["anon"] = False
    return options
