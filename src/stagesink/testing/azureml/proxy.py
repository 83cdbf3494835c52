"""A proxy that leads clients from Azure's host names to servers on this machine."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from socketserver import StreamRequestHandler, ThreadingTCPServer


@contextmanager
def tunnelling(ways: Mapping[str, tuple[str, int]]) -> Iterator[str]:
    """Run a proxy until the block ends; it gives its URL.

    Parameters
    ----------
    ways : mapping of str to tuple
        Where each ``host:port`` leads. Others are refused: no test talks to the world by mistake.
    """
    with _Proxy(ways) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), name="azureml-proxy", daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{proxy.server_address[1]}"
        finally:
            proxy.shutdown()
            thread.join()
            for connection in list(proxy.open):
                _end(connection)


class _Proxy(ThreadingTCPServer):
    daemon_threads = False
    request_queue_size = 512

    def __init__(self, ways: Mapping[str, tuple[str, int]]) -> None:
        super().__init__(("127.0.0.1", 0), _Tunnel)
        self.ways = ways
        self.open: set[socket.socket] = set()


class _Tunnel(StreamRequestHandler):
    server: _Proxy
    rbufsize = 0  # what follows the head belongs to the tunnel
    disable_nagle_algorithm = True

    def handle(self) -> None:
        method, _, rest = self.rfile.readline(65536).decode("latin-1").partition(" ")
        while self.rfile.readline(65536).strip():
            pass
        way = self.server.ways.get(rest.partition(" ")[0])
        if method != "CONNECT" or way is None:
            self.wfile.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        with socket.create_connection(way) as server:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ends = {self.connection, server}
            self.server.open |= ends
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=_copy, args=(server, self.connection))
            back.start()
            _copy(self.connection, server)
            back.join()
            self.server.open -= ends


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes until one end is closed; then both are."""
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    _end(source)
    _end(target)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
