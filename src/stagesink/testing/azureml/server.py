"""HTTP for the service: one thread a connection, connections that stay open, answers in one piece."""

from __future__ import annotations

import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from stagesink.testing.azureml.messages import Request, Response


@contextmanager
def serving(
    answer: Callable[[Request], Response],
    listener: socket.socket,
    context: ssl.SSLContext | None,
    clock: Callable[[], float] = time.time,
) -> Iterator[None]:
    """Answer requests until the block ends.

    Parameters
    ----------
    answer : callable
    listener : socket.socket
        Bound, so that the port is known before the first request.
    context : ssl.SSLContext, optional
        Speaks https with it.
    clock : callable
        What ``Date`` says, in seconds since 1970.
    """
    with _Server(answer, listener, context, clock) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="azureml-fake", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            server.hang_up()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for them, and leaves no socket behind
    request_queue_size = 512

    def __init__(
        self,
        answer: Callable[[Request], Response],
        listener: socket.socket,
        context: ssl.SSLContext | None,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(listener.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.socket.listen(self.request_queue_size)  # again, for many clients at once
        self.answer = answer
        self.clock = clock
        self._context = context
        self._open: set[socket.socket] = set()

    def get_request(self) -> tuple[socket.socket, object]:
        connection, peer = self.socket.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context:
            # The handshake waits for the first read, in the connection's own thread.
            connection = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        self._open.add(connection)
        return connection, peer

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], (ConnectionError, ssl.SSLError, TimeoutError)):  # the client went away
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def hang_up(self) -> None:
        """End the connections that clients keep open."""
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it has ended by itself


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "stagesink-azureml"
    wbufsize = -1  # the head and the body of an answer leave together
    server: _Server

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        response = self.server.answer(Request(self.command, url.path, query, headers, body))
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        self.wfile.write(response.body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(self.server.clock())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: URLs hold what no log should."""
