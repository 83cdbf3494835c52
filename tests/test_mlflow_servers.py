"""The servers that the tests of MLflow talk to end with the tests, however these end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow_servers import Launcher
from servers import installed

_OWNER = """
import sys, time
from pathlib import Path
from mlflow_servers import Launcher
launcher = Launcher(Path(sys.argv[1]))
launcher.ask("moto")
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def owner(tmp_path: Path) -> subprocess.Popen[str]:
    """A process that has started a server, as pytest does."""
    installed("moto", "flask")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", _OWNER, str(tmp_path)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def _is_alive(launcher: int) -> bool:
    try:
        state = Path(f"/proc/{launcher}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # whoever adopts it may be slow to bury it


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_servers_end_with_the_last_of_their_owners_even_when_it_is_killed(
    owner: subprocess.Popen[str], tmp_path: Path
) -> None:
    other = Launcher(tmp_path)
    port, folder = other.ask("moto")
    found = [int(path.name) for path in Path("/proc").glob("[0-9]*") if str(folder.parent) in _command(path)]
    assert len(found) == 2  # the launcher and its server
    with owner:
        owner.send_signal(signal.SIGKILL)
    assert other.ask("moto") == (port, folder)
    assert all(map(_is_alive, found))
    other.close()
    for _ in range(600):
        if not any(map(_is_alive, found)):
            return
        time.sleep(0.05)
    raise AssertionError("The servers outlive those who use them.")


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_text()
    except OSError:  # it has ended meanwhile, or is somebody else's
        return ""
