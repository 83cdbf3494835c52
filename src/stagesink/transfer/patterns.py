"""Choosing files of a folder by shell patterns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath


@dataclass(frozen=True, slots=True)
class Patterns:
    """Which files are wanted.

    A pattern is held against the relative path of the file, against that of each folder it lies in, and against the
    bare name of each: ``*.bin``, ``model/*``, ``logs``. ``*`` stands for any text, slashes included. Case matters.

    Parameters
    ----------
    include : sequence of str
        Nothing but what matches one of these; empty for everything.
    exclude : sequence of str
        Nothing that matches one of these; it wins over ``include``.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def select(self, *paths: str) -> bool:
        """Tell whether a file is wanted, given the relative paths it is known by."""
        if not (self.include or self.exclude):
            return True
        names = {name for path in paths for name in _names(path)}
        return (not self.include or _any_matches(self.include, names)) and not _any_matches(self.exclude, names)


def _names(path: str) -> set[str]:
    whole = PurePosixPath(path)
    return {str(whole), *(str(parent) for parent in whole.parents[:-1]), *whole.parts}


def _any_matches(patterns: Sequence[str], names: set[str]) -> bool:
    return any(fnmatchcase(name, pattern.rstrip("/")) for pattern in patterns for name in names)
