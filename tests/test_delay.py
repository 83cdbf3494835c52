"""The proxy that stands for a distant server changes nothing but the time."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from delay import HOST, delayed

from stagesink.testing import GeneratedSource


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that sends back what it gets, until the client has sent all."""
    with socket.create_server((HOST, 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(client,), daemon=True).start()

        def answer(client: socket.socket) -> None:
            with client:
                while data := client.recv(1 << 16):
                    client.sendall(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(("round_trip", "rate"), [(0.0, 0), (0.02, 0), (0.02, 200e6)])
def test_what_passes_is_whole_and_in_order_on_each_connection(
    echo: int, round_trip: float, rate: float, tmp_path: Path
) -> None:
    def converse(seed: int) -> None:
        source = GeneratedSource(3_000_000 + seed, seed=seed)
        with socket.create_connection((HOST, port)) as client:
            sender = threading.Thread(target=client.sendall, args=(source.read(),))
            sender.start()
            digest, count = hashlib.sha256(), 0
            while count < source.length:
                data = client.recv(1 << 16)
                assert data, "cut off"
                digest.update(data)
                count += len(data)
            sender.join()
        assert digest.hexdigest() == source.digest()

    with delayed(echo, round_trip, tmp_path, rate) as port, ThreadPoolExecutor(8) as pool:
        list(pool.map(converse, range(16)))


def test_all_connections_share_a_narrow_line(echo: int, tmp_path: Path) -> None:
    def send(_: int) -> None:
        with socket.create_connection((HOST, port)) as client:
            client.sendall(bytes(100_000))
            left = 100_000
            while left:
                left -= len(client.recv(1 << 16))

    with delayed(echo, 0.0, tmp_path, 1e6) as port, ThreadPoolExecutor(4) as pool:
        start = time.monotonic()
        list(pool.map(send, range(4)))
        assert time.monotonic() - start >= 0.4  # what 1 MB/s take for 400 kB


def test_who_is_not_there_is_not_there(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as reserved:
        gone = reserved.getsockname()[1]
    with (
        delayed(gone, 0.0, tmp_path) as port,
        socket.create_connection((HOST, port)) as client,
        suppress(ConnectionResetError),
    ):
        assert client.recv(1) == b""


def test_a_server_that_hangs_up_is_passed_on_after_its_last_bytes(tmp_path: Path) -> None:
    with (
        socket.create_server((HOST, 0)) as listener,
        delayed(listener.getsockname()[1], 0.02, tmp_path) as port,
        socket.create_connection((HOST, port)) as client,
        client.makefile("rb") as stream,
    ):
        # The first connection was only there to see whether the proxy is ready.
        for server in [listener.accept()[0], listener.accept()[0]]:
            server.sendall(b"last words")
            server.close()
        assert stream.read() == b"last words"
