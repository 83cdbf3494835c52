"""Reading one object: errors become ours, and an object that is replaced meanwhile is noticed."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from stagesink.errors import SinkConflict, TransientSinkError
from stagesink.sinks.fsspec.clients import Clients
from stagesink.sinks.fsspec.info import version_of


class ObjectReader(io.RawIOBase):
    """One object's bytes, from a client that is given back when they are closed.

    Parameters
    ----------
    clients, fs
        The client, and where it goes back to.
    path : str
    stream : file object
        As the client opened it.
    details : mapping or None
        What the client said of the object when it opened it.
    translating : callable
        Returns the context in which the client's errors become ours.
    reading : str
        What is being done, as the start of a sentence.
    """

    def __init__(
        self,
        clients: Clients,
        fs: Any,
        path: str,
        stream: Any,
        details: Mapping[str, Any] | None,
        translating: Callable[[], AbstractContextManager[None]],
        reading: str,
    ) -> None:
        self._clients, self._fs, self._path, self._stream = clients, fs, path, stream
        self._translating, self._reading = translating, reading
        # Without details it is one open file, which stays what it was. S3 is asked each time for that version only.
        self._left = int(details["size"]) if details is not None else None
        self._version = version_of(details) if details is not None and not hasattr(fs, "call_s3") else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        try:
            with self._translating():
                data = self._stream.read(len(view))
        except SinkConflict as error:  # 412: no longer that one
            raise self._replaced() from error
        view[: len(data)] = data
        if self._left is not None:
            self._left -= len(data)
            if len(view) and (self._left == 0 or not data):
                self._check_end()
        return len(data)

    def close(self) -> None:
        if not self.closed:
            with self._translating():
                self._stream.close()
            self._clients.give_back(self._fs)
        super().close()

    def _check_end(self) -> None:
        if self._left != 0:
            raise self._replaced()
        if self._version is not None:
            with self._translating():
                info = self._fs.info(self._path)
            now = version_of(info)
            if any(now[field] != self._version[field] for field in now.keys() & self._version.keys()):
                raise self._replaced()
            self._version = None

    def _replaced(self) -> TransientSinkError:
        return TransientSinkError(f"{self._reading}: it was replaced meanwhile.", hint="Read it again.")
