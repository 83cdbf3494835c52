"""A small HTTP proxy that misbehaves to order, in front of a real server.

with FaultProxy(server.port) as proxy:
    proxy.plan(Answer(503, retry_after=2), times=10)     # the next ten requests; then it is honest
    ...
    assert proxy.requests == [("PUT", "/bucket/key"), ...]
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO


@dataclass(frozen=True)
class Answer:
    """Answer with this status, without asking the server."""

    status: int
    retry_after: str | int | None = None


@dataclass(frozen=True)
class Reset:
    """Hang up on the client before the request is read."""


@dataclass(frozen=True)
class DropReply:
    """Let the server do it, then hang up on the client."""


@dataclass(frozen=True)
class Delay:
    """Wait, then behave."""

    seconds: float


Fault = Answer | Reset | DropReply | Delay


class FaultProxy:
    """Forwards each request on a connection of its own; every reply ends its connection.

    Parameters
    ----------
    port : int
        Of the real server, on this machine.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._plan: deque[tuple[Fault, Callable[[str, str], bool]]] = deque()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.requests: list[tuple[str, str]] = []

    def __enter__(self) -> FaultProxy:
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def plan(self, fault: Fault, *, times: int = 1, method: str = "", path: str = "") -> None:
        """Misbehave for the next ``times`` requests of this method, to a target that contains ``path``."""
        with self._lock:
            for _ in range(times):
                self._plan.append((fault, lambda verb, target: verb.startswith(method) and path in target))

    def forget(self) -> None:
        """Be honest from now on."""
        with self._lock:
            self._plan.clear()
            self.requests.clear()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        # A client that hangs up is its own affair.
        with client, client.makefile("rb") as stream, suppress(ConnectionError, TimeoutError):
            self._exchange(client, stream)

    def _exchange(self, client: socket.socket, stream: BinaryIO) -> None:
        line = stream.readline()
        if not line:
            return
        method, target, _ = line.decode("latin-1").split(" ", 2)
        fault = self._next(method, target)
        if isinstance(fault, Reset):
            # Closing with this option sends RST instead of FIN.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            return
        headers = _read_headers(stream)
        if headers.get("expect", "").lower() == "100-continue":
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = _read_body(stream, headers)
        if isinstance(fault, Answer):
            wait = f"Retry-After: {fault.retry_after}\r\n" if fault.retry_after is not None else ""
            head = f"HTTP/1.1 {fault.status} Fault\r\n{wait}Content-Length: 0\r\nConnection: close\r\n\r\n"
            client.sendall(head.encode())
            return
        if isinstance(fault, Delay):
            time.sleep(fault.seconds)
        reply = self._forward(line, headers, body)
        if not isinstance(fault, DropReply):
            client.sendall(reply)

    def _next(self, method: str, target: str) -> Fault | None:
        with self._lock:
            self.requests.append((method, target))
            for number, (fault, wanted) in enumerate(self._plan):
                if wanted(method, target):
                    del self._plan[number]
                    return fault
        return None

    def _forward(self, line: bytes, headers: dict[str, str], body: bytes) -> bytes:
        kept = {name: value for name, value in headers.items() if name not in ("connection", "expect")}
        lines = "".join(f"{name}: {value}\r\n" for name, value in {**kept, "connection": "close"}.items())
        with socket.create_connection(("127.0.0.1", self._target)) as server:
            server.sendall(line + lines.encode("latin-1") + b"\r\n" + body)
            reply = b""
            while data := server.recv(1 << 16):
                reply += data
        return reply


def _read_headers(stream: BinaryIO) -> dict[str, str]:
    headers = {}
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    return headers


def _read_body(stream: BinaryIO, headers: dict[str, str]) -> bytes:
    """Read a body as it was framed, chunk marks included, so that it can be sent on unchanged."""
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return stream.read(int(headers.get("content-length", 0)))
    body = b""
    while True:
        mark = stream.readline()
        size = int(mark.split(b";")[0], 16)
        body += mark + stream.read(size + 2)
        if size == 0:
            return body
