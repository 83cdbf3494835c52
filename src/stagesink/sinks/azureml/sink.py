"""The sink: the artifacts of a workspace's runs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from stagesink._version import __version__
from stagesink.artifacts import ArtifactKey, Source, StoredArtifact, lies_under
from stagesink.errors import ArtifactNotFound, InvalidKey, SinkError
from stagesink.sinks._http.client import HttpClient
from stagesink.sinks._http.pools import PoolsByHost, pool_manager
from stagesink.sinks.azureml.address import Address, address_of
from stagesink.sinks.azureml.auth import Credential, Tokens
from stagesink.sinks.azureml.blobs import Blobs
from stagesink.sinks.azureml.datastore import DatastoreSink
from stagesink.sinks.azureml.registrar import Registrar
from stagesink.sinks.azureml.runs import WorkspaceRuns
from stagesink.sinks.azureml.service import Run, delete_run, experiment_of, new_run, renewed_token
from stagesink.sinks.azureml.signed import SignedUrl
from stagesink.sinks.protocol import ArtifactSink, OnBytes
from stagesink.sinks.runs import RunServer

_SCRATCH = "stagesink-doctor"  # the experiment of runs for a trial
_LOOKED_AT = 64  # blobs at once, when a run is listed


class AzureMLSink:
    """The artifacts of Azure ML runs, where the studio shows them.

    Azure ML keeps an artifact in two places: its service knows the path, a blob holds the bytes. A path is registered
    first, many in one request, and its blob written next, with checksums that the store checks. A path with no blob
    behind it is not there. Neither mlflow nor azureml-mlflow is needed.

    The service tells no sizes, so listing looks at each blob.

    Parameters
    ----------
    address : Address
        Of the workspace; :func:`open_azureml` reads it from a URI.
    storage_options : mapping, optional
        ``credential``: one of azure-identity's, or anything with its ``get_token``, instead of the environment's.
    """

    tracks_runs = True

    def __init__(self, address: Address, storage_options: Mapping[str, Any] | None = None) -> None:
        self._address = address
        self._options = dict(storage_options or {})
        self._http = _service(address, self._options.get("credential"))
        self._blob_http = HttpClient("the workspace's storage", PoolsByHost)
        self._blobs = Blobs(self._blob_http)
        self._runs: dict[str, Run] = {}
        self._registrars: dict[tuple[int, str], Registrar] = {}
        self._own_notes: dict[ArtifactKey, StoredArtifact] = {}

    @property
    def uri(self) -> str:
        """Printable address of the workspace."""
        return self._address.workspace.tracking_uri

    @property
    def tracking_uri(self) -> str:
        """What mlflow's own client takes."""
        return self._address.workspace.tracking_uri

    def __repr__(self) -> str:
        return f"AzureMLSink({self.uri!r})"

    def __reduce__(self) -> tuple[type[AzureMLSink], tuple[Address, dict[str, Any]]]:
        # By its workspace, so that it means the same where the environment names another.
        return AzureMLSink, (self._address, self._options)

    # -- the protocol --------------------------------------------------------------------------------------------------

    def put(self, key: ArtifactKey, source: Source, *, on_bytes: OnBytes | None = None) -> StoredArtifact:
        """Store all bytes of ``source`` under ``key``; see :meth:`.ArtifactSink.put`."""
        run = self._run(key.run_id)
        with closing(source.open()) as stream:
            size = source.size
            url = self._registrar(run).url(key.path)
            # Behind a path that is new nothing was begun.
            begun = partial(self._begun, run, key) if url is None else None
            signed = SignedUrl(url, partial(run.write_url, key.path))
            taken = self._blobs.put(signed, stream, size, f"{run.uri}/{key.path}", on_bytes, begun)
        return self._describe(run, key, *taken)

    def stat(self, key: ArtifactKey) -> StoredArtifact | None:
        """Return what is held under ``key``, or None."""
        run = self._run(key.run_id)
        url = run.read_url(key.path)
        return None if url is None else self._look(run, key, url)

    def open(self, key: ArtifactKey) -> BinaryIO:
        """Open the object for reading; raises :class:`~stagesink.errors.ArtifactNotFound` when it is not there."""
        run = self._run(key.run_id)
        url = run.read_url(key.path)
        if url is None:
            raise ArtifactNotFound(f"{run.uri} holds no {key.path}.")
        return self._blobs.open(self._readable(run, key, url), f"{run.uri}/{key.path}")

    def list(self, run_id: str, prefix: str = "") -> Iterator[StoredArtifact]:
        """Yield the objects of a run, or those under one object's or folder's name."""
        ArtifactKey(run_id, prefix or "any")  # refuses what would leave the run
        run = self._run(run_id)
        under = ((path, url) for path, url in run.read_urls(prefix) if lies_under(path, prefix))
        looks = ((run, key, url) for path, url in under if (key := _key(run_id, path)) is not None)
        # Twice as many as are looked at once: then the next page can be asked for meanwhile.
        waiting: deque[Future[StoredArtifact | None]] = deque()
        pool = ThreadPoolExecutor(_LOOKED_AT, "stagesink-look")
        try:
            for look in looks:
                waiting.append(pool.submit(self._look, *look))
                if len(waiting) == 2 * _LOOKED_AT and (stored := waiting.popleft().result()) is not None:
                    yield stored
            while waiting:
                if (stored := waiting.popleft().result()) is not None:
                    yield stored
        finally:
            pool.shutdown(cancel_futures=True)

    def delete(self, key: ArtifactKey) -> None:
        """Remove the object, if it is there: the service forgets its path and removes its blob."""
        self._run(key.run_id).forget(key.path)

    def close(self) -> None:
        """Let go of this process's connections."""
        self._http.close()
        self._blob_http.close()

    @contextmanager
    def expecting(self, keys: Sequence[ArtifactKey]) -> Iterator[None]:
        """Know what is going to be put: until the block ends it is registered in full requests."""
        if not keys:
            yield
            return
        with self._registrar(self._run(keys[0].run_id)).expecting([key.path for key in keys]):
            yield

    def notes(self) -> AzureMLSink:
        """Return a view for writers' notes, which shows one too whose writer died before its bytes came."""
        return _Notes(self)

    @contextmanager
    def scratch_run(self) -> Iterator[str]:
        """Make a run for a trial, in the job's experiment or one of its own; it is deleted at the end of the block."""
        experiment = next((name for _, name in self._address.experiments), _SCRATCH)
        run_id = new_run(self._http, self._address.workspace, experiment)
        try:
            yield run_id
        finally:
            self._runs.pop(run_id, None)
            delete_run(self._http, self._address.workspace, run_id)

    def run_server(self) -> RunServer:
        """Return what makes the runs here that began without the workspace."""
        return WorkspaceRuns(self._http, self._address)

    # -- runs ----------------------------------------------------------------------------------------------------------

    def _run(self, run_id: str) -> Run:
        run = self._runs.get(run_id)
        if run is None:
            workspace = self._address.workspace
            experiment = dict(self._address.experiments).get(run_id) or experiment_of(self._http, workspace, run_id)
            run = self._runs.setdefault(run_id, Run(self._http, workspace, experiment, run_id))
        return run

    def _registrar(self, run: Run) -> Registrar:
        # By process id: a fork could copy its lock taken.
        return self._registrars.setdefault((os.getpid(), run.run_id), Registrar(run.register))

    def _look(self, run: Run, key: ArtifactKey, url: str) -> StoredArtifact | None:
        found = self._blobs.head(self._readable(run, key, url), f"{run.uri}/{key.path}")
        return None if found is None else self._describe(run, key, *found)

    def _begun(self, run: Run, key: ArtifactKey) -> SignedUrl | None:
        url = run.read_url(key.path)
        return None if url is None else self._readable(run, key, url)

    def _readable(self, run: Run, key: ArtifactKey, url: str) -> SignedUrl:
        def renew() -> str:
            new = run.read_url(key.path)
            if new is None:
                raise ArtifactNotFound(f"{run.uri} holds no {key.path} any more.")
            return new

        return SignedUrl(url, renew)

    def _describe(self, run: Run, key: ArtifactKey, size: int, digests: dict[str, str]) -> StoredArtifact:
        return StoredArtifact(key, f"{run.uri}/{key.path}", size, digests)


class _Notes(AzureMLSink):
    """Nobody else would take such a path away, and those who download the whole run would stumble over it."""

    def __init__(self, sink: AzureMLSink) -> None:
        self.__dict__ = sink.__dict__

    def put(self, key: ArtifactKey, source: Source, *, on_bytes: OnBytes | None = None) -> StoredArtifact:
        stored = super().put(key, source, on_bytes=on_bytes)
        if stored.size:
            self._own_notes[key] = stored
        else:
            self._own_notes.pop(key, None)  # emptied where it cannot be removed: it counts as none
        return stored

    def delete(self, key: ArtifactKey) -> None:
        super().delete(key)
        self._own_notes.pop(key, None)

    def _look(self, run: Run, key: ArtifactKey, url: str) -> StoredArtifact:
        # One that was written a moment ago need not be looked at: its path is registered still. Later it must be, since
        # where nothing can be removed another may have emptied it.
        own = self._own_notes.pop(key, None)
        return own or super()._look(run, key, url) or self._describe(run, key, 1, {})


def open_azureml(uri: str, storage_options: Mapping[str, Any]) -> ArtifactSink:
    """Open ``azureml:`` and the ``azureml://`` forms: the artifacts of runs, or a folder of a datastore."""
    return _open(address_of(uri, os.environ), dict(storage_options))


def _open(address: Address, storage_options: dict[str, Any]) -> ArtifactSink:
    if address.datastore is None:
        return AzureMLSink(address, storage_options)
    return DatastoreSink(address, _service(address, storage_options.get("credential")), storage_options, _open)


def _service(address: Address, credential: Credential | None) -> HttpClient:
    """Return what calls the workspace's services."""
    workspace = address.workspace
    agent = {"User-Agent": f"stagesink/{__version__}"}
    name, connect = urlsplit(workspace.service).netloc, partial(pool_manager, workspace.service)

    def renew(token: str) -> str | None:
        for run_id, experiment in address.experiments:
            with suppress(SinkError), closing(HttpClient(name, connect, lambda: agent)) as http:
                return renewed_token(http, workspace, experiment, run_id, token)
        return None  # the one at hand serves until its end

    tokens = Tokens(credential, renew=renew)
    return HttpClient(name, connect, lambda: {**agent, **tokens.headers()}, other_login=tokens.other_than)


def _key(run_id: str, path: str) -> ArtifactKey | None:
    try:
        return ArtifactKey(run_id, path)
    except InvalidKey:
        return None  # nobody can have put it here through us
