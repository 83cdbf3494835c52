"""Taking a file's bytes, so that its owner may rotate or rewrite it the next moment.

Three ways, the first that goes: a reflink shares the blocks until either side is written; a hard link keeps the inode
alive when its owner deletes or replaces the file, but shows what its owner writes into it; a copy is a copy.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from contextlib import suppress
from typing import Literal, NamedTuple

from stagesink.artifacts import FileSource, Fingerprint, Source, source_error
from stagesink.disk import settle
from stagesink.errors import SourceChanged
from stagesink.streams import chunks

How = Literal["reflink", "link", "copy"]

LINK_FROM = 1 << 20
"""Bytes: smaller files are copied. That takes no time, and they are the ones that get rewritten in place."""

_FICLONE = 0x40049409  # linux/fs.h: share all blocks of another file
_NO_REFLINK = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.EBADF, errno.EPERM, errno.ENOSYS}
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES}
_MODE = 0o600

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What a full disk says."""


class Taken(NamedTuple):
    """What was taken, and how. ``sha256`` is known where the bytes passed through here."""

    how: How
    fingerprint: Fingerprint
    sha256: str | None


def take(source: FileSource, target: str, *, may_link: bool, sync: bool = True) -> Taken:
    """Make ``target`` hold what the file holds now.

    Parameters
    ----------
    source : FileSource
        May be a symbolic link; what it leads to is taken.
    target : str
        Does not exist yet.
    may_link : bool
        The file is not known to be rewritten in place.
    sync : bool
        Wait until the bytes are on the disk. A hard link leaves that to :func:`.settle`.

    Raises
    ------
    SourceError
        The file cannot be read, or changed meanwhile.
    OSError
        The target cannot be written.
    """
    before = source.fingerprint()
    path = os.path.realpath(source.path)
    if _reflink(path, target):
        how: How = "reflink"
        sha256 = None
    elif may_link and _link(path, target):
        how, sha256 = "link", None
    else:
        how, sha256 = "copy", copy(source, target)
    try:
        if source.fingerprint() != before or os.stat(target).st_size != before.size:
            raise SourceChanged(f"{source.path} changed while it was kept.")
        if how == "link":
            return Taken(how, Fingerprint.of(os.stat(target)), None)
        status = os.stat(path)
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))  # an archive of it has the same bytes then
        if status.st_mode & 0o100:
            os.chmod(target, _MODE | 0o100)
        if sync:
            settle(target)
        return Taken(how, Fingerprint.of(os.stat(target)), sha256)
    except BaseException:
        with suppress(OSError):
            os.unlink(target)
        raise


def copy(source: Source, target: str) -> str:
    """Copy the bytes to a new file, for its owner's eyes only; return their sha256.

    Raises
    ------
    SourceError
        It cannot be read.
    OSError
        The target cannot be written. Nothing is left of it.
    """
    digest = hashlib.sha256()
    with source.open() as stream:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
        try:
            for chunk in chunks(stream):
                digest.update(chunk)
                view = memoryview(chunk)
                while view:
                    view = view[os.write(fd, view) :]
        except BaseException:
            with suppress(OSError):
                os.unlink(target)
            raise
        finally:
            os.close(fd)
    return digest.hexdigest()


def is_shared(path: str) -> bool:
    """Tell whether somebody else still has a name for this inode, and may write into it."""
    return os.stat(path).st_nlink > 1


def unshare(path: str, fingerprint: Fingerprint, target: str) -> Taken:
    """Copy what a hard link holds to a file of its own. The link stays.

    Raises
    ------
    SourceChanged
        The file is no longer what was kept: its owner has written into it.
    OSError
        There is no room for the copy.
    """
    with suppress(FileNotFoundError):
        os.unlink(target)  # of a process that was killed here
    source = FileSource(path)
    if source.fingerprint() != fingerprint:
        raise rewritten(path)
    try:
        sha256 = copy(source, target)
        if source.fingerprint() != fingerprint:
            raise rewritten(path)
        os.utime(target, ns=(fingerprint.mtime_ns, fingerprint.mtime_ns))
        settle(target)
    except BaseException:
        with suppress(OSError):
            os.unlink(target)
        raise
    return Taken("copy", Fingerprint.of(os.stat(target)), sha256)


def rewritten(path: str | os.PathLike[str]) -> SourceChanged:
    """Return the error of a link that its owner has written into."""
    return SourceChanged(
        f"{path} was linked, not copied, and its owner has rewritten it in place since.",
        hint="Set artifacts.outbox.snapshot to copy, or write each checkpoint to files of its own.",
    )


def _reflink(source: str, target: str) -> bool:
    try:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise source_error(source, error) from error
    try:
        made = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
        try:
            fcntl.ioctl(made, _FICLONE, fd)
        except OSError as error:
            os.unlink(target)
            if error.errno in _NO_REFLINK:
                return False
            raise
        finally:
            os.close(made)
    finally:
        os.close(fd)
    return True


def _link(source: str, target: str) -> bool:
    try:
        os.link(source, target)
    except FileNotFoundError as error:
        raise source_error(source, error) from error
    except OSError as error:
        if error.errno in _NO_LINK:
            return False  # another disk, another user's file, or a file system without links
        raise
    return True
