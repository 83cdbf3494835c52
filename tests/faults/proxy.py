"""A small HTTP proxy that misbehaves to order, in front of a real server.

with FaultProxy(server.port) as proxy:
    proxy.plan(Answer(503, retry_after=2), times=10)     # the next ten requests; then it is honest
    ...
    assert proxy.requests == [("PUT", "/bucket/key"), ...]
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import BinaryIO

from servers import free_port


@dataclass(frozen=True)
class Answer:
    """Answer with this status, without asking the server."""

    status: int
    retry_after: str | int | None = None
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def __bytes__(self) -> bytes:
        wait = {} if self.retry_after is None else {"Retry-After": self.retry_after}
        always = {"Content-Length": len(self.body), "Connection": "close"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in {**wait, **self.headers, **always}.items())
        return f"HTTP/1.1 {self.status} Fault\r\n{lines}\r\n".encode() + self.body


@dataclass(frozen=True)
class Reset:
    """Hang up on the client before the request is read."""


@dataclass(frozen=True)
class DropReply:
    """Let the server do it, then hang up on the client."""


@dataclass(frozen=True)
class TruncateReply:
    """Let the server do it, then hang up on the client in the middle of the reply's body."""


@dataclass(frozen=True)
class CutRequest:
    """Read this many bytes of the request's body, then answer, or hang up; the server hears nothing of it."""

    after: int
    answer: Answer | None = None


@dataclass(frozen=True)
class Delay:
    """Wait, then behave."""

    seconds: float


@dataclass(frozen=True)
class Stall:
    """Read the request and say nothing, until the client gives up; ``served`` lets the server do it first."""

    served: bool = False


@dataclass(frozen=True)
class Drip:
    """Let the server do it, then hand its reply on in small pieces, with a pause of this many seconds after each."""

    seconds: float
    piece: int = 32


@dataclass(frozen=True)
class Restart:
    """Hang up on the client in the middle of its request, and take no connections for a while, as a server that
    starts again."""

    seconds: float


Fault = Answer | Reset | DropReply | TruncateReply | CutRequest | Delay | Stall | Drip | Restart


class FaultProxy:
    """Forwards each request on a connection of its own; every reply ends its connection.

    Parameters
    ----------
    port : int
        Of the real server, on this machine.
    tls : SSLContext, optional
        Speak TLS with clients.
    prefix : str
        Path under which the server is shown; other paths are answered with 404.

    Attributes
    ----------
    port : int
    requests : list of (str, str)
        Method and target of each request, as it began.
    headers : list of dict
        The headers of each request that was read so far, names in lower case.
    """

    def __init__(self, port: int, *, tls: ssl.SSLContext | None = None, prefix: str = "") -> None:
        self._target = port
        self._tls = tls
        self._prefix = prefix
        self._plan: deque[tuple[Fault | None, Callable[[str, str], bool]]] = deque()
        self._lock = threading.Lock()
        self._cuts = False
        self._timer: threading.Timer | None = None
        # Not one that an outgoing connection is given while nobody listens on it.
        self._listener = socket.create_server(("127.0.0.1", free_port()))
        self.port: int = self._listener.getsockname()[1]
        self.requests: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []

    def __enter__(self) -> FaultProxy:
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.join()
        self._close()

    def _close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _listen_again(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.__enter__()

    @contextmanager
    def down(self) -> Iterator[None]:
        """Refuse every connection until the block ends."""
        self._close()
        try:
            yield
        finally:
            self._listen_again()

    @contextmanager
    def cutting(self) -> Iterator[None]:
        """Hang up on every client after its first byte, in the middle of a TLS handshake, until the block ends."""
        self._cuts = True
        try:
            yield
        finally:
            self._cuts = False

    def plan(self, fault: Fault, *, times: int = 1, method: str = "", path: str = "", after: int = 0) -> None:
        """Misbehave for the next ``times`` requests of this method, to a target that contains ``path``.

        The first ``after`` of them are let through: an upload's first is the note that its turn begins with.
        """
        with self._lock:
            for each in (*(None for _ in range(after)), *(fault for _ in range(times))):
                self._plan.append((each, lambda verb, target: verb.startswith(method) and path in target))

    def forget(self) -> None:
        """Be honest from now on."""
        with self._lock:
            self._plan.clear()
            self.requests.clear()
            self.headers.clear()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        # A client that hangs up, or does not trust us, is its own affair.
        with client, suppress(ConnectionError, TimeoutError, ssl.SSLError):
            if self._cuts:
                client.recv(1)
                _reset(client)
                return
            spoken = client if self._tls is None else self._tls.wrap_socket(client, server_side=True)
            with spoken, spoken.makefile("rb") as stream:
                self._exchange(spoken, stream)

    def _exchange(self, client: socket.socket, stream: BinaryIO) -> None:
        line = stream.readline()
        if not line:
            return
        method, target, version = line.decode("latin-1").split(" ", 2)
        fault = self._next(method, target)
        if isinstance(fault, Reset):
            _reset(client)
            return
        headers = _read_headers(stream)
        with self._lock:
            self.headers.append(headers)
        if headers.get("expect", "").lower() == "100-continue":
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if isinstance(fault, CutRequest):
            stream.read(min(fault.after, int(headers.get("content-length", 0))))
            client.sendall(bytes(fault.answer or b""))
            return
        if isinstance(fault, Restart):
            stream.read(1)
            self._close()
            self._timer = threading.Timer(fault.seconds, self._listen_again)
            self._timer.start()
            return
        body = _read_body(stream, headers)
        if body is None:
            return  # a server would wait for the rest, and we for it
        line = f"{method} {target[len(self._prefix) :]} {version}".encode("latin-1")
        if isinstance(fault, Stall):
            if fault.served:
                self._forward(line, headers, body)
            stream.read(1)
            return
        if isinstance(fault, Answer) or not target.startswith(self._prefix):
            answer = bytes(fault if isinstance(fault, Answer) else Answer(404))
            client.sendall(answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if method == "HEAD" else answer)
            return
        if isinstance(fault, Delay):
            time.sleep(fault.seconds)
        reply = self._forward(line, headers, body)
        if isinstance(fault, TruncateReply):
            head, gap, content = reply.partition(b"\r\n\r\n")
            reply = head + gap + content[: len(content) // 2]
        if isinstance(fault, Drip):
            for start in range(0, len(reply), fault.piece):
                client.sendall(reply[start : start + fault.piece])
                time.sleep(fault.seconds)
        elif not isinstance(fault, DropReply):
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
            with suppress(ConnectionError):  # it may answer before it has read all
                server.sendall(line + lines.encode("latin-1") + b"\r\n" + body)
            reply = b"".join(iter(lambda: server.recv(1 << 18), b""))
        return _with_its_end(reply)


def _reset(client: socket.socket) -> None:
    """Have the connection closed with RST instead of FIN."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")


def _with_its_end(reply: bytes) -> bytes:
    """Say in the reply that its connection ends, where the server only ends it: clients might use it again."""
    head, gap, body = reply.partition(b"\r\n\r\n")
    says_so = not gap or b"\r\nconnection:" in head.lower()
    return reply if says_so else head + b"\r\nConnection: close" + gap + body


def _read_headers(stream: BinaryIO) -> dict[str, str]:
    headers = {}
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    return headers


def _read_body(stream: BinaryIO, headers: dict[str, str]) -> bytes | None:
    """Read a body as it was framed, chunk marks included, so that it can be sent on; None when it breaks off."""
    if headers.get("transfer-encoding", "").lower() != "chunked":
        length = int(headers.get("content-length", 0))
        body = stream.read(length)
        return body if len(body) == length else None
    body = b""
    while True:
        mark = stream.readline()
        if not mark:
            return None
        size = int(mark.split(b";")[0], 16)
        body += mark + stream.read(size + 2)
        if size == 0:
            return body
