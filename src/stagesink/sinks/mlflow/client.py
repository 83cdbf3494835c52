"""A run whose artifacts go through mlflow's own client: whatever it knows, and nothing that it does not give."""

from __future__ import annotations

import os
import posixpath
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from inspect import signature
from typing import Any, BinaryIO, cast

from stagesink.artifacts import ArtifactKey, Source, StoredArtifact
from stagesink.errors import ArtifactNotFound, ConfigError, DeleteNotSupported, InvalidKey, RunNotFound, SinkError
from stagesink.redaction import hide_in_logs
from stagesink.sinks._backend_errors import translating
from stagesink.sinks._http.body import reading, source_errors_pass
from stagesink.sinks._temporary import closing_quietly, writing_temporary
from stagesink.sinks.mlflow.address import Address
from stagesink.sinks.mlflow.conflicts import look_for_conflict
from stagesink.sinks.mlflow.connection import secrets
from stagesink.sinks.mlflow.names import check_name
from stagesink.sinks.mlflow.patience import trying_once
from stagesink.sinks.protocol import OnBytes

_LOGGERS = tuple(
    f"mlflow.store.artifact.{name}_artifact_repo"
    for name in ("http", "cloud", "databricks", "databricks_sdk", "dbfs", "optimized_s3", "azure_data_lake")
)
"""Those that tell of uploads to signed URLs, or that one failed."""


class ClientRoot:
    """The artifacts of one run, by ``MlflowClient``'s ``log_artifact``, ``list_artifacts`` and ``download_artifacts``.

    What it gives: an object is written to a temporary file of its own name and handed to the client, which sends it
    once: trying again is the engine's. It computes no digests. Whether an object appears at once is the store's
    business.

    Parameters
    ----------
    client : mlflow.MlflowClient
    run_id : str
    address : Address
        Of the tracking server: whoever logs in there has secrets, which the client's exceptions may quote.
    proxied : bool
        It is the server that takes the artifacts, and some names for others.
    """

    def __init__(self, client: Any, run_id: str, address: Address, *, proxied: bool = False) -> None:
        self._client = client
        self._run_id = run_id
        self._address = address
        hide_in_logs("urllib3.connectionpool", *_LOGGERS)
        self._proxied = proxied

    @property
    def uri(self) -> str:
        return f"runs:/{self._run_id}"

    def put(self, key: ArtifactKey, source: Source, *, on_bytes: OnBytes | None = None) -> StoredArtifact:
        self._check_name(key)
        folder, name = posixpath.split(key.path)
        doing = f"{self.uri}/{key.path} could not be put"
        with _temporary_folder() as temporary:
            path = os.path.join(temporary, name)
            size = _copy(source, path, on_bytes)
            try:
                with self._translating(doing):
                    self._client.log_artifact(self._run_id, path, folder or None)
            except SinkError:
                look_for_conflict(key.path, self._names_in, doing)
                raise
        return self._describe(key, size)

    def stat(self, key: ArtifactKey) -> StoredArtifact | None:
        self._check_name(key)
        entry = next((entry for entry in self._children(posixpath.dirname(key.path)) if entry.path == key.path), None)
        return None if entry is None or entry.is_dir else self._describe(key, int(entry.file_size or 0))

    def open(self, key: ArtifactKey) -> BinaryIO:
        if self.stat(key) is None:
            raise ArtifactNotFound(f"{self.uri} holds no {key.path}.")
        with _temporary_folder() as temporary:
            with self._translating(f"{self.uri}/{key.path} could not be read"):
                path = self._client.download_artifacts(self._run_id, key.path, temporary)
            return cast("BinaryIO", open(path, "rb"))  # stays readable when the folder is gone

    def list(self, run_id: str, prefix: str = "") -> Iterator[StoredArtifact]:
        above = posixpath.dirname(prefix)
        entries = self._children(above) if prefix else self._children("")
        folders = []
        for entry in entries:
            if not prefix or entry.path == prefix:
                if entry.is_dir:
                    folders.append(entry.path)
                else:
                    yield from self._found(entry)
        while folders:
            for entry in self._children(folders.pop()):
                if entry.is_dir:
                    folders.append(entry.path)
                else:
                    yield from self._found(entry)

    def delete(self, key: ArtifactKey) -> None:
        if self.stat(key) is not None:
            # Its repositories could, but before MLflow 2.17 fail at a file, and before 3.16 take along, on object
            # stores, whatever begins with the object's name.
            raise DeleteNotSupported(
                f"{self.uri}/{key.path} could not be removed: mlflow's client cannot remove one artifact.",
                hint="Leave artifacts.engine at 'stagesink', or remove it in the store by hand.",
            )

    def close(self) -> None:
        """The client keeps nothing open that could be closed."""

    def _children(self, folder: str) -> Sequence[Any]:
        try:
            with self._translating(f"{self.uri}/{folder} could not be listed", missing=RunNotFound):
                return tuple(self._client.list_artifacts(self._run_id, folder or None))
        except ArtifactNotFound:
            return ()

    def _names_in(self, folder: str) -> dict[str, bool]:
        return {posixpath.basename(entry.path): bool(entry.is_dir) for entry in self._children(folder)}

    def _check_name(self, key: ArtifactKey) -> None:
        if self._proxied:
            check_name(key)

    def _found(self, entry: Any) -> Iterator[StoredArtifact]:
        try:
            key = ArtifactKey(self._run_id, entry.path)
        except InvalidKey:
            return  # nobody can have put it here through us
        yield self._describe(key, int(entry.file_size or 0))

    def _describe(self, key: ArtifactKey, size: int) -> StoredArtifact:
        return StoredArtifact(key, f"{self.uri}/{key.path}", size)

    @contextmanager
    def _translating(self, doing: str, *, missing: type[SinkError] = ArtifactNotFound) -> Iterator[None]:
        with translating(doing, missing=missing, secrets=partial(secrets, self._address)), trying_once():
            yield


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    with writing_temporary():
        return tempfile.TemporaryDirectory(prefix="stagesink-")


def _copy(source: Source, path: str, on_bytes: OnBytes | None) -> int:
    size = 0
    with writing_temporary():
        file = open(path, "wb")  # noqa: SIM115
    with closing_quietly(file), closing(source.open()) as stream, source_errors_pass():
        for chunk in reading(stream):
            with writing_temporary():
                file.write(chunk)
            size += len(chunk)
            if on_bytes is not None:
                on_bytes(len(chunk))
        with writing_temporary():
            file.close()
    return size


def check_server(address: Address) -> None:
    """See that mlflow's client would send artifacts to this server, when it is the server that takes them.

    Raises
    ------
    ConfigError
        Before MLflow 3.2 they go where ``MLFLOW_TRACKING_URI`` says, and that is another one.
    """
    import mlflow
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    if "tracking_uri" in signature(MlflowArtifactsRepository).parameters:
        return
    if mlflow.get_tracking_uri().rstrip("/") != address.tracking_uri.rstrip("/"):
        raise ConfigError(
            f"mlflow's client before 3.2 sends artifacts to the server of MLFLOW_TRACKING_URI, not to {address.shown}.",
            hint="Set MLFLOW_TRACKING_URI to that server, or leave artifacts.engine at 'stagesink'.",
        )
