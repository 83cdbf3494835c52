"""Reading one object: one request, whose answer is taken as it comes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

from stagesink.errors import SinkError, TransientSinkError
from stagesink.sinks.obstore.stores import errors

_AT_ONCE = 1 << 20  # bytes


class ObjectReader(io.RawIOBase):
    """One object's bytes, in the version that was there when it was opened: the store answers one request.

    Parameters
    ----------
    result : GetResult
    reading : str
        What is being done, as the start of a sentence.
    broken : callable
        Makes one of our errors of obstore's.
    """

    def __init__(self, result: Any, reading: str, broken: Callable[[Exception], SinkError]) -> None:
        self._left = int(result.meta["size"])
        self._stream: Iterator[Any] | None = iter(result.stream(min_chunk_size=_AT_ONCE))
        self._rest = memoryview(b"")
        self._reading = reading
        self._broken = broken

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if not len(view) or self._stream is None:
            return 0
        while not len(self._rest):
            try:
                piece = next(self._stream, None)
            except errors() as error:
                raise self._broken(error) from None
            if piece is None:
                if self._left:
                    raise TransientSinkError(f"{self._reading}: the store broke off.", hint="Read it again.")
                return 0
            self._rest = memoryview(piece)
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        self._left -= count
        return count

    def close(self) -> None:
        self._stream = None
        self._rest = memoryview(b"")
        super().close()
