"""Azurite, Microsoft's own emulator of Azure's blob store, as a process that ends with the block it was started for."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

COMMAND_VARIABLE = "AZURITE_BLOB"
"""Environment variable that names Azurite's blob server where ``azurite-blob`` is not on PATH."""

_START_SECONDS = 60.0


@dataclass(frozen=True)
class Azurite:
    """A blob store that runs.

    Attributes
    ----------
    port : int
    account, key : str
        Those that every Azurite has; https://learn.microsoft.com/azure/storage/common/storage-connect-azurite.
    scheme : {"http", "https"}
    """

    port: int
    account: str = "devstoreaccount1"
    key: str = field(
        default="Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==", repr=False
    )
    scheme: str = "http"

    @property
    def endpoint(self) -> str:
        """URL of the account."""
        return f"{self.scheme}://127.0.0.1:{self.port}/{self.account}"

    @property
    def connection_string(self) -> str:
        return (
            f"DefaultEndpointsProtocol={self.scheme};AccountName={self.account};AccountKey={self.key};"
            f"BlobEndpoint={self.endpoint};"
        )


@contextmanager
def start_azurite(
    folder: Path,
    *,
    command: Sequence[str] | None = None,
    port: int | None = None,
    on_disk: bool = False,
    certificate: tuple[Path, Path] | None = None,
) -> Iterator[Azurite]:
    """Run Azurite until the block ends.

    Parameters
    ----------
    folder : Path
        Gets its log, ``azurite.log``, and what it keeps.
    command : sequence of str, optional
        Azurite's blob server. Default: ``AZURITE_BLOB``, else ``azurite-blob`` from PATH
        (``npm install -g azurite``).
    port : int, optional
        Default: a free one.
    on_disk : bool
        Keep the blobs in ``folder`` instead of in memory.
    certificate : tuple of Path, optional
        A certificate and its key, both PEM: it speaks https with them.

    Raises
    ------
    RuntimeError
        It is not installed, or did not start.
    """
    command = command or _installed()
    port = port or free_port()
    folder.mkdir(parents=True, exist_ok=True)
    keeping = ["--location", str(folder / "blobs")] if on_disk else ["--inMemoryPersistence"]
    speaking = ["--cert", str(certificate[0]), "--key", str(certificate[1])] if certificate else []
    log = folder / "azurite.log"
    arguments = ["--blobHost", "127.0.0.1", "--blobPort", str(port), *keeping, *speaking, "--skipApiVersionCheck"]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [*command, *arguments, "--disableTelemetry", "--silent"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as server,
    ):
        try:
            _wait(server, port, log)
            yield Azurite(port, scheme="https" if certificate else "http")
        finally:
            server.kill()


def _installed() -> list[str]:
    named = os.environ.get(COMMAND_VARIABLE)
    found = named or shutil.which("azurite-blob")
    if not found:
        raise RuntimeError(f"Azurite is not installed: npm install -g azurite, or name it in {COMMAND_VARIABLE}.")
    return [found]


def free_port() -> int:
    """Return a port that nobody has, and that no outgoing connection is given before a server has started on it.

    Each process chooses among its own, since another one may look before the server has started, too.
    """
    lowest = 20_000 + os.getpid() % 60 * 200
    while True:
        port = random.SystemRandom().randrange(lowest, lowest + 200)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(0.05)
    raise RuntimeError(f"Azurite did not start:\n{log.read_text(errors='replace')}")
