"""Registering paths in batches, though each object is put by itself."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence

from stagesink.errors import SinkError

_PATHS = 50  # of one request: what the official client sends
_REQUESTS = 8  # at once


class _Asked:
    __slots__ = ("answered", "error", "path", "taken", "url")

    def __init__(self, path: str) -> None:
        self.path = path
        self.taken = False
        self.answered = False
        self.url: str | None = None
        self.error: SinkError | None = None


class Registrar:
    """Gathers the paths that many threads ask for at once into few requests.

    A thread that comes while there is a request to spare sends what is waiting, its own path with it; while all are on
    their way the others wait, and the next request takes them together. So a batch grows with the round trip and the
    number of threads, one path alone waits for nobody, and a blob starts as soon as its own batch is answered.

    Parameters
    ----------
    register : callable
        Sends one request, and returns the URLs of the paths that it could register.
    """

    def __init__(self, register: Callable[[Sequence[str]], Mapping[str, str]]) -> None:
        self._register = register
        self._waiting: list[_Asked] = []
        self._on_their_way = 0
        self._changed = threading.Condition()

    def url(self, path: str) -> str | None:
        """Register a path and return the URL that its blob is written to, None where the path was refused.

        Raises
        ------
        SinkError
            The request failed.
        """
        mine = _Asked(path)
        with self._changed:
            self._waiting.append(mine)
            while not mine.answered:
                if not mine.taken and self._on_their_way < _REQUESTS:
                    self._send(self._take())
                else:
                    self._changed.wait()
        if mine.error is not None:
            raise copy.copy(mine.error)  # several threads raise the same one, each with a traceback of its own
        return mine.url

    def _take(self) -> dict[str, list[_Asked]]:
        """Take what waits; the same path of two threads goes once."""
        batch: dict[str, list[_Asked]] = {}
        for asked in self._waiting[:_PATHS]:
            asked.taken = True
            batch.setdefault(asked.path, []).append(asked)
        del self._waiting[:_PATHS]
        return batch

    def _send(self, batch: dict[str, list[_Asked]]) -> None:
        urls: Mapping[str, str] = {}
        failure: SinkError | None = None
        self._on_their_way += 1
        self._changed.release()
        try:
            urls = self._register(list(batch))
        except SinkError as error:
            failure = error
        finally:
            self._changed.acquire()
            self._on_their_way -= 1
            for path, askers in batch.items():
                for asked in askers:
                    asked.url, asked.error, asked.answered = urls.get(path), failure, True
            self._changed.notify_all()
