"""Reading a source once: its digests are taken, its changes noticed and Ctrl-C obeyed while the bytes pass."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from stagesink.artifacts import Fingerprint, Source, link_to, must_be_what_was_kept
from stagesink.errors import SourceChanged, SourceUnreadable, TransferCancelled
from stagesink.streams import chunks, filler

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_NEW = {"sha256": hashlib.sha256, "md5": hashlib.md5}
DIGESTS = frozenset(_NEW)
"""Digests that can be taken while the bytes pass."""


class ReadOnce:
    """One attempt's view of a source. It is a :class:`~stagesink.artifacts.Source` itself; open it once.

    ``read()`` raises :class:`~stagesink.errors.SourceChanged` with the last bytes when the file is no longer the one
    that was opened, so that a sink never commits a torn object.

    Parameters
    ----------
    source : Source
    cancel : threading.Event
        Once set, reading raises :class:`~stagesink.errors.TransferCancelled`.
    algorithms : iterable of str
        Of :data:`DIGESTS`, those to take besides sha256.
    """

    def __init__(self, source: Source, cancel: threading.Event, algorithms: Iterable[str] = ()) -> None:
        self.source = source
        self._before = source.fingerprint()
        # A file's fingerprint holds its size: one look at the file instead of two.
        self.size = self._before.size if isinstance(self._before, Fingerprint) else source.size
        self._cancel = cancel
        self._algorithms = {"sha256", *algorithms}
        self._stream: _HashingStream | None = None

    def open(self) -> BinaryIO:
        if self._stream is not None:
            self._stream.close()
        hashes = {name: _NEW[name](usedforsecurity=False) for name in self._algorithms}
        raw = self.source.open()
        self._stream = _HashingStream(raw, self.source, self._before, self.size, hashes, self._cancel)
        return cast("BinaryIO", self._stream)

    def fingerprint(self) -> Hashable:
        return self._before

    def link_to(self, path: str) -> bool:
        """Hand on what the source gives away; see :func:`~stagesink.artifacts.link_to`."""
        return link_to(self.source, path)

    @property
    def count(self) -> int:
        """Bytes read so far."""
        return self._stream.count if self._stream is not None else 0

    @property
    def whole(self) -> bool:
        """Whether the source was read to its end."""
        return self._stream is not None and self._stream.whole

    def digests(self) -> dict[str, str]:
        """Hex digests of the bytes read so far, by algorithm."""
        assert self._stream is not None
        return {name: digest.hexdigest() for name, digest in self._stream.hashes.items()}


class _HashingStream(io.RawIOBase):
    def __init__(
        self,
        raw: BinaryIO,
        source: Source,
        before: Hashable,
        size: int | None,
        hashes: dict[str, Any],
        cancel: threading.Event,
    ) -> None:
        self.hashes = hashes
        self._updates = [digest.update for digest in hashes.values()]
        self.count = 0
        self.whole = False
        self._source = source
        self._before = before
        self._size = size
        self._cancel = cancel
        self._raw = raw
        self._fill = filler(raw)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        if self._cancel.is_set():
            raise TransferCancelled("The transfer was stopped.")
        view = memoryview(buffer)
        if self.whole or not view:  # asking for nothing and getting it is not the end
            return 0
        try:
            count = self._fill(view)
        except OSError as error:
            raise SourceUnreadable(
                f"{self._name()} cannot be read: {error.strerror or error}.", hint="Check the disk it lies on."
            ) from error
        if count:
            piece = view[:count]
            for update in self._updates:
                update(piece)
            self.count += count
        if count == 0 or self.count == self._size:
            self._check_end()
        elif self._size is not None and self.count > self._size:
            self._changed()
        return count

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()

    def _check_end(self) -> None:
        # A sink that knows the size may never read past it, so the last byte counts as the end.
        if self._source.fingerprint() != self._before or (self._size is not None and self.count != self._size):
            self._changed()
        must_be_what_was_kept(self._source, self.hashes["sha256"], self._name())
        self.whole = True

    def _changed(self) -> None:
        raise SourceChanged(f"{self._name()} changed while it was read.")

    def _name(self) -> str:
        return str(getattr(self._source, "path", "The source"))


def digest_of(source: Source, cancel: threading.Event) -> str:
    """Read ``source`` once and return its sha256 in hex.

    Raises
    ------
    SourceError
        It cannot be read, or changed meanwhile.
    """
    reader = ReadOnce(source, cancel)
    with reader.open() as stream:
        for _ in chunks(stream):
            pass
    return reader.digests()["sha256"]
