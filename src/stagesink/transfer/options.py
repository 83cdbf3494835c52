"""How a transfer is carried out: plain values, chosen by whoever starts it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verify = Literal["auto", "full", "size", "none"]


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """How hard to try, how many at once, and what counts as proof.

    Parameters
    ----------
    workers : int
        Objects in flight at once; of those up to 1 MiB up to 72, where the backend is slow to answer and that gets more
        done. Fewer after it refused (429, 503, timeouts). 1 means one.
    attempts : int
        Times an object is tried when the backend fails in a way that may pass.
    reads : int
        Times an object is read anew when its file changed meanwhile, or when the backend holds other bytes than were
        sent.
    initial : float
        Seconds: the first wait is a random time up to this, and the bound doubles from one attempt to the next.
    max_wait : float
        Seconds: longest wait between two attempts. A ``Retry-After`` of the backend may be longer and is honoured.
    budget : float
        Seconds from a failure that the transfer goes on retrying while nothing moves. After that what is left fails at
        once.
    verify : {"auto", "full", "size", "none"}
        ``auto``: the strongest proof that costs no second transfer: the digest the backend computed, else that the
        object is there with the right size. ``full`` reads every object back, those that need not be sent and the
        manifest included, and so mends what the store has damaged. ``size`` looks at sizes only. ``none`` believes the
        backend.
    """

    workers: int = 8
    attempts: int = 5
    reads: int = 3
    initial: float = 0.5
    max_wait: float = 30.0
    budget: float = 300.0
    verify: Verify = "auto"
