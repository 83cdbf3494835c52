"""Any fsspec URL: ``s3://``, ``az://``, ``gs://``, ``sftp://``, ``ftp://`` and whatever else fsspec knows."""

from __future__ import annotations

import builtins
import ftplib
import io
import logging
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from datetime import datetime, timedelta, timezone
from typing import Any, BinaryIO, cast

from stagesink.artifacts import ArtifactKey, Source, StoredArtifact, lies_under
from stagesink.errors import (
    ArtifactNotFound,
    ConfigError,
    InvalidKey,
    RunNotFound,
    SinkConflict,
    SinkError,
    VerificationError,
)
from stagesink.redaction import address_of, secrets_of, without_secrets
from stagesink.sinks._backend_errors import made_up, translating
from stagesink.sinks._hosts import configured, host_of
from stagesink.sinks.fsspec.clients import Clients
from stagesink.sinks.fsspec.info import digests_of, info_of_head
from stagesink.sinks.fsspec.reader import ObjectReader
from stagesink.sinks.fsspec.stores import (
    azure_retries,
    check_form,
    commit_of,
    filesystem_class,
    is_local,
    quiet_options,
    root_of,
)
from stagesink.sinks.protocol import OnBytes
from stagesink.sinks.registry import scheme_of
from stagesink.streams import chunks

logger = logging.getLogger(__name__)

PART_BYTES = 8 << 20
"""Size of the parts in which a large object is sent and read."""

_STREAM_PART_BYTES = 12 << 20  # for a source of unknown size: 10,000 parts make 117 GiB
_MAX_PARTS = 10_000  # of S3, the strictest

_AZURE = ("az", "abfs", "abfss")
_TEMP_PREFIX, _TEMP_SUFFIX = ".uploading-", ".tmp"  # other than LocalSink's, which it sweeps


class FsspecSink:
    """Objects at ``<root>/<run_id>/<path>`` in any store that fsspec reaches and that can commit atomically.

    Each process, and where the client is not thread-safe each operation, has its own client; the clients' own retries
    and listing caches are off where they can be. Objects whose names no :class:`ArtifactKey` can have are somebody
    else's and are not listed.

    Parameters
    ----------
    uri : str
        ``scheme://...``. A password in it is used, and never shown.
    storage_options : mapping, optional
        Handed to the fsspec implementation: credentials, endpoint and the like, as it names them.

    Raises
    ------
    MissingExtra
        The implementation's package is not installed.
    UnknownScheme
        The store has neither an atomic put nor a rename, so a reader could see half an object.
    ConfigError
        The URI has a query, chains file systems, names no bucket, or cannot be taken apart.
    """

    def __init__(self, uri: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self._scheme = scheme_of(uri)
        if "::" in uri:
            raise ConfigError("Chained fsspec URLs cannot be sinks.", hint="Give the URL of the store itself.")
        kind = filesystem_class(self._scheme)
        self._commit = commit_of(self._scheme, kind)
        check_form(uri, self._scheme, kind)
        if "?" in uri and not is_local(kind):
            raise ConfigError(
                f"A {self._scheme}: sink takes no query in its URI.", hint="Put it into artifacts.storage_options."
            )
        self._root = root_of(uri, self._scheme, kind)
        if self._commit == "put" and not self._root:
            raise ConfigError(f"{without_secrets(uri)} names no bucket.", hint=f"Use {self._scheme}://BUCKET/FOLDER.")
        # A relative folder must mean the same after pickling, where the working directory may be another.
        self._url = f"{self._scheme}://{self._root}" if is_local(kind) else uri
        self._shown = address_of(self._url)
        self._options = dict(storage_options or {})
        self.host = host_of(self._url, self._options)  # as LocatedSink has it
        self._secrets = secrets_of(self._url, {**configured(self._url), **self._options})
        self._clients = Clients(self._connect, shared=bool(getattr(kind, "async_impl", False)))

    @property
    def uri(self) -> str:
        """Printable address of the sink, without a slash at its end."""
        return self._shown

    def __repr__(self) -> str:
        return f"FsspecSink({self.uri!r})"

    def __reduce__(self) -> tuple[type[FsspecSink], tuple[str, dict[str, Any]]]:
        return FsspecSink, (self._url, self._options)

    # -- the protocol --------------------------------------------------------------------------------------------------

    def put(self, key: ArtifactKey, source: Source, *, on_bytes: OnBytes | None = None) -> StoredArtifact:
        """Store all bytes of ``source`` under ``key``; see :meth:`.ArtifactSink.put`."""
        with closing(source.open()) as stream, self._client() as fs:
            path = self._path(fs, key)
            if self._commit == "rename":
                self._put_by_rename(fs, path, key, stream, on_bytes)
            elif self._commit == "pipe":
                self._pipe(fs, path, key, stream, on_bytes)
            else:
                self._put(fs, path, key, stream, _part_bytes(source.size), on_bytes)
            stored = self._stat(fs, path, key)
        if stored is None:
            raise VerificationError(f"{self._address(key)} was accepted by the store, but is not there.")
        return stored

    def stat(self, key: ArtifactKey) -> StoredArtifact | None:
        """Return what is held under ``key``, or None."""
        with self._client() as fs:
            return self._stat(fs, self._path(fs, key), key)

    def open(self, key: ArtifactKey) -> BinaryIO:
        """Open the object for reading; raises :class:`~stagesink.errors.ArtifactNotFound` when it is not there."""
        fs = self._clients.take()
        path = self._path(fs, key)
        reading = f"{self._address(key)} could not be read"
        if self._commit == "pipe":
            with self._translating(reading):
                data = fs.cat_file(path)
            self._clients.give_back(fs)
            return io.BytesIO(data)
        # A folder is no object: object stores open it as an empty file, others fail with an error that has no type.
        if self._commit == "rename" and self._stat(fs, path, key) is None:
            raise ArtifactNotFound(f"{self.uri} holds no {key}.")
        with self._translating(reading):
            stream = fs.open(path, "rb", block_size=PART_BYTES, cache_type="readahead")
            details = getattr(stream, "details", None)
        if details and details.get("type") == "directory":
            raise ArtifactNotFound(f"{self.uri} holds no {key}.")
        if details:
            self._must_be_the_stores(details, reading)
        return cast(
            "BinaryIO",
            io.BufferedReader(
                ObjectReader(self._clients, fs, path, stream, details, lambda: self._translating(reading), reading),
                1 << 16,
            ),
        )

    def list(self, run_id: str, prefix: str = "") -> Iterator[StoredArtifact]:
        """Yield the objects of a run, or those under one object's or folder's name."""
        ArtifactKey(run_id, prefix or "any")  # refuses what would leave the run
        with self._client() as fs:
            yield from self._walk(fs, run_id, prefix) if self._commit == "rename" else self._find(fs, run_id, prefix)

    def delete(self, key: ArtifactKey) -> None:
        """Remove the object, if it is there."""
        with self._client() as fs:
            path = self._path(fs, key)
            # sftp removes an empty folder of that name, others fail on it: a folder is no object.
            if self._commit == "rename" and self._stat(fs, path, key) is None:
                return
            with suppress(ArtifactNotFound), self._translating(f"{self._address(key)} could not be deleted"):
                fs.rm_file(path)

    def sweep(self, older_than: timedelta) -> builtins.list[str] | None:
        """Abort the uploads in parts that nobody finished in the time given, on S3.

        Returns
        -------
        list of str or None
            Printable address of the object that each was to become. None for other stores.
        """
        with self._client() as fs:
            if not hasattr(fs, "call_s3"):
                return None
            return self._abort_uploads(fs, datetime.now(timezone.utc) - older_than)

    def _abort_uploads(self, fs: Any, before: datetime) -> builtins.list[str]:
        bucket, folder, _ = fs.split_path(self._root)
        folder = folder.rstrip("/") + "/" if folder else ""  # not what only begins with the same letters
        swept: builtins.list[str] = []
        marker: dict[str, str] = {}
        while True:
            with self._translating(f"{self.uri}: unfinished uploads could not be listed", missing=RunNotFound):
                page = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=folder, **marker)
            for upload in page.get("Uploads", ()):
                if upload["Initiated"] <= before:
                    name = f"{self._scheme}://{bucket}/{upload['Key']}"
                    with (
                        suppress(ArtifactNotFound),  # finished or aborted meanwhile
                        self._translating(f"{name}: its unfinished upload could not be aborted"),
                    ):
                        fs.call_s3(
                            "abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )
                        swept.append(name)
            if not page.get("IsTruncated"):
                return swept
            marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def close(self) -> None:
        """Let go of this process's connections."""
        self._clients.close()

    # -- three ways to commit ------------------------------------------------------------------------------------------

    def _put(self, fs: Any, path: str, key: ArtifactKey, stream: BinaryIO, part: int, on_bytes: OnBytes | None) -> None:
        putting = f"{self._address(key)} could not be put"
        with self._translating(putting, missing=RunNotFound):
            target = fs.open(path, "wb", block_size=part)
        committed = False
        try:
            self._copy(stream, target, putting, on_bytes)
            with self._translating(putting, missing=RunNotFound):
                target.close()
            committed = True
        finally:
            if not committed:
                # Whatever fsspec's file does when it is closed, left by `with` or collected, it commits: a part of the
                # object. Only a file that counts as closed does not.
                target.closed = True
                with self._tidying(f"the unfinished upload of {self._address(key)}"):
                    target.discard()

    def _pipe(self, fs: Any, path: str, key: ArtifactKey, stream: BinaryIO, on_bytes: OnBytes | None) -> None:
        putting = f"{self._address(key)} could not be put"
        whole = io.BytesIO()
        self._copy(stream, whole, putting, on_bytes)
        with self._translating(putting):
            is_folder = fs.isdir(path)
        if is_folder:
            raise _folder_in_the_way(putting)
        data = whole.getvalue()
        with self._translating(putting):
            fs.pipe_file(path, data)

    def _put_by_rename(self, fs: Any, path: str, key: ArtifactKey, stream: BinaryIO, on_bytes: OnBytes | None) -> None:
        putting = f"{self._address(key)} could not be put"
        folder = path.rpartition("/")[0]
        temp = f"{folder}/{_TEMP_PREFIX}{uuid.uuid4().hex}{_TEMP_SUFFIX}"
        self._make_folder(fs, folder, putting)
        landed = False
        try:
            self._write_temp(fs, temp, putting, stream, on_bytes)
            self._rename(fs, temp, path, putting)
            landed = True
        finally:
            if not landed:
                with self._tidying(f"{self.uri}: the temporary file of {key}"):
                    if fs.exists(temp):
                        fs.rm_file(temp)

    def _write_temp(self, fs: Any, temp: str, putting: str, stream: BinaryIO, on_bytes: OnBytes | None) -> None:
        with self._translating(putting, missing=RunNotFound):
            target = fs.open(temp, "wb", block_size=PART_BYTES)
        written = False
        try:
            self._copy(stream, target, putting, on_bytes)
            written = True
        finally:
            if not written and _is_buffered(target):
                target.closed = True  # closing it would only send what is about to be removed
            with self._translating(putting, missing=RunNotFound):
                target.close()

    def _rename(self, fs: Any, temp: str, path: str, putting: str) -> None:
        try:
            with self._translating(putting, missing=RunNotFound):
                _rename(fs, temp, path)
        except SinkError as error:
            with self._translating(putting):
                is_folder = fs.isdir(path)
            if is_folder:
                raise _folder_in_the_way(putting) from error
            if not isinstance(error, SinkConflict):
                raise
            # This store does not rename over a file: for a moment there is none, which the contract allows.
            with self._translating(putting):
                fs.rm_file(path)
                _rename(fs, temp, path)

    def _make_folder(self, fs: Any, folder: str, putting: str) -> None:
        with self._translating(putting):
            if not folder or fs.isdir(folder):
                return
        self._make_folder(fs, folder.rpartition("/")[0], putting)
        try:
            with self._translating(putting, missing=RunNotFound):
                fs.mkdir(folder, create_parents=False)
        except SinkError as error:
            with self._translating(putting):
                if fs.isdir(folder):
                    return  # somebody else was faster
                stands = fs.exists(folder)
            if stands:
                raise SinkConflict(f"{putting}: a file stands where its folder belongs.") from error
            raise

    def _copy(self, stream: BinaryIO, target: Any, putting: str, on_bytes: OnBytes | None) -> None:
        for chunk in chunks(stream):  # outside the translation: the source's errors are not the store's
            with self._translating(putting, missing=RunNotFound):
                target.write(chunk)
            if on_bytes is not None:
                on_bytes(len(chunk))

    # -- what is there -------------------------------------------------------------------------------------------------

    def _stat(self, fs: Any, path: str, key: ArtifactKey) -> StoredArtifact | None:
        try:
            info = self._info(fs, path, f"{self._address(key)} could not be looked up")
        except ArtifactNotFound:
            return None
        except SinkConflict:
            if self._commit == "put":
                raise
            return None  # a file where the path has a folder
        return self._describe(key, info, digests_of(info)) if info["type"] == "file" else None

    def _info(self, fs: Any, path: str, looking: str) -> Mapping[str, Any]:
        if not hasattr(fs, "call_s3"):
            with self._translating(looking):
                info = cast("Mapping[str, Any]", fs.info(path))
            self._must_be_the_stores(info, looking)
            return info
        # S3 itself: s3fs's `info` drops how the object is encrypted, and looks for folders.
        bucket, name, _ = fs.split_path(path)
        with self._translating(looking):
            head = fs.call_s3("head_object", Bucket=bucket, Key=name)
        if "ETag" not in head:
            raise made_up(looking)
        return info_of_head(head, bucket)

    def _find(self, fs: Any, run_id: str, prefix: str) -> Iterator[StoredArtifact]:
        base, listing = f"{self._root}/{run_id}", f"{self._address(run_id)} could not be listed"
        found: object = {}
        with suppress(ArtifactNotFound), self._translating(listing):
            found = fs.find(base, prefix=prefix, detail=True)
        if not isinstance(found, Mapping):  # adlfs, when an object has the run's own name
            self._must_be_a_listing(fs, base, listing)
            return
        nothing = True
        for name, info in found.items():
            path = str(name)[len(base) + 1 :]
            inside = str(name).startswith(f"{base}/") and lies_under(path, prefix)
            if inside and info.get("type") == "file" and (key := _key(run_id, path)) is not None:
                nothing = False
                # The listing of S3 does not say how an object is encrypted, so its ETag may or may not be a digest.
                yield self._describe(key, info, {} if hasattr(fs, "call_s3") else digests_of(info))
        if nothing:
            self._must_be_a_listing(fs, base, listing)

    def _must_be_a_listing(self, fs: Any, base: str, listing: str) -> None:
        """See that it is the store that holds nothing: a proxy's page reads like an empty listing.

        S3 says whose listing it is. adlfs keeps nothing of Azure's, so the object of the folder's own name is asked
        for: what makes up listings alone is not noticed. Other stores are believed.
        """
        if self._scheme in _AZURE:
            with suppress(ArtifactNotFound):
                self._info(fs, base, listing)
        if not hasattr(fs, "call_s3"):
            return
        bucket, name, _ = fs.split_path(base)
        with suppress(ArtifactNotFound), self._translating(listing):
            if "Name" not in fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=name, MaxKeys=1):
                raise made_up(listing)

    def _must_be_the_stores(self, info: Mapping[str, Any], doing: str) -> None:
        """See that it is Azure that has the object: it gives each an ETag, and a proxy's page has none."""
        if self._scheme in _AZURE and info["type"] == "file" and not info.get("etag"):
            raise made_up(doing)

    def _walk(self, fs: Any, run_id: str, prefix: str) -> Iterator[StoredArtifact]:
        # Our own: fsspec's walk leaves out, in silence, the folders it fails to read.
        if prefix:
            key = ArtifactKey(run_id, prefix)
            found = self._stat(fs, self._path(fs, key), key)
            if found is not None:
                yield found
                return
        folders = [prefix]
        while folders:
            folder = folders.pop()
            for info in self._children(fs, run_id, folder):
                name = str(info["name"]).rstrip("/").rpartition("/")[2]
                path = f"{folder}/{name}" if folder else name
                if info["type"] == "directory":
                    folders.append(path)
                elif info["type"] == "file" and not _is_temp(name) and (key_ := _key(run_id, path)) is not None:
                    yield self._describe(key_, info, {})

    def _children(self, fs: Any, run_id: str, folder: str) -> Iterable[Any]:
        path = f"{self._root}/{run_id}/{folder}".rstrip("/")
        try:
            with self._translating(f"{self._address(run_id)} could not be listed"):
                return cast("Iterable[Any]", fs.ls(path, detail=True)) if fs.isdir(path) else ()
        except (ArtifactNotFound, SinkConflict):
            return ()

    def _describe(self, key: ArtifactKey, info: Mapping[str, Any], digests: Mapping[str, str]) -> StoredArtifact:
        return StoredArtifact(key, self._address(key), int(info["size"]), digests)

    def _address(self, what: ArtifactKey | str) -> str:
        base = self.uri
        return f"{base}{what}" if base.endswith("://") else f"{base}/{what}"

    def _path(self, fs: Any, key: ArtifactKey) -> str:
        """Return where ``key`` lives; refuse names of which the implementation would cut something off."""
        path = f"{self._root}/{key}"
        if self._commit == "rename" and any(_is_temp(segment) for segment in key.path.split("/")):
            raise SinkError(f"{key} has a name that {self.uri} keeps for its temporary files.", hint="Rename the file.")
        # s3fs and adlfs cut "?versionId=..." off, adlfs turns "?" and "#" round.
        same = str(fs._strip_protocol(path)) == path
        if same and hasattr(fs, "split_path"):
            same = "/".join(fs.split_path(path)[:2]) == path.lstrip("/")
        if not same:
            raise SinkError(f"{self.uri} cannot hold an object named {key}.", hint="Rename the file.")
        return path

    # -- clients -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _client(self) -> Iterator[Any]:
        fs = self._clients.take()
        yield fs
        self._clients.give_back(fs)  # not after a failure: the connection may be the reason

    def _connect(self) -> Any:
        from fsspec.core import url_to_fs

        options = quiet_options(self._scheme, self._options)
        reaching = f"{self.uri} could not be reached"
        with self._translating(reaching, missing=RunNotFound):
            fs, _ = url_to_fs(self._url, skip_instance_cache=True, **options)
        if hasattr(fs, "call_s3"):
            fs.retries = 1  # of s3fs itself; retrying is the engine's
        if (policy := azure_retries(fs)) is not None:
            policy.total_retries = 0  # adlfs hands no option on for this; its own would take minutes
        if self._scheme == "ftp":
            with self._translating(reaching), suppress(ftplib.Error):  # servers may refuse
                fs.ftp.sendcmd("OPTS MLST type;size;modify;unique;")  # the time alone is to the second
        return fs

    def _translating(self, doing: str, *, missing: type[SinkError] = ArtifactNotFound) -> AbstractContextManager[None]:
        return translating(doing, missing=missing, secrets=lambda: self._secrets)

    @contextmanager
    def _tidying(self, what: str) -> Iterator[None]:
        """Keep a failed clean-up from hiding the error that made it necessary."""
        try:
            with self._translating(f"{what} could not be removed"):
                yield
        except ArtifactNotFound:
            pass  # the store, or a commit whose answer was lost, was faster
        except SinkError as error:
            logger.warning("%s", error)


def open_fsspec(uri: str, storage_options: Mapping[str, Any]) -> FsspecSink:
    """Open any URL that fsspec knows; see :class:`FsspecSink`."""
    return FsspecSink(uri, storage_options)


def _part_bytes(size: int | None) -> int:
    if size is None:
        return _STREAM_PART_BYTES
    return max(PART_BYTES, -(-size // _MAX_PARTS))


def _folder_in_the_way(putting: str) -> SinkConflict:
    return SinkConflict(f"{putting}: a folder stands there.", hint="Choose another path.")


def _is_buffered(target: Any) -> bool:
    from fsspec.spec import AbstractBufferedFile

    return isinstance(target, AbstractBufferedFile)


def _rename(fs: Any, old: str, new: str) -> None:
    if is_local(fs):
        os.replace(old, new)  # fs.mv would move it INTO a folder of that name
    else:
        fs.mv(old, new)


def _is_temp(name: str) -> bool:
    return name.startswith(_TEMP_PREFIX) and name.endswith(_TEMP_SUFFIX)


def _key(run_id: str, path: str) -> ArtifactKey | None:
    try:
        return ArtifactKey(run_id, path)
    except InvalidKey:
        return None  # nobody can have put it here through us
