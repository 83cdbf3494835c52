"""The login that ``~/.netrc`` has for a server: mlflow's own client sends it too, since requests looks there."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from functools import lru_cache


def login_for(host: str, environ: Mapping[str, str]) -> tuple[str, str] | None:
    """Return user and password for a host, or those of the file's ``default``.

    Parameters
    ----------
    host : str
    environ : mapping of str to str
        Its ``NETRC`` names the file, else it is ``.netrc`` or ``_netrc`` in the home folder.

    Returns
    -------
    tuple of str or None
        None too where the file cannot be read or is none, as requests has it: it is for other programs in the first
        place, and an upload that needs no login must not fail on it. What it holds is quoted nowhere.
    """
    named = environ.get("NETRC")
    for path in ("~/.netrc", "~/_netrc") if named is None else (named,):
        path = os.path.expanduser(path)
        try:
            found = os.stat(path)
        except OSError:
            continue
        return _read(path, found.st_mtime_ns, found.st_size, host)
    return None


@lru_cache(8)
def _read(path: str, _changed: int, _size: int, host: str) -> tuple[str, str] | None:
    """Read the file when a server's login is first asked for, and again when it has changed."""
    try:
        entry = netrc.netrc(path).authenticators(host)
    except (netrc.NetrcParseError, OSError, UnicodeError):
        return None
    if entry is None:
        return None
    user, account, password = entry
    return user or account or "", password or ""
