"""``file:`` keeps objects as plain files under a folder: ``<root>/<run_id>/<path>``."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat as stat_module
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast
from urllib.parse import unquote

from stagesink.artifacts import ArtifactKey, Source, StoredArtifact, link_to
from stagesink.disk import settle
from stagesink.errors import (
    ArtifactNotFound,
    ConfigError,
    InvalidKey,
    SinkAuthError,
    SinkConflict,
    SinkError,
    SinkQuotaError,
    TransientSinkError,
)
from stagesink.sinks.protocol import OnBytes
from stagesink.streams import chunks

_TEMP_PREFIX, _TEMP_SUFFIX = ".stagesink-", ".tmp"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # some network and FUSE file systems
_DEFER_BELOW = 1 << 20  # bytes; a larger object's own fsync costs little beside writing it
_SYNCFS_FROM = 64  # objects; from here one sync of the file system is cheaper than one of each file
_PRIVATE = 0o600
_FOLDER_TRIES = 100  # how often deletions elsewhere may take a folder away before we can write into it

_ERRORS: dict[int, tuple[type[SinkError], str | None]] = {
    errno.ENOSPC: (SinkQuotaError, None),
    errno.EDQUOT: (SinkQuotaError, None),
    errno.EFBIG: (SinkQuotaError, "Use a file system that takes files of this size."),
    errno.EACCES: (SinkAuthError, "Make the folder writable for this user, or choose another."),
    errno.EPERM: (SinkAuthError, "Make the folder writable for this user, or choose another."),
    errno.EROFS: (SinkAuthError, "Choose a folder on a file system that is mounted for writing."),
    errno.EISDIR: (SinkConflict, "Remove the folder that stands there, or choose another artifact path."),
    errno.ENOTDIR: (SinkConflict, "Remove the file that stands in the way, or choose another artifact path."),
    errno.EEXIST: (SinkConflict, "Remove what stands in the way, or choose another artifact path."),
    errno.EAGAIN: (TransientSinkError, None),
    errno.EINTR: (TransientSinkError, None),
    errno.EMFILE: (TransientSinkError, "Too many open files; raise `ulimit -n` or lower artifacts.workers."),
    errno.ENFILE: (TransientSinkError, "Too many open files on this machine."),
    errno.ESTALE: (TransientSinkError, None),
    errno.ETIMEDOUT: (TransientSinkError, None),
}


class LocalSink:
    """Plain files under one folder.

    ``put`` writes a temporary file in the target's own folder, syncs it and renames it over the target, so a reader
    sees the old object or the new one. A writer holds a lock on its temporary file; one that nobody holds was left by a
    killed process, is never listed, and is swept when a sink first puts into its folder. Where the file system knows no
    locks, nothing is swept. A file system computes no digests, so ``digests`` is always empty. An object and a folder
    cannot share a name: ``a`` and ``a/b`` raise ``SinkConflict``.

    A file that its source gives away, as an outbox does what it kept, is read and hashed like any other and gets a
    second name here, where both lie on one disk and nobody else has it: nothing is copied. The source lets go of its
    own.

    Parameters
    ----------
    root : str or os.PathLike
        Made at the first ``put``.
    fsync : bool
        Wait until the disk has the bytes. False is faster and safe against a killed process, not against a power cut.
    """

    def __init__(self, root: str | os.PathLike[str], *, fsync: bool = True) -> None:
        self.root = os.path.abspath(root)
        self.fsync = fsync
        self._swept: set[str] = set()
        self._like: dict[str, _New | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Folders that were swept here may hold leftovers elsewhere.
        return {**self.__dict__, "_swept": set(), "_like": {}}

    @property
    def uri(self) -> str:
        """Printable address of the sink."""
        return f"file:{self.root}"

    def put(self, key: ArtifactKey, source: Source, *, on_bytes: OnBytes | None = None) -> StoredArtifact:
        """Store all bytes of ``source`` under ``key``; see :meth:`.ArtifactSink.put`."""
        return self._put(key, source, on_bytes, None)

    @contextmanager
    def batch(self) -> Iterator[LocalSink]:
        """Share the waiting for the disk among many small objects.

        Yields a sink whose ``put`` leaves the sync of small NEW objects to the end of the block. Objects that replace
        another are synced at once as ever, so a power cut never costs the old one. After the block all are on disk: the
        engine writes a tree's manifest, its commit marker, only then.
        """
        batch = _BatchedLocalSink(self)
        yield batch
        batch.sync()

    def notes(self) -> LocalSink:
        """Return a view that does not wait for the disk: for what a power cut may take."""
        return LocalSink(self.root, fsync=False)

    def stat(self, key: ArtifactKey) -> StoredArtifact | None:
        """Return what is held under ``key``, or None."""
        path = self._path(key)
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _sink_error(path, error) from error
        return self._describe(key, path, status.st_size) if stat_module.S_ISREG(status.st_mode) else None

    def open(self, key: ArtifactKey) -> BinaryIO:
        """Open the object for reading; raises :class:`~stagesink.errors.ArtifactNotFound` when it is not there."""
        path = self._path(key)
        try:
            # Unbuffered: whoever reads takes large pieces, and a buffer would only copy them once more.
            return cast("BinaryIO", open(path, "rb", buffering=0))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise ArtifactNotFound(f"{self.uri} holds no {key}.") from error
        except OSError as error:
            raise _sink_error(path, error) from error

    def list(self, run_id: str, prefix: str = "") -> Iterator[StoredArtifact]:
        """Yield the objects of a run, or those under one object's or folder's name."""
        if prefix:
            key = ArtifactKey(run_id, prefix)
            found = self.stat(key)
            if found is not None:
                yield found
                return
            yield from self._walk(run_id, self._path(key), f"{prefix}/")
        else:
            ArtifactKey(run_id, "any")  # refuses a run id that would leave the root
            yield from self._walk(run_id, os.path.join(self.root, run_id), "")

    def delete(self, key: ArtifactKey) -> None:
        """Remove the object, if it is there."""
        path = self._path(key)
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return
        except OSError as error:
            if error.errno == errno.EROFS and not os.path.lexists(path):
                return
            raise _sink_error(path, error) from error
        folder = self._prune(os.path.dirname(path))
        if self.fsync:
            # A manifest that came back after a power cut would vouch for objects that were changed since.
            try:
                settle(folder)
            except FileNotFoundError:
                pass  # another deletion took it away
            except OSError as error:
                raise _sink_error(folder, error) from error

    def close(self) -> None:
        """Nothing to let go of."""

    def _put(
        self, key: ArtifactKey, source: Source, on_bytes: OnBytes | None, batch: _BatchedLocalSink | None
    ) -> StoredArtifact:
        path = self._path(key)
        folder = os.path.dirname(path)
        stream = source.open()
        try:
            taken = self._take(source, folder)
            try:
                fd, temp = taken or self._create_temp(folder)
            except OSError as error:
                raise _sink_error(path, error) from error
            try:
                size = _copy(stream, fd, path, on_bytes) if taken is None else _read(stream, on_bytes)
                self._commit(fd, temp, path, size, batch)
            except BaseException:
                _unlink_quietly(temp)
                if taken is not None:
                    with suppress(OSError):
                        os.fchmod(fd, _PRIVATE)  # it stays its source's alone
                self._prune(folder)  # an empty folder would be in the way of a file of that name
                raise
            finally:
                os.close(fd)
        finally:
            stream.close()
        return self._describe(key, path, size)

    def _commit(self, fd: int, temp: str, path: str, size: int, batch: _BatchedLocalSink | None) -> None:
        try:
            if not self.fsync:
                os.replace(temp, path)
            elif batch is not None and size < _DEFER_BELOW and not os.path.lexists(path):
                os.replace(temp, path)
                batch.deferred.append(path)
            else:
                os.fsync(fd)
                os.replace(temp, path)
                with suppress(FileNotFoundError):  # deleted again, with its folder
                    settle(os.path.dirname(path))
        except OSError as error:
            raise _sink_error(path, error) from error

    def _take(self, source: Source, folder: str) -> tuple[int, str] | None:
        """Have the source's own file as a locked temporary one, if the source gives it away.

        None where it is to be copied. What went wrong shows then, if it is wrong there too.
        """
        temp = _temp_in(folder)
        with suppress(OSError), ExitStack() as undo:
            self._make_ready(folder)
            if not link_to(source, temp):
                return None
            undo.callback(_unlink_quietly, temp)
            fd = os.open(temp, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            undo.callback(os.close, fd)
            _lock(fd)
            # A sweeper may have come between.
            if os.path.samestat(os.lstat(temp), os.fstat(fd)) and self._becomes_like_new(fd, folder):
                undo.pop_all()
                return fd, temp
        return None

    def _becomes_like_new(self, fd: int, folder: str) -> bool:
        """Let those read a file who may read what is made in this folder; False where it takes more than a mode."""
        if folder not in self._like:
            self._like[folder] = _New.in_folder(folder)
        new, status = self._like[folder], os.fstat(fd)
        if new is None or (status.st_uid, status.st_gid) != (new.uid, new.gid):
            return False
        os.fchmod(fd, new.mode)
        return True

    def _create_temp(self, folder: str) -> tuple[int, str]:
        """Open a locked temporary file in ``folder``, making the folder and sweeping it first where needed."""
        tries = _FOLDER_TRIES
        while True:
            try:
                self._make_ready(folder)
                temp = _temp_in(folder)
                fd = _new_file(temp)
            except (FileNotFoundError, FileExistsError):  # a delete elsewhere took the empty folder away
                self._swept.discard(folder)
                tries -= 1
                if tries == 0:
                    raise
                continue
            try:
                _lock(fd)  # without locks nobody sweeps either
                if os.fstat(fd).st_nlink:
                    return fd, temp
            except BlockingIOError:
                pass  # a sweeper came between open and lock and is about to remove it
            except BaseException:
                os.close(fd)
                os.unlink(temp)
                raise
            os.close(fd)

    def _make_ready(self, folder: str) -> None:
        if folder not in self._swept:
            self._make_folder(folder)
            _sweep(folder)
            self._swept.add(folder)

    def _prune(self, folder: str) -> str:
        """Remove ``folder`` and those above it as long as they are empty; return the first that stays."""
        with suppress(OSError):  # it still holds something
            while folder != self.root:
                os.rmdir(folder)
                self._swept.discard(folder)
                self._like.pop(folder, None)
                folder = os.path.dirname(folder)
        return folder

    def _make_folder(self, folder: str) -> None:
        missing = []
        at = folder
        while not os.path.isdir(at) and at != os.path.dirname(at):
            missing.append(at)
            at = os.path.dirname(at)
        os.makedirs(folder, exist_ok=True)
        if self.fsync:
            for made in missing:
                settle(os.path.dirname(made))

    def _walk(self, run_id: str, folder: str, prefix: str) -> Iterator[StoredArtifact]:
        try:
            entries = os.scandir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise _sink_error(folder, error) from error
        with entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from self._walk(run_id, entry.path, f"{prefix}{entry.name}/")
                elif not _is_temp(entry.name):
                    yield from self._found(run_id, f"{prefix}{entry.name}", entry)

    def _found(self, run_id: str, path: str, entry: os.DirEntry[str]) -> Iterator[StoredArtifact]:
        try:
            key = ArtifactKey(run_id, path)
            status = entry.stat()
        except (InvalidKey, FileNotFoundError):
            return  # put there by somebody else under a name no key can have; or gone since the folder was read
        except OSError as error:
            raise _sink_error(entry.path, error) from error
        if stat_module.S_ISREG(status.st_mode):
            yield self._describe(key, entry.path, status.st_size)

    def _path(self, key: ArtifactKey) -> str:
        if _TEMP_PREFIX in key.path and any(_is_temp(segment) for segment in key.path.split("/")):
            raise SinkError(f"{key} has a name that {self.uri} keeps for its temporary files.", hint="Rename the file.")
        return f"{self.root}/{key.run_id}/{key.path}"

    def _describe(self, key: ArtifactKey, path: str, size: int) -> StoredArtifact:
        return StoredArtifact(key, f"file:{path}", size)


class _BatchedLocalSink(LocalSink):
    """What :meth:`LocalSink.batch` yields: the same folder, with the sync of small new objects put off."""

    def __init__(self, sink: LocalSink) -> None:
        super().__init__(sink.root, fsync=sink.fsync)
        self._swept, self._like = sink._swept, sink._like
        self.deferred: list[str] = []

    def put(self, key: ArtifactKey, source: Source, *, on_bytes: OnBytes | None = None) -> StoredArtifact:
        return self._put(key, source, on_bytes, self)

    def sync(self) -> None:
        if not self.deferred:
            return
        try:
            if len(self.deferred) >= _SYNCFS_FROM:
                for folder in _one_per_disk({os.path.dirname(path) for path in self.deferred}):
                    _sync_file_system(folder)
            else:
                for path in (*self.deferred, *{os.path.dirname(path) for path in self.deferred}):
                    with suppress(FileNotFoundError, NotADirectoryError):  # deleted meanwhile
                        settle(path)
        except OSError as error:
            raise _sink_error(self.root, error) from error
        self.deferred.clear()


def open_local(uri: str, storage_options: Mapping[str, Any]) -> LocalSink:
    """Open ``file:./relative``, ``file:/absolute``, ``file:///absolute`` or a bare path.

    Parameters
    ----------
    uri : str
    storage_options : mapping
        ``fsync`` (bool), as in :class:`LocalSink`.
    """
    unknown = set(storage_options) - {"fsync"}
    if unknown:
        raise ConfigError(
            f"The file: sink has no storage option {sorted(unknown)[0]!r}.", hint="It knows 'fsync' (true or false)."
        )
    fsync = storage_options.get("fsync", True)
    if not isinstance(fsync, bool):
        raise ConfigError(f"The option 'fsync' is true or false, not {fsync!r}.", hint="Write it without quotes.")
    return LocalSink(_folder_of(uri), fsync=fsync)


def _folder_of(uri: str) -> Path:
    path = uri
    if uri[:5].lower() == "file:":
        path = uri[5:]
        if path.startswith("//"):
            host, slash, rest = path[2:].partition("/")
            if host not in ("", "localhost"):
                raise ConfigError(
                    f"A file: URI names the host {host.rpartition('@')[2]!r}.",  # the URI itself may hold a password
                    hint="Use file:///absolute/path or file:./relative.",
                )
            path = unquote(slash + rest)
    if not path:
        raise ConfigError(f"{uri!r} names no folder.", hint="Use file:./artifacts, for example.")
    if "\0" in path:
        raise ConfigError(f"The folder {path!r} has a NUL byte in its name.", hint="Use file:./artifacts, for example.")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{path!r} names no home folder of this machine.", hint="Write the whole path.") from error


def _copy(stream: BinaryIO, fd: int, path: str, on_bytes: OnBytes | None) -> int:
    size = 0
    for chunk in chunks(stream):
        written = 0
        while written < len(chunk):
            try:
                written += os.write(fd, chunk[written:] if written else chunk)
            except OSError as error:
                raise _sink_error(path, error) from error
        size += written
        if on_bytes is not None:
            on_bytes(written)
    return size


def _read(stream: BinaryIO, on_bytes: OnBytes | None) -> int:
    """Have all that is read noticed: whoever handed the stream over hashes it, and sees that it is what it was."""
    size = 0
    for chunk in chunks(stream):
        size += len(chunk)
        if on_bytes is not None:
            on_bytes(len(chunk))
    return size


def _temp_in(folder: str) -> str:
    return f"{folder}/{_TEMP_PREFIX}{secrets.token_hex(8)}{_TEMP_SUFFIX}"


def _new_file(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


class _New(NamedTuple):
    """Whose a new file is in some folder, and who may read it."""

    mode: int
    uid: int
    gid: int

    @classmethod
    def in_folder(cls, folder: str) -> _New | None:
        """Make one, and look: the folder's group and this process's mask say it. None where an access list does."""
        temp = _temp_in(folder)
        fd = _new_file(temp)
        try:
            status = os.fstat(fd)
            listed = _has_access_list(fd)
            return None if listed else cls(stat_module.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
        finally:
            os.close(fd)
            _unlink_quietly(temp)  # it may have been swept, as nobody's


def _has_access_list(fd: int) -> bool:
    listxattr = getattr(os, "listxattr", None)  # Linux
    if listxattr is None:
        return True  # who knows
    try:
        return "system.posix_acl_access" in listxattr(fd)
    except OSError:
        return False  # the file system has none


def _unlink_quietly(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


def _is_temp(name: str) -> bool:
    return name.startswith(_TEMP_PREFIX) and name.endswith(_TEMP_SUFFIX)


def _sweep(folder: str) -> None:
    """Remove temporary files that no living process holds."""
    with os.scandir(folder) as entries:
        leftovers = [entry.path for entry in entries if _is_temp(entry.name)]
    for path in leftovers:
        try:
            # For writing, since NFS locks no other file. Without waiting, since a FIFO of that name would never open.
            fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # its writer has just renamed it, or it is another user's: either way not ours to sweep
        try:
            # Somebody may be writing it, and a read-only folder keeps its leftovers; they are never listed.
            with suppress(OSError):
                if stat_module.S_ISREG(os.fstat(fd).st_mode) and _lock(fd):
                    os.unlink(path)
        finally:
            os.close(fd)


def _lock(fd: int) -> bool:
    """Lock an open file, or raise BlockingIOError when another holds it. False where the file system knows no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def _one_per_disk(folders: Iterable[str]) -> Iterable[str]:
    """Return one of ``folders`` for each file system they lie on, which need not be that of the root."""
    disks: dict[int, str] = {}
    for folder in folders:
        with suppress(FileNotFoundError, NotADirectoryError):  # deleted meanwhile
            disks[os.stat(folder).st_dev] = folder
    return disks.values()


def _sync_file_system(path: str) -> None:
    import ctypes

    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)  # Linux only
    if syncfs is None:
        os.sync()
        return
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
    finally:
        os.close(fd)


def _sink_error(path: str, error: OSError) -> SinkError:
    kind, hint = _ERRORS.get(error.errno or 0, (SinkError, "Check the disk and the folder."))
    return kind(f"{path} cannot be written or read: {error.strerror or error}.", hint=hint)
