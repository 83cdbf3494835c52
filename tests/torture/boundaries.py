"""Where a process can be killed: the calls with which it changes a disk or speaks to a server.

A worker wraps these calls in itself, counts them, and kills itself at one of them. No library is preloaded and nothing
of stagesink is replaced: each call is carried out as ever, until the one at which the process ends.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import sqlite3
import ssl
import threading
from collections.abc import Callable
from typing import Any

MOMENTS = ("before", "torn", "after")
"""Of a call: it was not made; half of its bytes went; it was carried out, and nobody heard what came of it."""

_FILES = ("write", "pwrite", "fsync", "fdatasync", "truncate", "ftruncate", "copy_file_range", "sendfile")
_NAMES = ("rename", "replace", "link", "symlink", "unlink", "remove", "mkdir", "rmdir")
_OBSTORE = ("put", "get", "head", "list", "delete", "copy", "rename")
_WRITES = os.O_WRONLY | os.O_RDWR

_kill, _getpid, _write = os.kill, os.getpid, os.write
_send, _send_tls = socket.socket.send, ssl.SSLSocket.send


class Boundaries:
    """Counts the calls that matter, and ends the process at one of them.

    Parameters
    ----------
    at : int
        Number of the call, from 1; 0 only counts.
    moment : {"before", "torn", "after"}
        A call that cannot be torn ends after it.
    tell : callable
        Gets the call's name, just before the end.

    Attributes
    ----------
    names : list of str
        The calls so far.
    """

    def __init__(self, at: int, moment: str, tell: Callable[[str], None]) -> None:
        self.names: list[str] = []
        self._at = at
        self._moment = moment
        self._tell = tell
        self._lock = threading.Lock()

    def install(self) -> None:
        """Wrap the calls; for the rest of this process's life."""
        for name in (*_FILES, *_NAMES):
            if hasattr(os, name):
                setattr(os, name, self._around(name, getattr(os, name), _half_written if name == "write" else None))
        os.open = self._only_to_write(os.open)  # type: ignore[assignment]
        for kind, prefix in ((socket.socket, ""), (ssl.SSLSocket, "tls ")):
            for name in ("send", "sendall", "sendmsg", "connect"):
                if name in vars(kind) or kind is socket.socket:
                    torn = _half_sent if name in ("send", "sendall") else None
                    call = getattr(kind, name)
                    setattr(kind, name, _unless_local(self._around(f"{prefix}{name}", call, torn), call))
        self._install_sqlite()

    def install_obstore(self) -> None:
        """Wrap obstore, whose sockets are none of Python's: its calls, and each part it takes of an object."""
        import obstore

        from stagesink.sinks.obstore.parts import Pieces

        for name in _OBSTORE:
            setattr(obstore, name, self._around(f"obstore {name}", getattr(obstore, name)))
        Pieces.__next__ = self._around("obstore part", Pieces.__next__)  # type: ignore[method-assign]

    def _install_sqlite(self) -> None:
        connect = sqlite3.connect

        @functools.wraps(connect)
        def connecting(*args: Any, **kwargs: Any) -> sqlite3.Connection:
            connection = connect(*args, **kwargs)
            # Called before each statement; what changes the database is a boundary, and COMMIT one more.
            connection.set_trace_callback(self._statement)
            return connection

        sqlite3.connect = connecting  # type: ignore[assignment]

    def _statement(self, statement: str) -> None:
        words = statement.split(None, 1)
        if words and words[0].upper() not in ("SELECT", "PRAGMA", "--"):
            self._around(f"sqlite {words[0].lower()}", lambda: None)()

    def _around(
        self, name: str, call: Callable[..., Any], torn: Callable[..., object] | None = None
    ) -> Callable[..., Any]:
        @functools.wraps(call, assigned=(), updated=())
        def crossing(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                self.names.append(name)
                here = len(self.names) == self._at
            if here and self._moment == "before":
                self._die(name)
            if here and self._moment == "torn" and torn is not None:
                torn(*args)
                self._die(name)
            result = call(*args, **kwargs)
            if here:
                self._die(name)
            return result

        return crossing

    def _only_to_write(self, opened: Callable[..., int]) -> Callable[..., int]:
        counted = self._around("open", opened)

        @functools.wraps(opened, assigned=(), updated=())
        def opening(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            return (counted if flags & (_WRITES | os.O_CREAT) else opened)(path, flags, *args, **kwargs)

        return opening

    def _die(self, name: str) -> None:
        self._tell(name)
        _kill(_getpid(), signal.SIGKILL)


def _unless_local(counted: Callable[..., Any], call: Callable[..., Any]) -> Callable[..., Any]:
    """Leave out what a process says to itself: asyncio wakes its loop so."""

    def choosing(connection: socket.socket, *args: Any, **kwargs: Any) -> Any:
        return (call if connection.family == socket.AF_UNIX else counted)(connection, *args, **kwargs)

    return choosing


def _half_written(fd: int, data: Any) -> None:
    view = memoryview(data).cast("B")
    _write(fd, view[: len(view) // 2])


def _half_sent(connection: Any, data: Any, *_: Any) -> None:
    view = memoryview(data).cast("B")
    send = _send_tls if isinstance(connection, ssl.SSLSocket) else _send
    if half := view[: len(view) // 2]:
        send(connection, half)
