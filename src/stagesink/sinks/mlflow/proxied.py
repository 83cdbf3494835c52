"""A run whose artifacts go through the tracking server: ``mlflow-artifacts:``."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import quote, urlsplit

from stagesink.artifacts import ArtifactKey, Source, StoredArtifact
from stagesink.errors import (
    ArtifactNotFound,
    DeleteNotSupported,
    InvalidKey,
    SinkError,
    TransientSinkError,
    VerificationError,
)
from stagesink.sinks._http.body import exactly, sized, source_errors_pass
from stagesink.sinks._http.client import HttpClient, json_of
from stagesink.sinks.mlflow.address import Address
from stagesink.sinks.mlflow.answers import error_of
from stagesink.sinks.mlflow.conflicts import look_for_conflict
from stagesink.sinks.mlflow.multipart import Multipart
from stagesink.sinks.mlflow.names import check_name
from stagesink.sinks.protocol import OnBytes

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

ENDPOINT = "/api/2.0/mlflow-artifacts/artifacts"
"""https://github.com/mlflow/mlflow/blob/master/mlflow/protos/mlflow_artifacts.proto"""

UNKNOWN = (0,)
"""The version of a server that does not tell."""

_LISTED_AT_ONCE = 8  # folders

_STAGING = ".artifact.uploading."  # what MLflow 3 calls a file that it is writing; it lists it like any other


class ProxiedRoot:
    """The artifacts of one run, sent to and read from the server's artifact endpoints.

    What the server makes of them decides what can be had: a plain folder behind it computes no digests. Before MLflow
    3.15 it is written in place, so that a reader can see a part of an object; before 2.17 it takes an object for one
    inside the folder that has its name, and removes folders only. It decodes
    names again and refuses ``#``: what it would store under another name is refused here.

    Parameters
    ----------
    http : HttpClient
    multipart : Multipart
        Sends large objects past the server, where it offers that.
    server : str
        URL of the server that has the artifacts.
    folder : str
        The run's folder there.
    run_id : str
    """

    def __init__(self, http: HttpClient, multipart: Multipart, server: str, folder: str, run_id: str) -> None:
        self._http = http
        self._multipart = multipart
        self._server = server
        self._base = server + ENDPOINT
        self._folder = folder
        self._run_id = run_id

    @property
    def uri(self) -> str:
        return f"runs:/{self._run_id}"

    def put(self, key: ArtifactKey, source: Source, *, on_bytes: OnBytes | None = None) -> StoredArtifact:
        check_name(key)
        with sized(source) as (stream, size), source_errors_pass():
            if self._multipart.takes(size):
                self._multipart.put(f"{self._folder}/{key.path}", stream, size, on_bytes)
            else:
                self._put(key, stream, size, on_bytes)
        return self._describe(key, size)

    def stat(self, key: ArtifactKey) -> StoredArtifact | None:
        check_name(key)
        folder, _, name = key.path.rpartition("/")
        # There is no request for one object: it is looked up among its neighbours, with a folder of its name on S3.
        named = (entry for entry in self._children(folder) if entry["path"] == name and not entry.get("is_dir"))
        entry = next(named, None)
        return None if entry is None else self._describe(key, _size(entry))

    def open(self, key: ArtifactKey) -> BinaryIO:
        check_name(key)
        doing = f"{self.uri}/{key.path} could not be read"
        response = self._http.request("GET", self._url(key.path), doing, stream=True)
        if response.status == 200:
            reader = _Reader(response, self._http, doing, lambda: self._check_empty(key, doing))
            return cast("BinaryIO", io.BufferedReader(reader, 1 << 20))
        with self._http.translating(doing):
            response.read()
        response.release_conn()
        error = error_of(response, doing, self._http.name)
        # Servers before 3.12 answer 500 where there is nothing, and all of them some error where there is a folder.
        missing = isinstance(error, ArtifactNotFound)
        if missing or (response.status not in (401, 403, 429) and self.stat(key) is None):
            raise ArtifactNotFound(f"{self.uri} holds no {key.path}.")
        raise error or SinkError(
            f"{doing}: {self._http.name} answered {response.status}.", hint="Check what stands before the server."
        )

    def list(self, run_id: str, prefix: str = "") -> Iterator[StoredArtifact]:
        if not prefix:
            yield from self._walk("", self._children(""))
            return
        check_name(ArtifactKey(run_id, prefix))
        # The folder above says what it is, since some stores list a file as the only thing inside itself.
        above, _, name = prefix.rpartition("/")
        around, inside = self._children_of_each([above, prefix])
        for entry in around:
            if entry["path"] == name:
                if entry.get("is_dir"):
                    yield from self._walk(prefix, inside)
                else:
                    yield self._describe(ArtifactKey(run_id, prefix), _size(entry))

    def delete(self, key: ArtifactKey) -> None:
        folder, _, name = key.path.rpartition("/")
        entries = [entry for entry in self._children(folder) if entry["path"].startswith(name)]
        if not any(entry["path"] == name and not entry.get("is_dir") for entry in entries):
            return  # nothing, or a folder, which the server would remove with all that is in it
        doing = f"{self.uri}/{key.path} could not be removed"
        self._check_bystanders(name, entries, doing)
        response = self._http.request("DELETE", self._url(key.path), doing)
        error = error_of(response, doing, self._http.name)
        if error is None or isinstance(error, ArtifactNotFound):
            return
        if response.status == 500 and self.stat(key) is not None:
            raise DeleteNotSupported(
                f"{doing}: {self._http.name} answered 500; a server before MLflow 2.17 removes folders only.",
                hint="Upgrade the server, or remove it there by hand.",
            )
        raise error

    def notes(self) -> ProxiedRoot:
        """Return a view for what writers leave each other, with fewer questions; see :class:`_Notes`."""
        return _Notes(self._http, self._multipart, self._server, self._folder, self._run_id)

    def close(self) -> None:
        """Connections are the sink's."""

    # -- requests ------------------------------------------------------------------------------------------------------

    def _put(self, key: ArtifactKey, stream: BinaryIO, size: int, on_bytes: OnBytes | None) -> None:
        doing = f"{self.uri}/{key.path} could not be put"
        response = self._http.request(
            "PUT",
            self._url(key.path),
            doing,
            body=exactly(stream, size, on_bytes),
            headers={"Content-Length": str(size), "Content-Type": "application/octet-stream"},
        )
        error = error_of(response, doing, self._http.name)
        if error is None:
            return
        if response.status in (400, 500):
            look_for_conflict(key.path, self._names_in, doing)
        raise error

    def _names_in(self, folder: str) -> dict[str, bool]:
        return {entry["path"]: bool(entry.get("is_dir")) for entry in self._children(folder)}

    def _check_bystanders(self, name: str, entries: Sequence[dict[str, Any]], doing: str) -> None:
        """See that nothing else would go with it: before MLflow 3.16 stores remove what begins with its name."""
        others = [entry["path"] for entry in entries if entry["path"] != name or entry.get("is_dir")]
        if name in others or (others and server_version(self._http, self._server) < (3, 16)):
            raise DeleteNotSupported(
                f"{doing}: {self._http.name} might remove {others[0]} with it, as servers before MLflow 3.16 do.",
                hint="Upgrade the server, or remove it there by hand.",
            )

    def _check_empty(self, key: ArtifactKey, doing: str) -> None:
        """Explain an answer of no bytes and no length: so MLflow 3 also ends one that it fails to give."""
        self._http.close()  # it cuts the connection then, a moment later
        stored = self.stat(key)
        if stored is None:
            raise ArtifactNotFound(f"{self.uri} holds no {key.path}.")
        if stored.size:
            raise TransientSinkError(f"{doing}: {self._http.name} sent nothing of its {stored.size} bytes.")

    def _walk(self, folder: str, entries: Sequence[dict[str, Any]]) -> Iterator[StoredArtifact]:
        level = {folder: entries}
        while level:
            folders = []
            for folder, entries in level.items():
                for entry in entries:
                    path = f"{folder}/{entry['path']}" if folder else str(entry["path"])
                    if entry.get("is_dir"):
                        folders.append(path)
                    elif not entry["path"].startswith(_STAGING) and (key := _key(self._run_id, path)) is not None:
                        yield self._describe(key, _size(entry))
            level = dict(zip(folders, self._children_of_each(folders), strict=True))

    def _children_of_each(self, folders: Sequence[str]) -> tuple[Sequence[dict[str, Any]], ...]:
        """List folders side by side: each costs a round trip."""
        if len(folders) < 2:
            return tuple(map(self._children, folders))
        with ThreadPoolExecutor(min(len(folders), _LISTED_AT_ONCE), "stagesink-list") as pool:
            return tuple(pool.map(self._children, folders))

    def _children(self, folder: str) -> Sequence[dict[str, Any]]:
        path = f"{self._folder}/{folder}" if folder else self._folder
        doing = f"{self.uri}/{folder} could not be listed"
        response = self._http.request("GET", f"{self._base}?path={quote(path, safe='')}", doing)
        error = error_of(response, doing, self._http.name)
        if isinstance(error, ArtifactNotFound):
            return ()
        if error is not None:
            raise error
        files = json_of(response).get("files", [] if _is_json(response) else None)
        if not isinstance(files, Sequence) or not all(_is_entry(entry) for entry in files):
            raise SinkError(
                f"{doing}: {self._http.name} does not answer as an MLflow server does.", hint="Check the address."
            )
        return files

    def _url(self, path: str) -> str:
        return f"{self._base}/{quote(f'{self._folder}/{path}', safe='/')}"

    def _describe(self, key: ArtifactKey, size: int) -> StoredArtifact:
        return StoredArtifact(key, f"{self.uri}/{key.path}", size)


class _Notes(ProxiedRoot):
    """The run, as notes need it: they lie in a folder, and none has a name that begins with another's."""

    def list(self, run_id: str, prefix: str = "") -> Iterator[StoredArtifact]:
        return self._walk(prefix, self._children(prefix))

    def delete(self, key: ArtifactKey) -> None:
        response = self._http.request("DELETE", self._url(key.path), f"{self.uri}/{key.path} could not be removed")
        if response.status != 200:
            super().delete(key)  # it tells what is not there from what could not be removed


class _Reader(io.RawIOBase):
    """The body of an answer; a body that ends early is an error, never an end."""

    def __init__(
        self, response: BaseHTTPResponse, http: HttpClient, doing: str, check_empty: Callable[[], None]
    ) -> None:
        self._response = response
        self._http = http
        self._doing = doing
        self._check_empty = check_empty
        self._unproven = "Content-Length" not in response.headers
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        with self._http.translating(self._doing):
            data = self._response.read(len(view))
        view[: len(data)] = data
        self._ended = not data
        if self._ended and self._unproven:
            self._check_empty()
        self._unproven = False
        return len(data)

    def close(self) -> None:
        if not self.closed:
            if not self._ended:
                self._response.close()  # the rest of the body is still on its way on this connection
            self._response.release_conn()
        super().close()


def split_root(root: str, address: Address) -> tuple[str, str]:
    """Return the artifact server's URL and the run's folder there, as ``MlflowArtifactsRepository.resolve_uri`` does.

    Parameters
    ----------
    root : str
        ``mlflow-artifacts:/0/<run>/artifacts``, ``mlflow-artifacts://host:port/...``, or the whole URL.
    address : Address
        Of the tracking server, which is the artifact server too unless the root names one.
    """
    parts = urlsplit(root)
    if parts.scheme in ("http", "https"):
        server, _, folder = root.partition(ENDPOINT)
        return server, folder.strip("/")
    tracking = urlsplit(address.server)
    server = f"{tracking.scheme}://{parts.netloc or tracking.netloc}{tracking.path.rstrip('/')}"
    return server, re.sub("//+", "/", parts.path.partition(ENDPOINT)[2] or parts.path).strip("/")


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("path"), str)


def _is_json(response: BaseHTTPResponse) -> bool:
    return response.data.lstrip()[:1] == b"{"


def _size(entry: dict[str, Any]) -> int:
    size = entry.get("file_size", 0)  # protobuf leaves a zero out, and writes 64-bit numbers as text
    if not isinstance(size, int | str) or not str(size).isdigit():
        raise VerificationError(f"The server gives {size!r} as a size.")
    return int(size)


def _key(run_id: str, path: str) -> ArtifactKey | None:
    try:
        return ArtifactKey(run_id, path)
    except InvalidKey:
        return None  # nobody can have put it here through us


def server_version(http: HttpClient, server: str) -> tuple[int, ...]:
    """Return the first two numbers of the server's version, or :data:`UNKNOWN`."""
    response = http.request("GET", f"{server}/version", f"{http.name} could not be asked its version")
    found = re.match(rb"(\d+)\.(\d+)", response.data) if response.status == 200 else None
    return tuple(map(int, found.groups())) if found else UNKNOWN
