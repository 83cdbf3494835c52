"""The sink: one tracking server, and for each of its runs the way to that run's artifacts."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit

from stagesink.artifacts import ArtifactKey, Source, StoredArtifact
from stagesink.errors import SinkError
from stagesink.sinks._http.client import HttpClient, json_of
from stagesink.sinks.mlflow import connection, direct
from stagesink.sinks.mlflow.address import address_of
from stagesink.sinks.mlflow.answers import error_of
from stagesink.sinks.mlflow.client import ClientRoot, check_server
from stagesink.sinks.mlflow.direct import DirectRoot
from stagesink.sinks.mlflow.multipart import Multipart
from stagesink.sinks.mlflow.proxied import ENDPOINT, UNKNOWN, ProxiedRoot, server_version, split_root
from stagesink.sinks.mlflow.tracking import ClientTracking, RestTracking, Tracking, client_of, http_client
from stagesink.sinks.protocol import ArtifactSink, BatchingSink, NotingSink, OnBytes

_REMOVES_FILES = (2, 17)  # the version of MLflow from which its server does


class MlflowSink:
    """The artifacts of MLflow runs, where MLflow itself would put them and finds them.

    Each run is looked up once, and its artifact root decides the way:

    ======================================================== ==========================================================
    artifact root                                            way
    ======================================================== ==========================================================
    ``mlflow-artifacts:``                                    HTTP to the server's artifact endpoints
    ``s3:``, ``gs:``, ``wasbs:``, ``abfss:``, ``file:``, a path  our own sink for that store, under the root
    anything else                                            mlflow's own client
    ======================================================== ==========================================================

    A server that proxies computes no digests, so what goes through it is proven by its size, or by reading it back.
    With a plain folder behind it a server before MLflow 3.15 writes in place: a reader can see a part of an object
    while it is written, though never a manifest beside a tree that is not whole.

    A plain http server is asked over REST: mlflow is imported only where its own client is needed.

    Parameters
    ----------
    uri : str
        ``mlflow:``, which takes ``MLFLOW_TRACKING_URI``, or ``mlflow+<tracking URI>``. A password in it is used, and
        never shown.
    storage_options : mapping, optional
        For the store's own client, where artifacts do not go through the server.
    own_client : bool
        Take mlflow's own client for every root: what ``artifacts.engine: mlflow`` asks for.

    Raises
    ------
    ConfigError
        The URI, or one of mlflow's variables, cannot be used.
    """

    tracks_runs = True

    def __init__(self, uri: str, storage_options: Mapping[str, Any] | None = None, *, own_client: bool = False) -> None:
        self._address = address_of(uri, os.environ)
        self._storage_options = dict(storage_options or {})
        self._own_client = own_client
        self._http = http_client(self._address)
        self._store = HttpClient("the store behind the server", connection.presigned_pool, hints=connection.STORE_HINTS)
        self._others: dict[str, HttpClient] = {}  # artifact servers on other hosts
        self._multiparts: dict[str, Multipart] = {}
        self._roots: dict[str, ArtifactSink] = {}
        # By process id: a fork could copy one that nobody sets any more.
        self._looking: dict[tuple[int, str], threading.Event] = {}
        self._version: tuple[int, ...] | None = None
        """Of the server, once it was asked."""

    @property
    def uri(self) -> str:
        """Printable address of the tracking server."""
        return self._address.shown

    @property
    def tracking_uri(self) -> str:
        """What mlflow's own client takes. May hold a password: not for printing."""
        return self._address.tracking_uri

    def __repr__(self) -> str:
        return f"MlflowSink({self.uri!r})"

    def __reduce__(self) -> tuple[Callable[..., MlflowSink], tuple[str, dict[str, Any], bool]]:
        # By its server, so that it means the same where MLFLOW_TRACKING_URI is another.
        return _reopen, (self._address.tracking_uri, self._storage_options, self._own_client)

    # -- the protocol --------------------------------------------------------------------------------------------------

    def put(self, key: ArtifactKey, source: Source, *, on_bytes: OnBytes | None = None) -> StoredArtifact:
        """Store all bytes of ``source`` under ``key``; see :meth:`.ArtifactSink.put`."""
        return self._root(key.run_id).put(key, source, on_bytes=on_bytes)

    def stat(self, key: ArtifactKey) -> StoredArtifact | None:
        """Return what is held under ``key``, or None."""
        return self._root(key.run_id).stat(key)

    def open(self, key: ArtifactKey) -> BinaryIO:
        """Open the object for reading; raises :class:`~stagesink.errors.ArtifactNotFound` when it is not there."""
        return self._root(key.run_id).open(key)

    def list(self, run_id: str, prefix: str = "") -> Iterator[StoredArtifact]:
        """Yield the objects of a run, or those under one object's or folder's name: one request for each folder."""
        return self._root(run_id).list(run_id, prefix)

    def delete(self, key: ArtifactKey) -> None:
        """Remove the object, if it is there."""
        self._root(key.run_id).delete(key)

    def removes(self, run_id: str) -> bool:
        """Tell whether the run's objects can be removed.

        mlflow's own client has no call for it, and a server before MLflow 2.17 removes folders only.
        """
        root = self._root(run_id)
        if isinstance(root, ProxiedRoot):
            return self._version in (UNKNOWN, None) or self._version >= _REMOVES_FILES
        return not isinstance(root, ClientRoot)

    def close(self) -> None:
        """Let go of connections."""
        for root in self._roots.values():
            root.close()
        self._roots.clear()
        self._http.close()
        for client in (self._store, *self._others.values()):
            client.close()

    @contextmanager
    def batch(self) -> Iterator[ArtifactSink]:
        """Share the waiting for the disk among many small objects, where a run's artifacts lie on one."""
        with ExitStack() as batches:
            yield _View(
                self, lambda root: batches.enter_context(root.batch()) if isinstance(root, BatchingSink) else root
            )

    def notes(self) -> ArtifactSink:
        """Return a view for what writers leave each other, where a run's way to its artifacts has a quicker one."""
        return _View(self, lambda root: root.notes() if isinstance(root, NotingSink) else root)

    # -- ways ----------------------------------------------------------------------------------------------------------

    def _root(self, run_id: str) -> ArtifactSink:
        root = self._roots.get(run_id)
        return root if root is not None else self._found_once(run_id)

    def _found_once(self, run_id: str) -> ArtifactSink:
        """Look the run up, in one of the threads that ask together. Where that one fails, each of them tries."""
        found, which = threading.Event(), (os.getpid(), run_id)
        others = self._looking.setdefault(which, found)
        try:
            if others is not found:
                others.wait()
            root = self._roots.get(run_id)
            return root if root is not None else self._roots.setdefault(run_id, self._find(run_id))
        finally:
            if others is found:
                del self._looking[which]
                found.set()

    def _find(self, run_id: str) -> ArtifactSink:
        ArtifactKey(run_id, "any")  # refuses what can be no run id
        root = self._artifact_root(run_id)
        scheme = urlsplit(root).scheme
        proxied = scheme == "mlflow-artifacts" or (scheme in ("http", "https") and ENDPOINT in root)
        if self._own_client or connection.needs_own_client() or not (proxied or direct.opens(root)):
            client = client_of(self._address)
            if proxied:
                check_server(self._address)
            return ClientRoot(client, run_id, self._address, proxied=proxied)
        if not proxied:
            seen = self._look_for(run_id, root) if self._address.is_http and direct.is_local(root) else None
            return DirectRoot(root, run_id, self._storage_options, seen)
        if not self._address.is_http:
            return ClientRoot(client_of(self._address), run_id, self._address, proxied=True)
        server, folder = split_root(root, self._address)
        return ProxiedRoot(self._client_for(server), self._multipart(server), server, folder, run_id)

    def _artifact_root(self, run_id: str) -> str:
        tracking = self._tracking()
        if self._version is not None or not isinstance(tracking, RestTracking):
            return tracking.artifact_root(run_id)
        with ThreadPoolExecutor(1, "stagesink-version") as pool:  # beside the question that must wait for its answer
            version = pool.submit(server_version, self._http, self._address.server)
            root = tracking.artifact_root(run_id)
        try:
            self._version = version.result()
        except SinkError:  # the run was found, which is what counts
            self._version = UNKNOWN
        return root

    def _tracking(self) -> Tracking:
        if self._address.is_http and not connection.needs_own_client():
            return RestTracking(self._address, self._http)
        return ClientTracking(self._address)

    def _multipart(self, server: str) -> Multipart:
        # One for each server, so that what it offers is asked once and its buffers are counted together.
        return self._multiparts.setdefault(server, Multipart(self._client_for(server), self._store, server))

    def _client_for(self, server: str) -> HttpClient:
        """Return what speaks to an artifact server: on another host it is not told who we are.

        Whoever may make an experiment says where its artifacts lie.
        """
        ours, theirs = urlsplit(self._address.server), urlsplit(server)
        if ours.hostname == theirs.hostname and (ours.scheme, theirs.scheme) != ("https", "http"):
            return self._http
        name = theirs.netloc.rpartition("@")[2]
        other = self._others.get(name)
        return other or self._others.setdefault(
            name, HttpClient(name, connection.presigned_pool, hints=connection.HINTS)
        )

    def _look_for(self, run_id: str, root: str) -> Callable[[str], None]:
        """Return what asks the server for an object that was written into a folder of this machine."""

        def seen(path: str) -> None:
            # The root's own entries: a server refuses some names of folders, or finds others than were asked for.
            doing = f"{self._http.name} could not be asked for {path}"
            url = f"{self._address.server}/api/2.0/mlflow/artifacts/list?run_id={quote(run_id)}"
            response = self._http.request("GET", url, doing)
            error = error_of(response, doing, self._http.name)
            if error is not None:
                raise error
            if path.partition("/")[0] not in {entry.get("path") for entry in json_of(response).get("files", [])}:
                raise direct.not_seen(root, self._http.name, path)

        return seen


class _View(MlflowSink):
    """The sink with other roots: each is made of its own when it is first asked for."""

    def __init__(self, sink: MlflowSink, change: Callable[[ArtifactSink], ArtifactSink]) -> None:
        self.__dict__.update({**sink.__dict__, "_roots": {}})
        self._sink = sink
        self._change = change
        self._lock = threading.Lock()

    def _root(self, run_id: str) -> ArtifactSink:
        with self._lock:
            if run_id not in self._roots:
                self._roots[run_id] = self._change(self._sink._root(run_id))
            return self._roots[run_id]


def open_mlflow(uri: str, storage_options: Mapping[str, Any]) -> MlflowSink:
    """Open ``mlflow:`` or ``mlflow+<tracking URI>``; see :class:`MlflowSink`."""
    return MlflowSink(uri, storage_options)


def open_mlflow_client(uri: str, storage_options: Mapping[str, Any]) -> MlflowSink:
    """Open the same, and move every byte by mlflow's own client."""
    return MlflowSink(uri, storage_options, own_client=True)


def _reopen(tracking_uri: str, storage_options: Mapping[str, Any], own_client: bool) -> MlflowSink:
    return MlflowSink(f"mlflow+{tracking_uri}", storage_options, own_client=own_client)
