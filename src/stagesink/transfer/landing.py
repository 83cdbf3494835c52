"""One object on its way: attempt by attempt, until the store has it and proved it."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from stagesink.artifacts import ArtifactKey, Proof, Receipt, StoredArtifact
from stagesink.errors import SourceChanged, StagesinkError, TransientSinkError, VerificationError
from stagesink.manifest import ManifestEntry
from stagesink.sinks.protocol import ArtifactSink
from stagesink.streams import chunks
from stagesink.transfer.options import TransferOptions
from stagesink.transfer.plan import Plan, PlannedObject
from stagesink.transfer.progress import ProgressCounter
from stagesink.transfer.reader import DIGESTS, ReadOnce
from stagesink.transfer.retry import RetryPolicy
from stagesink.transfer.turns import Turn

_STRONGEST: tuple[Proof, ...] = ("sha256", "crc64nvme", "crc32c", "md5")
_BUFFERED_BYTES = 64 << 20  # more than any client keeps to itself: from here on the backend has taken some


class Around(Protocol):
    """What an object on its way needs of the run that it belongs to.

    Attributes
    ----------
    sink, target : ArtifactSink
        Where it is asked for, and where it is put: a batch of the same.
    there : dict
        What the last manifest names and the store still holds, with what the store says of it.
    reported : dict
        The digests that this store reports, and for objects of up to how many bytes.
    taken : dict
        Digests of objects that landed without a proof, for the store to be asked about.
    """

    plan: Plan
    sink: ArtifactSink
    target: ArtifactSink
    options: TransferOptions
    retry: RetryPolicy
    cancel: threading.Event
    counter: ProgressCounter
    turn: Turn
    there: dict[ArtifactKey, tuple[ManifestEntry, StoredArtifact]]
    reported: dict[str, int]
    taken: dict[ArtifactKey, dict[str, str]]

    def uncommit(self) -> None:
        """Take the old manifest away, before the first change."""
        ...

    def drop_parts(self) -> None:
        """Take away what ranks have left, before the first change."""
        ...

    def mark(self) -> None:
        """Say whose what lands here is, before the first change."""
        ...

    def read_back(self, key: ArtifactKey) -> str | None:
        """Return the sha256 of what the store gives back, None when it holds nothing there."""
        ...


def strongest(stored: StoredArtifact) -> Proof | None:
    """Name the strongest digest that the backend reports and that is worth comparing, if any."""
    if not stored.digests:
        return None
    return next((name for name in _STRONGEST if name in stored.digests and name in DIGESTS), None)


class Landing:
    """One object of a run on its way.

    Parameters
    ----------
    run : Around
    item : PlannedObject
    attempts : int
        Made before, where the store lost what it had accepted.
    """

    __slots__ = ("attempts", "item", "run", "sent", "start", "unanswered")

    def __init__(self, run: Around, item: PlannedObject, attempts: int) -> None:
        self.run = run
        self.item = item
        self.attempts = attempts
        self.sent = 0
        self.start = time.monotonic()
        self.unanswered: ReadOnce | None = None

    def unchanged(self) -> Receipt | None:
        """Return a receipt when the store holds these very bytes by its manifest, else None."""
        if self.attempts or self.item.key not in self.run.there:
            return None
        entry, stored = self.run.there[self.item.key]
        if self.item.size not in (None, entry.size):
            return None
        reported = self._reported(stored)
        try:
            ours = self._read_through(reported or "sha256")
        except SourceChanged:
            return None  # being written just now: put() reads it anew, up to its limit
        sha256 = ours["sha256"]
        if sha256 != entry.sha256:
            return None
        proof: Proof = "size"
        if self.run.options.verify == "full":
            if self.run.retry.call(lambda: self.run.read_back(self.item.key)) != sha256:
                return None  # damaged or lost since: put() mends it
            proof = "readback"
        elif reported is not None:
            if ours[reported] != stored.digests[reported]:
                return None
            proof = reported
        self.run.counter.add_bytes(entry.size)
        return Receipt(self.item.key, stored.uri, entry.size, sha256, self._seconds(), 0, "unchanged", proof)

    def put(self) -> Receipt:
        """Put the object once and check what the backend says of it."""
        run = self.run
        if self.unanswered is not None and (receipt := self._arrived(self.unanswered)) is not None:
            return receipt
        reader = ReadOnce(self.item.source, run.cancel, self._expected())
        run.turn.check()
        if not run.plan.adds or self.item.key in run.there:  # a new file beside the old ones leaves their manifest true
            run.uncommit()  # only now: a file that is gone by now costs the old upload nothing
        else:
            run.drop_parts()
        run.mark()
        self.attempts += 1
        try:
            stored = run.target.put(self.item.key, reader, on_bytes=self._on_bytes)
            digests = reader.digests()
            proof = self._prove(reader, digests, stored)
        except BaseException as error:
            run.counter.add_bytes(-self.sent)
            self.sent = 0
            self.unanswered = reader if reader.whole and isinstance(error, TransientSinkError) else None
            raise
        if proof == "none" and len(digests) > 1:
            run.taken[self.item.key] = digests
        return self._uploaded(stored, digests["sha256"], proof)

    def _arrived(self, reader: ReadOnce) -> Receipt | None:
        """Look whether the last attempt, which sent everything and got no good answer, has landed after all.

        A gateway that gives up before its server does would let every further attempt end alike. The right size is no
        proof here, since what lay there before may have it too.
        """
        key, run = self.item.key, self.run
        stored = run.target.stat(key)
        if stored is None or stored.size != reader.count or self.item.source.fingerprint() != reader.fingerprint():
            return None
        sha256 = reader.digests()["sha256"]
        proof: Proof = "readback"
        name = self._reported(stored)
        if name is not None:
            if self._read_through(name)[name] != stored.digests[name]:
                return None
            proof = name
        elif run.read_back(key) != sha256:
            return None
        run.counter.add_bytes(stored.size)
        return self._uploaded(stored, sha256, proof)

    def _uploaded(self, stored: StoredArtifact, sha256: str, proof: Proof) -> Receipt:
        return Receipt(
            self.item.key, stored.uri, stored.size, sha256, self._seconds(), self.attempts, "uploaded", proof
        )

    def failed(self, error: StagesinkError) -> Receipt:
        """Return the receipt of an object that did not land."""
        size = self.item.size or 0
        return Receipt(
            self.item.key,
            self.run.sink.uri,
            size,
            None,
            self._seconds(),
            self.attempts,
            "failed",
            "none",
            error.message,
        )

    def _seconds(self) -> float:
        return time.monotonic() - self.start

    def _on_bytes(self, count: int) -> None:
        self.sent += count
        self.run.counter.add_bytes(count)
        if self.sent > _BUFFERED_BYTES:
            self.run.retry.moved()

    def _prove(self, reader: ReadOnce, ours: dict[str, str], stored: StoredArtifact) -> Proof:
        uri, key, verify = self.run.sink.uri, self.item.key, self.run.options.verify
        if not reader.whole:
            raise VerificationError(f"{uri} said that it has {key}, having read {reader.count} bytes of it.")
        if verify == "none":
            return "none"
        if stored.size != reader.count:
            raise VerificationError(f"{uri} holds {stored.size} bytes of {key}; {reader.count} were sent.")
        if verify == "full":
            found = self.run.read_back(key)
            if found is None:
                raise VerificationError(f"{uri} accepted {reader.count} bytes for {key} and does not hold it.")
            if found != ours["sha256"]:
                raise VerificationError(f"{uri} gives back other bytes for {key} than were sent.")
            return "readback"
        name = self._reported(stored)
        return self._compare(name, ours, stored) if name is not None else "none"  # until it is confirmed

    def _reported(self, stored: StoredArtifact) -> Proof | None:
        return strongest(stored) if self.run.options.verify == "auto" else None

    def _expected(self) -> list[str]:
        """Name the digests that the backend will report of this object, as far as that is known."""
        size = self.item.size
        if size is None or self.run.options.verify != "auto":
            return []  # an archive is mostly larger than what any backend reports one of
        return [name for name, largest in list(self.run.reported.items()) if size <= largest]

    def _compare(self, name: Proof, ours: dict[str, str], stored: StoredArtifact) -> Proof:
        """Hold our digest against the one the backend reports."""
        self.run.reported[name] = max(stored.size, self.run.reported.get(name, 0))
        # Read again only for the first objects, before it was known which digest this backend reports.
        mine = ours[name] if name in ours else self._read_through(name)[name]
        if mine != stored.digests[name]:
            raise VerificationError(f"{self.run.sink.uri} reports another {name} for {stored.key} than was sent.")
        return name

    def _read_through(self, name: str) -> dict[str, str]:
        reader = ReadOnce(self.item.source, self.run.cancel, [name])
        with reader.open() as stream:
            for _ in chunks(stream):
                pass
        return reader.digests()
