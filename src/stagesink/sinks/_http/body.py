"""A source as the body of a request: exactly as many bytes as were announced, or none that could be taken for all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from stagesink.artifacts import Source
from stagesink.errors import SourceChanged
from stagesink.sinks._temporary import closing_quietly, writing_temporary
from stagesink.sinks.protocol import OnBytes
from stagesink.streams import chunks

_IN_MEMORY = 1 << 20  # bytes; what is larger waits on the disk


@contextmanager
def sized(source: Source) -> Iterator[tuple[BinaryIO, int]]:
    """Open a source whose size must be known before its first byte is sent.

    MLflow's servers take an upload without a Content-Length for an empty one and answer 200 (uvicorn hands the WSGI
    application no mark that the input ends), so what tells its size only at its end, an archive that is packed while
    it is read, is written to a temporary file first.

    Yields
    ------
    BinaryIO
    int
        Bytes it will hold.

    Raises
    ------
    SinkError
        The temporary file could not be written.
    """
    if source.size is not None:
        with source.open() as stream:
            yield stream, source.size
        return
    with writing_temporary():
        spool = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
    with closing_quietly(spool):
        with source.open() as stream, source_errors_pass(), writing_temporary():
            for chunk in reading(stream):
                spool.write(chunk)
            size = spool.tell()
            spool.seek(0)
        yield cast("BinaryIO", spool), size


def exactly(stream: BinaryIO, size: int, on_bytes: OnBytes | None) -> Iterator[memoryview]:
    """Yield the stream's bytes; the last ones only when it is sure that they are the last and all are there.

    Raises
    ------
    SourceChanged
        The source holds more or fewer bytes than it said. The server has then not got as many as were announced, and
        keeps nothing.
    SourceFailed
        Reading it failed; only within :func:`source_errors_pass`.
    """
    count = 0
    for chunk in reading(stream):
        count += len(chunk)
        if count > size or (count == size and _goes_on(stream)):
            raise SourceChanged(f"The source holds more than the {size} bytes it had when it was opened.")
        yield chunk
        if on_bytes is not None:
            on_bytes(len(chunk))
    if count < size:
        raise SourceChanged(f"The source holds {count} of the {size} bytes it had when it was opened.")


class SourceFailed(Exception):
    """Carries a source's OSError through code that would take it for one of the connection's, or the disk's."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def source_errors_pass() -> Iterator[None]:
    """Raise what a source raised while it was sent, as it raised it."""
    try:
        yield
    except SourceFailed as failed:
        raise failed.error from failed.error.__cause__


def reading(stream: BinaryIO) -> Iterator[memoryview]:
    """Yield the stream's chunks; an OSError of its own as SourceFailed, for within :func:`source_errors_pass`."""
    pieces = chunks(stream)
    while True:
        try:
            piece = next(pieces, None)
        except OSError as error:
            raise SourceFailed(error) from error
        if piece is None:
            return
        yield piece


def _goes_on(stream: BinaryIO) -> bool:
    return bool(stream.read(1))
