"""How the outbox is set up: plain values, chosen by whoever opens it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Snapshot = Literal["auto", "copy"]


@dataclass(frozen=True, slots=True)
class OutboxSettings:
    """Where the outbox lies, and how much it may take.

    Parameters
    ----------
    enabled : bool
        False: what cannot land is not kept.
    path : str
        Its folder. On the disk of the checkpoints, taking them costs next to nothing.
    max_bytes : int or None
        Most bytes that may wait; None for as many as the disk has.
    keep_free : int
        Bytes of the disk that stay free.
    snapshot : {"auto", "copy"}
        ``auto`` takes large files by a hard link at first, where there are no reflinks. ``copy`` never does.
    """

    enabled: bool = True
    path: str = field(default="./.stagesink/outbox", metadata={"min_length": 1})
    max_bytes: int | None = field(default=None, metadata={"ge": 0, "unit": "bytes"})
    keep_free: int = field(default=1 << 30, metadata={"ge": 0, "unit": "bytes"})
    snapshot: Snapshot = "auto"
