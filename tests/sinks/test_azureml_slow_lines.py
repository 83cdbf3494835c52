"""A server that takes what it is sent slowly, as over a line of few Mbit/s."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("urllib3", reason="comes with the extra azureml")

from stagesink.sinks._http import pools

_TAKES = 4 << 20  # bytes a second


@contextmanager
def slow_server() -> Iterator[tuple[int, list[int]]]:
    """Yield a port, and what came in: how many bytes of each body."""
    taken: list[int] = []

    def serve() -> None:
        client, _ = listener.accept()
        with client, client.makefile("rb", buffering=1 << 16) as stream:
            length = 0
            while line := stream.readline().strip():
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            got = 0
            while got < length and (piece := stream.read(min(1 << 16, length - got))):
                got += len(piece)
                time.sleep(len(piece) / _TAKES)
            taken.append(got)
            client.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], taken
        thread.join(60)


@pytest.mark.parametrize("kind", [bytes, memoryview])
def test_a_body_has_more_time_than_making_a_connection(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_CONNECT_SECONDS", 0.5)
    body = kind(bytes(12 << 20))  # three seconds, and what the system buffers
    with slow_server() as (port, taken):
        url = f"http://127.0.0.1:{port}/block"
        with pools.pool_manager(url, seconds=60) as pool:
            answer = pool.request("PUT", url, body=body, headers={"Content-Length": str(len(body))})
    assert answer.status == 201
    assert taken == [12 << 20]
