"""What a folder holds: every file that would be uploaded, or a typed error that says why it cannot be.

Nothing is left out silently. What :func:`should_skip_file` leaves out is listed in :attr:`Tree.skipped`; whatever
cannot be uploaded (a dangling link, a named pipe, a folder without permission) is an error, never a gap.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

from stagesink.artifacts import ArtifactKey, FileSource, source_error
from stagesink.errors import (
    EmptyTree,
    IncompleteCheckpoint,
    InvalidKey,
    LinkError,
    SourceError,
    SourceKindError,
    SourceUnreadable,
)

INCOMPLETE_MARKER = "checkpoint-is-incomplete.txt"
"""A trainer leaves this file in a checkpoint that it has not finished writing."""

_SKIPPED_NAMES = frozenset({"__pycache__", ".DS_Store", ".git", ".ipynb_checkpoints"})
_SKIPPED_SUFFIXES = (".tmp", ".lock")


class TreeFile(NamedTuple):
    """One file of a tree.

    Parameters
    ----------
    path : str
        POSIX, relative to the tree's root.
    location : str
        Absolute path of the file on this machine; may be a symbolic link.
    size : int
        Bytes when the tree was scanned.
    """

    path: str
    location: str
    size: int

    @property
    def source(self) -> FileSource:
        """The file's bytes."""
        return FileSource(self.location)


@dataclass(frozen=True, slots=True)
class Tree:
    """The files of a folder at the moment it was scanned.

    Parameters
    ----------
    root : Path
        Absolute.
    files : tuple of TreeFile
        Sorted by path; at least one.
    skipped : tuple of str
        Relative paths of what was left out on purpose, sorted; a folder ends in ``/``.
    """

    root: Path
    files: tuple[TreeFile, ...]
    skipped: tuple[str, ...] = ()

    @property
    def total_size(self) -> int:
        """Bytes of all files together when the tree was scanned."""
        return sum(file.size for file in self.files)


def should_skip_file(file_path: os.PathLike[str] | str, relative_path: os.PathLike[str] | str) -> bool:
    """Tell whether a file is a cache or a lock, which nobody wants uploaded.

    Logs, large files and compiled modules outside ``__pycache__`` are not skipped.

    Parameters
    ----------
    file_path : path
        Where the file lies. It plays no part: a checkpoint may itself lie under a folder of such a name.
    relative_path : path
        The file's path relative to the checkpoint folder.
    """
    return any(_is_skipped(name) for name in PurePath(relative_path).parts)


def scan_tree(root: os.PathLike[str] | str) -> Tree:
    """List the files of a folder, its subfolders included.

    Symbolic links to files and folders are followed, also out of the folder.

    Parameters
    ----------
    root : path
        The folder.

    Raises
    ------
    SourceNotFound
        ``root`` does not exist, or something in it vanished during the scan.
    SourceKindError
        ``root`` is a file.
    SourceUnreadable
        A subfolder cannot be listed, or an entry is a pipe, a socket or a device.
    LinkError
        A symbolic link dangles or leads round in a circle.
    InvalidKey
        A name that no backend could hold.
    IncompleteCheckpoint
        The folder holds ``checkpoint-is-incomplete.txt``.
    EmptyTree
        No file is left to upload.
    """
    top = os.path.abspath(root)
    _check_root(top)
    files: list[TreeFile] = []
    skipped: list[str] = []
    # Folders still to list: absolute path, prefix of its relative paths, real folders left through a link on the way.
    # A stack, not recursion: a folder may be nested deeper than Python's stack.
    waiting: list[tuple[str, str, tuple[str, ...]]] = [(top, "", ())]
    while waiting:
        folder, prefix, crossed = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    path = prefix + entry.name
                    if _is_skipped(entry.name):
                        skipped.append(_printable(path + "/" if os.path.isdir(entry.path) else path))
                    elif entry.is_dir(follow_symlinks=False):
                        waiting.append((entry.path, path + "/", crossed))
                    elif stat.S_ISDIR((status := _status(entry)).st_mode):
                        waiting.append((entry.path, path + "/", _cross(entry, folder, crossed)))
                    else:
                        _check_file(entry, path, status)
                        files.append(TreeFile(path, entry.path, status.st_size))
        except OSError as error:
            raise source_error(folder, error) from error
    if not files:
        raise _empty(top, len(skipped))
    return Tree(Path(top), tuple(sorted(files)), tuple(sorted(skipped)))


def _is_skipped(name: str) -> bool:
    return name in _SKIPPED_NAMES or name.endswith(_SKIPPED_SUFFIXES)


def _check_root(top: str) -> None:
    try:
        status = os.stat(top)
    except (OSError, ValueError) as error:
        raise _entry_error(top, error) from error
    if not stat.S_ISDIR(status.st_mode):
        raise SourceKindError(f"{top} is a file where a folder belongs.", hint="Name the folder that holds it.")


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except OSError as error:
        raise _entry_error(entry.path, error) from error


def _entry_error(path: str, error: OSError | ValueError) -> SourceError:
    """Like source_error, but a link is to blame for what is wrong behind it."""
    if isinstance(error, ValueError | PermissionError) or not os.path.islink(path):
        return source_error(path, error)
    target = _printable(os.readlink(path))
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return LinkError(f"The link {_printable(path)} leads to {target}, which does not exist.")
    return LinkError(f"The link {_printable(path)} to {target} leads nowhere: {error.strerror or error}.")


def _cross(entry: os.DirEntry[str], folder: str, crossed: tuple[str, ...]) -> tuple[str, ...]:
    """Follow a link to a folder, unless walking down from there would come back to this link."""
    here = (*crossed, os.path.realpath(folder))
    target = os.path.realpath(entry.path)
    if any(place == target or place.startswith(os.path.join(target, "")) for place in here):
        raise LinkError(f"The link {_printable(entry.path)} leads round in a circle: it holds itself.")
    return here


def _check_file(entry: os.DirEntry[str], path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise SourceUnreadable(
            f"{_printable(entry.path)} is a pipe, a socket or a device, not a file.",
            hint="Remove it or move it elsewhere; nothing is left out silently.",
        )
    if entry.name == INCOMPLETE_MARKER:
        raise IncompleteCheckpoint(f"{_printable(entry.path)} says that this checkpoint is incomplete.")
    # Nearly every name is plain and short; the full check would double the time of a scan.
    if len(path) < 200 and path.isascii() and path.isprintable() and "\\" not in path:
        return
    try:
        ArtifactKey("tree", path)
    except InvalidKey as error:
        raise InvalidKey(f"{path!r} in this folder cannot be uploaded. {error.message}", hint="Rename it.") from error


def _printable(path: str) -> str:
    """Escape bytes that are not UTF-8, which would break whoever prints or stores the text."""
    return path.encode("utf-8", "backslashreplace").decode()


def _empty(top: str, skipped: int) -> EmptyTree:
    if not skipped:
        return EmptyTree(f"{top} holds no file.")
    return EmptyTree(f"{top} holds nothing but caches and locks, which are not uploaded ({skipped} skipped).")
