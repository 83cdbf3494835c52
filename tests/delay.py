"""A TCP proxy with a round trip: what passes is late by half of it each way, and otherwise as quick as it came.

It can also be narrow: then all connections together get so many bytes a second each way.

with delayed(server.port, 0.05, folder) as port: ...

python delay.py PORT TARGET_PORT SECONDS [BYTES_A_SECOND]
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOST = "127.0.0.1"
FLYING = 64 << 20
"""Bytes that may be on their way in one direction of one connection: more than a loopback carries in a round trip."""
QUEUED = 256 << 10
"""What waits for its turn where the line is narrow, besides what flies: about what a router keeps."""


@contextmanager
def delayed(target: int, round_trip: float, folder: Path, rate: float = 0) -> Iterator[int]:
    """Run the proxy until the block ends, in a process of its own: what it costs is not the client's.

    Parameters
    ----------
    target : int
        The server's port, on this machine.
    round_trip : float
        Seconds. A new connection takes one more before its first byte, as it would.
    folder : Path
        Gets the log.
    rate : float
        Bytes a second, of all connections together; 0 means no limit.

    Yields
    ------
    int
        The port to talk to instead.
    """
    from servers import free_port, process

    port = free_port()
    command = [sys.executable, __file__, str(port), str(target), str(round_trip), str(rate)]
    with process(command, port, folder / f"delay-{port}.log"):
        yield port


class _Line:
    """One direction, which all connections share."""

    def __init__(self, delay: float, rate: float) -> None:
        self.delay = delay
        self.most = min(FLYING, int(rate * delay) + QUEUED) if rate else FLYING
        self._rate = rate
        self._free_at = 0.0

    def through(self, size: int, now: float) -> float:
        """Return when so many bytes, sent now, arrive."""
        if self._rate:
            now = self._free_at = max(now, self._free_at) + size / self._rate
        return now + self.delay


class _End(asyncio.Protocol):
    """One end of a connection; what arrives here leaves at the other end, later."""

    transport: asyncio.Transport
    other: _End

    def __init__(self, line: _Line) -> None:
        self._line = line
        self._earliest = 0.0
        self._late: deque[tuple[float, bytes | None]] = deque()  # None: hang up
        self._flying = 0
        self._blocked = False
        self._timer: asyncio.TimerHandle | None = None

    def link(self, other: _End, earliest: float = 0.0) -> None:
        self.other, self._earliest = other, earliest

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._send(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._send(None)

    def pause_writing(self) -> None:
        self.other.block(True)

    def resume_writing(self) -> None:
        self.other.block(False)

    def block(self, blocked: bool) -> None:
        """Hold the sender up while the receiver is slower, or too much is on its way."""
        self._blocked = blocked
        if self.transport.is_closing():
            return
        if blocked or self._flying > self._line.most:
            self.transport.pause_reading()  # twice does no harm
        else:
            self.transport.resume_reading()

    def _send(self, data: bytes | None) -> None:
        due = max(self._line.through(len(data or b""), asyncio.get_running_loop().time()), self._earliest)
        self._late.append((due, data))
        self._flying += len(data or b"")
        if self._flying > self._line.most:
            self.block(self._blocked)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(due, self._deliver)

    def _deliver(self) -> None:
        loop, receiver = asyncio.get_running_loop(), self.other.transport
        self._timer = None
        was_full = self._flying > self._line.most
        while self._late and self._late[0][0] <= loop.time():
            data = self._late.popleft()[1]
            if data is None:
                receiver.close()  # once all is written
            elif not receiver.is_closing():
                receiver.write(data)
            self._flying -= len(data or b"")
        if was_full:
            self.block(self._blocked)
        if self._late:
            self._timer = loop.call_at(self._late[0][0], self._deliver)


class _Accepted(_End):
    """The client's end, which has the server's end made first."""

    def __init__(self, up: _Line, down: _Line, target: int) -> None:
        super().__init__(up)
        self._down = down
        self._target = target
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.pause_reading()
        self._connecting = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        accepted = loop.time()
        try:
            _, server = await loop.create_connection(lambda: _End(self._down), HOST, self._target)
        except OSError:
            self.transport.abort()
            return
        server.link(self)
        self.link(server, earliest=accepted + 2 * self._line.delay + self._down.delay)
        for data in self._early:
            self._send(data)
        if self.transport.is_closing():
            server.transport.close()
        self.block(False)

    def data_received(self, data: bytes) -> None:
        # Before Python 3.11 a transport that is paused as it is made reads all the same.
        if hasattr(self, "other"):
            super().data_received(data)
        else:
            self._early.append(data)

    def connection_lost(self, error: Exception | None) -> None:
        if hasattr(self, "other"):
            super().connection_lost(error)


async def _serve(port: int, target: int, round_trip: float, rate: float = 0) -> None:
    loop = asyncio.get_running_loop()
    up, down = _Line(round_trip / 2, rate), _Line(round_trip / 2, rate)
    server = await loop.create_server(lambda: _Accepted(up, down, target), HOST, port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2]), *map(float, sys.argv[3:])))
