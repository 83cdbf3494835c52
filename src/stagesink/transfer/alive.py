"""Who a process is, so that another one on the same machine can tell when it is dead."""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
from pathlib import Path

_UNKNOWN = "0"
_ANY = f"x{secrets.token_hex(6)}"  # of a process that cannot tell its machine: no other one's name may be the same


def me() -> str:
    """Return a name of this process: its machine, its id, and when it started. Plain letters, digits and dashes."""
    pid = os.getpid()
    return f"{_machine()}-{pid}-{_started(pid) or _UNKNOWN}"


def is_dead(who: str) -> bool:
    """Tell whether the process of that name is surely gone. False for one on another machine, of which nobody knows."""
    machine, _, rest = who.partition("-")
    pid, _, started = rest.partition("-")
    if machine == _ANY or machine != _machine() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)  # not by /proc alone, which may hide other users' processes
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False  # there is one, and its start cannot be told from here
    now = _started(int(pid))
    return now == "" or (_UNKNOWN not in (started, now or _UNKNOWN) and now != started)


@functools.cache
def _machine() -> str:
    """Name what process ids are unique within: the boot of one machine, and the namespace in it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return _ANY  # not Linux: only time tells who is dead
    return hashlib.sha256(f"{os.uname().nodename} {boot} {namespace}".encode()).hexdigest()[:12]


def _started(pid: int) -> str | None:
    """Return when a process started, in ticks since the boot; empty when it has ended, None when nobody can tell."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return "" if state in ("Z", "X") else fields[18]
