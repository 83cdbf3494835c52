"""Registering paths in batches, though each object is put by itself."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice

from stagesink.errors import RunNotFound, SinkAuthError, SinkError, TransientSinkError

_PATHS = 50  # of one request: what the official client sends
_REQUESTS = 8  # at once
_FOR_ALL = (TransientSinkError, SinkAuthError, RunNotFound)  # not about one path of a request


class _Asked:
    __slots__ = ("alone", "answered", "error", "path", "taken", "url")

    def __init__(self, path: str) -> None:
        self.path = path
        self.taken = False
        self.alone = True  # in its request
        self.answered = False
        self.url: str | None = None
        self.error: SinkError | None = None


class Registrar:
    """Gathers the paths that many threads ask for at once into few requests.

    A thread that comes while there is a request to spare sends what is waiting, its own path with it; while all are on
    their way the others wait, and the next request takes them together. So a batch grows with the round trip and the
    number of threads, one path alone waits for nobody, and a blob starts as soon as its own batch is answered.

    Where it is known what is going to be asked for, each request is filled up with that: most threads then find their
    URL here. No request is sent for what is only expected, so an upload that ends early has registered at most one
    request's worth for each that was asked.

    Parameters
    ----------
    register : callable
        Sends one request, and returns the URLs of the paths that it could register.
    """

    def __init__(self, register: Callable[[Sequence[str]], Mapping[str, str]]) -> None:
        self._register = register
        self._waiting: list[_Asked] = []
        self._expected: dict[str, None] = {}  # in their order
        self._ahead: dict[str, _Asked] = {}  # sent before anybody asked
        self._on_their_way = 0
        self._changed = threading.Condition()

    def url(self, path: str) -> str | None:
        """Register a path and return the URL that its blob is written to, None where the path was refused.

        Raises
        ------
        SinkError
            The request failed.
        """
        with self._changed:
            self._expected.pop(path, None)
            mine = self._ahead.pop(path, None)
            if mine is not None:
                self._wait_for(mine)
            # One refused request is no answer to those who did not ask: they would all step back because of it.
            if mine is None or mine.error is not None:
                mine = _Asked(path)
                self._waiting.append(mine)
                self._wait_for(mine)
            if not mine.alone and mine.error is not None and not isinstance(mine.error, _FOR_ALL):
                mine = _Asked(path)  # another path of the same request may be what was refused
                mine.taken = True
                self._send({path: [mine]})
        if mine.error is not None:
            raise copy.copy(mine.error)  # several threads raise the same one, each with a traceback of its own
        return mine.url

    @contextmanager
    def expecting(self, paths: Sequence[str]) -> Iterator[None]:
        """Know, until the block ends, which paths are going to be asked for."""
        with self._changed:
            self._expected.update(dict.fromkeys(paths))
        try:
            yield
        finally:
            with self._changed:
                for path in paths:
                    self._expected.pop(path, None)
                    self._ahead.pop(path, None)

    def _wait_for(self, mine: _Asked) -> None:
        while not mine.answered:
            if not mine.taken and self._on_their_way < _REQUESTS:
                self._send(self._take())
            else:
                self._changed.wait()

    def _take(self) -> dict[str, list[_Asked]]:
        """Take what waits, and fill up with what is expected; the same path of two threads goes once."""
        batch: dict[str, list[_Asked]] = {}
        for asked in self._waiting[:_PATHS]:
            asked.taken = True
            batch.setdefault(asked.path, []).append(asked)
        del self._waiting[:_PATHS]
        for path in list(islice(self._expected, _PATHS - len(batch))):
            del self._expected[path]
            if path not in batch:
                self._ahead[path] = asked = _Asked(path)
                asked.taken = True
                batch[path] = [asked]
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
                    asked.alone = len(batch) == 1
            self._changed.notify_all()
