"""A TCP proxy with a round trip: what passes is late by half of it each way, and otherwise as quick as it came.

with delayed(server.port, 0.05, folder) as port: ...

python delay.py PORT TARGET_PORT SECONDS
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


@contextmanager
def delayed(target: int, round_trip: float, folder: Path) -> Iterator[int]:
    """Run the proxy until the block ends, in a process of its own: what it costs is not the client's.

    Parameters
    ----------
    target : int
        The server's port, on this machine.
    round_trip : float
        Seconds. A new connection takes one more before its first byte, as it would.
    folder : Path
        Gets the log.

    Yields
    ------
    int
        The port to talk to instead.
    """
    from servers import free_port, process

    port = free_port()
    command = [sys.executable, __file__, str(port), str(target), str(round_trip)]
    with process(command, port, folder / f"delay-{port}.log"):
        yield port


class _End(asyncio.Protocol):
    """One end of a connection; what arrives here leaves at the other end, later."""

    transport: asyncio.Transport
    other: _End

    def __init__(self, delay: float) -> None:
        self._delay = delay
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
        if blocked or self._flying > FLYING:
            self.transport.pause_reading()  # twice does no harm
        else:
            self.transport.resume_reading()

    def _send(self, data: bytes | None) -> None:
        due = max(asyncio.get_running_loop().time(), self._earliest) + self._delay
        self._late.append((due, data))
        self._flying += len(data or b"")
        if self._flying > FLYING:
            self.block(self._blocked)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(due, self._deliver)

    def _deliver(self) -> None:
        loop, receiver = asyncio.get_running_loop(), self.other.transport
        self._timer = None
        was_full = self._flying > FLYING
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

    def __init__(self, delay: float, target: int) -> None:
        super().__init__(delay)
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
            _, server = await loop.create_connection(lambda: _End(self._delay), HOST, self._target)
        except OSError:
            self.transport.abort()
            return
        server.link(self)
        self.link(server, earliest=accepted + 2 * self._delay)
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


async def _serve(port: int, target: int, round_trip: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Accepted(round_trip / 2, target), HOST, port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
