"""The fault matrix: what can happen to an upload, and what comes of it, for each sink. docs/reliability.md shows it."""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from typing import Literal

from faults import happenings as h
from faults.happenings import Happening, both, disk, once, refusing, while_read, wire
from faults.proxy import Answer, CutRequest, Drip, DropReply, FaultProxy, Reset, Restart, TruncateReply

Sink = Literal["file", "s3", "azureml", "mlflow"]
SINKS: tuple[Sink, ...] = ("file", "s3", "azureml", "mlflow")


@dataclass(frozen=True)
class Cell:
    """What comes of one call.

    Parameters
    ----------
    answer : {"True", "kept", "False", "never"}
        ``True``: it landed. ``kept``: it waits in the outbox, and the call says False. ``False``: it is where it was,
        and is to be handed over again. ``never``: it cannot happen there.
    says : str
        A piece of the logged line; why, for what cannot happen. Empty: nothing is logged.
    """

    answer: Literal["True", "kept", "False", "never"]
    says: str = ""


def lands(says: str = "") -> Cell:
    return Cell("True", says)


def kept(says: str) -> Cell:
    return Cell("kept", says)


def refused(says: str) -> Cell:
    return Cell("False", says)


def never(why: str) -> Cell:
    return Cell("never", why)


NO_NETWORK = never("no network")
ITS_DISK = never("its server's disk")


@dataclass(frozen=True)
class Row:
    """One thing that happens.

    Parameters
    ----------
    what : str
    happening : callable
    file, s3, azureml, mlflow : Cell
    earlier : bool
        Another upload waits in the outbox already.
    large : bool
        The checkpoint has a file that goes in parts.
    attempts : int
    tls : bool
        The backend speaks TLS.
    changes : bool
        What the checkpoint holds in the end is what is to land.
    aside : bool
        The damaged index is set aside, with its bytes.
    short_of : str
        The process is one of its own, and short of ``open files``, ``memory`` or ``file size``.
    syncs : int
        How many sync afterwards, at once.
    background : bool
        It is uploaded in the background: the call says True of what is kept, and its handle says the rest.
    """

    what: str
    happening: Happening
    file: Cell
    s3: Cell
    azureml: Cell
    mlflow: Cell
    earlier: bool = False
    large: bool = False
    attempts: int = 3
    tls: bool = False
    changes: bool = False
    aside: bool = False
    short_of: str = ""
    syncs: int = 1
    background: bool = False

    def cell(self, sink: Sink) -> Cell:
        cell: Cell = getattr(self, sink)
        return cell


def net(
    what: str,
    happening: Happening,
    cell: Cell,
    *,
    s3: Cell | None = None,
    azureml: Cell | None = None,
    mlflow: Cell | None = None,
    **more: object,
) -> Row:
    """A row about the network."""
    return Row(what, happening, NO_NETWORK, s3 or cell, azureml or cell, mlflow or cell, **more)  # type: ignore[arg-type]


def all_sinks(what: str, happening: Happening, cell: Cell, *, file: Cell | None = None, **more: object) -> Row:
    """A row about this machine."""
    return Row(what, happening, file or cell, cell, cell, cell, **more)  # type: ignore[arg-type]


def in_the_background(row: Row) -> Row:
    """The same happens while the uploader's thread is at it."""
    return replace(row, what=f"in the background: {row.what}", background=True)


def answers(status: int, says: str | None = None) -> Row:
    return net(f"the store answers {status}, every time", wire(Answer(status)), kept(says or f"answered {status}"))


PAGE = Answer(200, body=b"<!DOCTYPE html><html>Please sign in</html>", headers={"Content-Type": "text/html"})


def xml(status: int, code: str) -> Answer:
    body = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>no</Message></Error>'
    headers = {"x-ms-error-code": code, "x-ms-request-id": "1", "x-ms-version": "2021-12-02"}
    return Answer(status, body=body.encode(), headers=headers)


ROWS: tuple[Row, ...] = (
    net("a connection is reset, once", once(Reset()), lands()),
    net("every connection is reset", wire(Reset()), kept("broke")),
    net("the connection ends in the middle of a file, every time", wire(CutRequest(5_000)), kept("broke")),
    net("a reply is cut short, once", once(TruncateReply(), method=""), lands()),
    net("a reply is lost after the bytes had arrived, once", once(DropReply()), lands()),
    net("the reply to the manifest is lost after the commit, once", once(DropReply(), path="manifest.json"), lands()),
    net("the first reply of all is lost, to a note for other writers", once(DropReply(), path=""), lands()),
    net("every reply is lost after the bytes had arrived", wire(DropReply()), kept("broke")),
    net("answers come byte by byte", wire(Drip(0.001), path=""), lands()),
    net("the store answers 503, once", once(Answer(503, retry_after=0)), lands()),
    net("the store answers 429, once", once(Answer(429, retry_after=0)), lands()),
    net("the store answers 408, once", once(Answer(408)), lands()),
    *(answers(status) for status in (401, 403, 408, 413, 429, 500, 502, 503, 504, 507)),
    net("connections are refused", h.each_line(FaultProxy.down), kept("cannot be reached")),
    net("names are not resolved any more", h.no_names, kept("cannot be reached")),
    net("TLS is cut in the middle of its handshake", h.each_line(FaultProxy.cutting), kept("broke"), tls=True),
    net("the server starts again in the middle of an upload", once(Restart(0.15)), lands(), attempts=60),
    net(
        "the token, or the signature, ends in the middle of a large file",
        h.ends_midway,
        kept("answered 401"),
        s3=kept("Check the credentials"),
        azureml=lands(),
        large=True,
    ),
    net("the store takes a request and says nothing, once", h.stalls, lands()),
    net(
        "a proxy's log-in page answers",
        wire(PAGE),
        kept("does not answer as"),
        s3=kept("something else than the store"),
        mlflow=kept("model.bin"),
    ),
    net(
        "the store sends us to another host",
        wire(Answer(307, headers={"Location": "http://elsewhere.invalid/"})),
        kept("307"),
        azureml=kept("does not answer as"),
    ),
    all_sinks("this machine's clock, an hour behind, is set right", h.clock(-3600.0, 0.0), lands()),
    all_sinks("this machine's clock is set back by an hour", h.clock(0.0, -3600.0), lands()),
    all_sinks("the disk of the checkpoint is full", disk("checkpoint", state="full"), lands()),
    all_sinks("the disk of the outbox is full, and the backend answers", disk("outbox", state="full"), lands()),
    all_sinks(
        "the disk of checkpoint and outbox is full, and the backend is gone",
        both(disk("checkpoint", "outbox", state="full"), h.away),
        refused("is full"),
    ),
    all_sinks(
        "the disk of the outbox is full, and the backend is gone",
        both(disk("outbox", state="full"), h.away),
        refused("is full"),
    ),
    all_sinks("the outbox is on a read-only disk, and the backend answers", disk("outbox", state="read-only"), lands()),
    all_sinks(
        "the outbox is on a read-only disk, and the backend is gone",
        both(disk("outbox", state="read-only"), h.away),
        refused("cannot be used: Read-only file system"),
    ),
    Row(
        "the disk of the target is full", disk("target", state="full"), kept("No space left on device"), *[ITS_DISK] * 3
    ),
    Row(
        "the target is on a read-only disk",
        disk("target", state="read-only"),
        kept("Read-only file system"),
        *[ITS_DISK] * 3,
    ),
    Row(
        "the target's disk fails at every write (EIO)",
        refusing("target", errno.EIO, ("write",)),
        kept("Input/output error"),
        *[ITS_DISK] * 3,
    ),
    Row(
        "the target is not ours to write (EACCES)",
        refusing("target", errno.EACCES),
        kept("Permission denied"),
        *[ITS_DISK] * 3,
    ),
    all_sinks("a file cannot be read (EIO)", refusing("source", errno.EIO, reads=True), refused("Input/output error")),
    all_sinks("a file is not ours to read (EACCES)", refusing("source", errno.EACCES), refused("No permission")),
    all_sinks(
        "the outbox's disk fails at every write (EIO), and the backend is gone",
        both(refusing("outbox", errno.EIO, ("write",)), h.away),
        refused("Input/output error"),
    ),
    all_sinks(
        "the outbox's disk fails at every fsync (EIO), and the backend is gone",
        both(refusing("outbox", errno.EIO, ("fsync",)), h.away),
        refused("Input/output error"),
    ),
    all_sinks(
        "the outbox is not ours (EACCES), and the backend is gone",
        both(refusing("outbox", errno.EACCES), h.away),
        refused("Permission denied"),
    ),
    all_sinks("the outbox is not ours (EACCES), and the backend answers", refusing("outbox", errno.EACCES), lands()),
    all_sinks(
        "the outbox was removed, and the backend is gone",
        both(h.removed_outbox, h.away),
        kept("cannot be reached"),
        file=kept("Not a directory"),
        earlier=True,
    ),
    all_sinks(
        "another process holds the outbox's index, and the backend is gone",
        both(h.locked_index, h.away),
        kept("cannot be reached"),
        file=kept("Not a directory"),
        earlier=True,
    ),
    all_sinks(
        "the outbox's index holds random bytes",
        both(h.index_becomes(lambda data: bytes(reversed(data))), h.away),
        kept("cannot be reached"),
        file=kept("Not a directory"),
        earlier=True,
        aside=True,
    ),
    all_sinks(
        "the outbox's index was cut in half",
        both(h.index_becomes(lambda data: data[: len(data) // 2]), h.away),
        kept("cannot be reached"),
        file=kept("Not a directory"),
        earlier=True,
        aside=True,
    ),
    all_sinks(
        "the outbox's index is empty",
        both(h.index_becomes(lambda data: b""), h.away),
        kept("cannot be reached"),
        file=kept("Not a directory"),
        earlier=True,
    ),
    all_sinks(
        "the outbox's index is gone",
        both(h.index_becomes(lambda data: None), h.away),
        kept("cannot be reached"),
        file=kept("Not a directory"),
        earlier=True,
    ),
    all_sinks("a file grows while it is read, once", while_read(h.grows), lands(), changes=True),
    all_sinks("a file grows whenever it is read", while_read(h.grows, once=False), refused("changed")),
    all_sinks("a file shrinks while it is read, once", while_read(h.shrinks), lands(), changes=True),
    all_sinks("a file shrinks whenever it is read", while_read(h.shrinks, once=False), refused("changed")),
    all_sinks("a file is replaced while it is read, once", while_read(h.is_replaced), lands(), changes=True),
    all_sinks("a file is rewritten in place while it is read, once", while_read(h.is_rewritten), lands(), changes=True),
    all_sinks("a file vanishes while it is read", while_read(h.vanishes, once=False), refused("does not exist")),
    all_sinks(
        "the backend is gone, and a file grows while it is kept",
        both(while_read(h.grows, once=False, keeping=True), h.away),
        refused("changed"),
    ),
    all_sinks(
        "the process is out of file descriptors", h.nothing, refused("Too many open files"), short_of="open files"
    ),
    all_sinks(
        "the process is out of memory (RLIMIT_AS)", h.nothing, kept("Unexpected RuntimeError"), short_of="memory"
    ),
    all_sinks(
        "files may not be large (RLIMIT_FSIZE)",
        h.nothing,
        lands(),
        file=refused("File too large"),
        short_of="file size",
    ),
    all_sinks(
        "files may not be large (RLIMIT_FSIZE), and the backend is gone",
        h.away,
        refused("index.db cannot be used: disk I/O error"),
        short_of="file size",
    ),
    all_sinks(
        "the backend is gone, and two syncs run at once afterwards",
        h.away,
        kept("cannot be reached"),
        file=kept("Not a directory"),
        syncs=2,
    ),
    in_the_background(
        all_sinks("the backend is gone", h.away, kept("cannot be reached"), file=kept("Not a directory"), large=True)
    ),
    in_the_background(net("a connection is reset, once", once(Reset()), lands())),
    in_the_background(net("a reply is lost after the bytes had arrived, once", once(DropReply()), lands())),
    in_the_background(net("every reply is lost after the bytes had arrived", wire(DropReply()), kept("broke"))),
    in_the_background(
        all_sinks(
            "the disk of checkpoint and outbox is full",
            disk("checkpoint", "outbox", state="full"),
            refused("is full"),
        )
    ),
    in_the_background(
        all_sinks(
            "a file cannot be read (EIO)", refusing("source", errno.EIO, reads=True), refused("Input/output error")
        )
    ),
    in_the_background(
        all_sinks("a file is not ours to read (EACCES)", refusing("source", errno.EACCES), refused("No permission"))
    ),
    in_the_background(
        all_sinks("the outbox is not ours (EACCES)", refusing("outbox", errno.EACCES), refused("Permission denied"))
    ),
    in_the_background(
        all_sinks(
            "the outbox's disk fails at every write (EIO)",
            refusing("outbox", errno.EIO, ("write",)),
            refused("Input/output error"),
        )
    ),
    in_the_background(
        all_sinks(
            "the outbox is on a read-only disk", disk("outbox", state="read-only"), refused("Read-only file system")
        )
    ),
)
