"""A sink that fails to order, around one that works."""

from __future__ import annotations

import copy
import io
import threading
import time
from collections import Counter
from collections.abc import Container, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, cast

from stagesink.artifacts import NOTES_FOLDER, ArtifactKey, Source, StoredArtifact, lies_under
from stagesink.sinks.protocol import ArtifactSink, OnBytes

Operation = Literal["put", "stat", "open", "list", "delete"]


@dataclass(frozen=True)
class Fault:
    """What goes wrong in which calls of one operation. Made by the functions below, which read better."""

    operation: Operation
    calls: Container[int] | None = None
    error: Exception | None = None
    after_bytes: int | None = None
    after_done: bool = False
    seconds: float = 0.0
    seconds_per_chunk: float = 0.0
    twice: bool = False
    lost: bool = False
    corrupt: bool = False
    left_out: int = 0

    def hits(self, operation: str, call: int) -> bool:
        return self.operation == operation and (self.calls is None or call in self.calls)

    def strike(self) -> None:
        if self.error is not None:
            raise copy.copy(self.error)  # each thread its own: raising one writes its traceback


def _calls(nth: int | None, first: int | None) -> Container[int] | None:
    if nth is not None:
        return (nth,)
    return None if first is None else range(1, first + 1)


def fails(
    operation: Operation,
    error: Exception,
    *,
    nth: int | None = None,
    first: int | None = None,
    after_bytes: int | None = None,
) -> Fault:
    """Raise ``error`` in the ``nth`` call, in the ``first`` calls, or in every one.

    With ``after_bytes`` it is raised once so many bytes were sent or read, otherwise before anything happens.
    """
    return Fault(operation, _calls(nth, first), error, after_bytes)


def loses_reply(operation: Operation, error: Exception, *, nth: int | None = None, first: int | None = None) -> Fault:
    """Do what was asked, then raise ``error``: the store did it, and its answer was lost on the way."""
    return Fault(operation, _calls(nth, first), error, after_done=True)


def slow(operation: Operation, seconds: float = 0.0, *, per_chunk: float = 0.0, nth: int | None = None) -> Fault:
    """Wait ``seconds`` before the call, and ``per_chunk`` seconds before each piece of data."""
    return Fault(operation, _calls(nth, None), seconds=seconds, seconds_per_chunk=per_chunk)


def answers_twice(operation: Literal["put", "delete"] = "put", *, nth: int | None = None) -> Fault:
    """Do what was asked twice, as a proxy does that sends a request again."""
    return Fault(operation, _calls(nth, None), twice=True)


def loses_object(*, nth: int | None = None, first: int | None = None) -> Fault:
    """Let ``put`` say yes, with nothing there afterwards."""
    return Fault("put", _calls(nth, first), lost=True)


def corrupts(operation: Literal["put", "open"] = "put", *, nth: int | None = None, first: int | None = None) -> Fault:
    """Turn one bit round in the first byte, on the way in or on the way out."""
    return Fault(operation, _calls(nth, first), corrupt=True)


def short_list(by: int = 1, *, nth: int | None = None) -> Fault:
    """Leave the last ``by`` objects out of a listing."""
    return Fault("list", _calls(nth, None), left_out=by)


class FaultySink:
    """Any sink, with faults.

        FaultySink(MemorySink(), fails("put", TransientSinkError("busy"), first=2), slow("list", 0.1))

    Without faults it is as good a sink as the one inside. Thread-safe; a pickled copy counts its calls anew.

    Parameters
    ----------
    inner : ArtifactSink
    *faults : Fault
        All that hit a call take effect, in this order.
    notes : bool
        Whether the notes that writers leave for each other (``.stagesink/``) are hit and counted, too.
    """

    def __init__(self, inner: ArtifactSink, *faults: Fault, notes: bool = False) -> None:
        self.inner = inner
        self.faults = faults
        self.notes_too = notes
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    @property
    def uri(self) -> str:
        return self.inner.uri

    @property
    def calls(self) -> dict[str, int]:
        """How often each operation was called."""
        with self._lock:
            return dict(self._counts)

    def __reduce__(self) -> tuple[type[FaultySink], tuple[Any, ...], dict[str, Any]]:
        return FaultySink, (self.inner, *self.faults), {"notes_too": self.notes_too}

    def put(self, key: ArtifactKey, source: Source, *, on_bytes: OnBytes | None = None) -> StoredArtifact:
        faults = self._begin("put", key.path)
        stored = self.inner.put(key, _through(source, faults), on_bytes=on_bytes)
        for fault in faults:
            if fault.twice:
                stored = self.inner.put(key, source)
            if fault.lost:
                self.inner.delete(key)
        self._end(faults)
        return stored

    def stat(self, key: ArtifactKey) -> StoredArtifact | None:
        faults = self._begin("stat", key.path)
        stored = self.inner.stat(key)
        self._end(faults)
        return stored

    def open(self, key: ArtifactKey) -> BinaryIO:
        faults = self._begin("open", key.path)
        stream = self.inner.open(key)
        self._end(faults)
        return _faulty_stream(stream, faults)

    def list(self, run_id: str, prefix: str = "") -> Iterator[StoredArtifact]:
        faults = self._begin("list", prefix)
        left_out = sum(fault.left_out for fault in faults)
        if left_out:
            yield from [*self.inner.list(run_id, prefix)][:-left_out]
        else:
            yield from self.inner.list(run_id, prefix)
        self._end(faults)

    def delete(self, key: ArtifactKey) -> None:
        faults = self._begin("delete", key.path)
        self.inner.delete(key)
        if any(fault.twice for fault in faults):
            self.inner.delete(key)
        self._end(faults)

    def close(self) -> None:
        self.inner.close()

    def _begin(self, operation: Operation, path: str) -> tuple[Fault, ...]:
        if lies_under(path, NOTES_FOLDER) and not self.notes_too:
            return ()
        with self._lock:
            self._counts[operation] += 1
            call = self._counts[operation]
        faults = tuple(fault for fault in self.faults if fault.hits(operation, call))
        for fault in faults:
            if fault.seconds:
                time.sleep(fault.seconds)
            if fault.after_bytes is None and not fault.after_done:
                fault.strike()
        return faults

    @staticmethod
    def _end(faults: tuple[Fault, ...]) -> None:
        for fault in faults:
            if fault.after_done:
                fault.strike()


@dataclass(frozen=True)
class _FaultySource:
    inner: Source
    faults: tuple[Fault, ...]

    @property
    def size(self) -> int | None:
        return self.inner.size

    def open(self) -> BinaryIO:
        return _faulty_stream(self.inner.open(), self.faults)

    def fingerprint(self) -> Hashable:
        return self.inner.fingerprint()


def _through(source: Source, faults: tuple[Fault, ...]) -> Source:
    return _FaultySource(source, faults) if any(map(_touches_bytes, faults)) else source


def _touches_bytes(fault: Fault) -> bool:
    return fault.after_bytes is not None or fault.corrupt or fault.seconds_per_chunk > 0


def _faulty_stream(stream: BinaryIO, faults: tuple[Fault, ...]) -> BinaryIO:
    touching = [fault for fault in faults if _touches_bytes(fault)]
    return cast("BinaryIO", _FaultyStream(stream, touching)) if touching else stream


class _FaultyStream(io.RawIOBase):
    def __init__(self, inner: BinaryIO, faults: list[Fault]) -> None:
        self._inner = inner
        self._faults = faults
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        room = len(view)
        for fault in self._faults:
            time.sleep(fault.seconds_per_chunk)
            if fault.after_bytes is not None:
                if self._count >= fault.after_bytes:
                    fault.strike()
                room = min(room, fault.after_bytes - self._count)
        data = bytearray(self._inner.read(room))
        if data and self._count == 0 and any(fault.corrupt for fault in self._faults):
            data[0] ^= 1
        view[: len(data)] = data
        self._count += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
        super().close()
