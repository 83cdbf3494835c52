"""Programs that train, as processes of their own: what they begin with, and how they are told to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from outside import said

from stagesink.errors import OutboxError
from stagesink.outbox.entry import Entry
from stagesink.outbox.settings import OutboxSettings
from stagesink.outbox.store import Outbox
from stagesink.outbox.sync import Sync
from stagesink.sinks import open_sink
from stagesink.transfer import TransferOptions

START = """
import os, shutil, signal, subprocess, sys, threading, time
from pathlib import Path
import stagesink
from stagesink import ArtifactUploader
from stagesink.sinks.local import LocalSink

base = Path(sys.argv[1])

def print(*words, flush=True):
    "Whole lines, whichever threads speak at once."
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

class Gate(LocalSink):
    "Lets nothing large through before there is a file `open`."

    def put(self, key, source, *, on_bytes=None):
        if (source.size or 0) > 1000 and not key.path.endswith("manifest.json"):
            print("putting", key.path, flush=True)
            while not (base / "open").exists():
                time.sleep(0.01)
        return super().put(key, source, on_bytes=on_bytes)

def made(name, size=2000):
    path = base / "work" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(name.encode() * (size // len(name) + 1))
    return path

def uploader(**options):
    options.setdefault("sink", Gate(base / "store"))
    return ArtifactUploader("run", "training", **options)
"""
"""Lines that a program starts with."""

LOADED = """
import os, sys, threading
from stagesink import ArtifactUploader

def hook(event, args):
    if event == "import" and threading.current_thread() is threading.main_thread():
        loaded.append(args[0])

loaded = []
uploader = ArtifactUploader("run", "training", sink=sys.argv[1], background=True, attempts=1, progress="none")
sys.addaudithook(hook)
assert uploader.upload_file(__import__("stagesink").__file__), uploader.errors
print(*loaded, flush=True)
os._exit(0)
"""
"""A program that prints what its first upload in the background still loads; takes the sink's URI."""


@contextmanager
def trainer(base: Path, program: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program after the lines of :data:`START`, with its outbox in ``base``."""
    with subprocess.Popen(
        [sys.executable, "-c", START + textwrap.dedent(program), str(base)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
        env=environment(base, **environ),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def environment(base: Path, **more: str) -> dict[str, str]:
    """Return what such a program needs around it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    return {**kept, "STAGESINK_OUTBOX_PATH": str(base / "outbox"), "STAGESINK_OUTBOX_KEEP_FREE": "0", **more}


def heard(process: subprocess.Popen[str], *lines: str) -> None:
    """Wait until the program has said all of this, in any order."""
    wanted = set(lines)
    while wanted:
        got = said(process)
        assert got or process.poll() is None, f"it ended without {wanted}: {process.stderr and process.stderr.read()}"
        wanted.discard(got)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the program's end, and return its status and what it said on stderr."""
    _, told = process.communicate(timeout=60)
    return process.returncode, told


def told_until_it_ends(process: subprocess.Popen[str], signum: signal.Signals) -> tuple[int, str]:
    """Send a signal again and again."""
    while True:
        with suppress(ProcessLookupError):
            process.send_signal(signum)
        try:
            process.wait(0.3)
        except subprocess.TimeoutExpired:
            continue
        return ended(process)


def kept(base: Path) -> dict[str, bytes]:
    """Return what waits, by its place in the run, read as plain files."""
    found = {}
    for folder in (base / "outbox" / "entries").glob("[!.]*"):
        with suppress(FileNotFoundError, OutboxError):  # it lands just now
            entry = Entry.read(folder)
            found.update({file.path: Path(entry.place(file)).read_bytes() for file in entry.files})
    return found


def landed(base: Path) -> dict[str, bytes]:
    """Return what is in the store with its manifest."""
    run = base / "store" / "run"
    names = [each.name.removesuffix(".manifest.json") for each in run.glob("*.manifest.json")]
    return {name: (run / name).read_bytes() for name in names}


def synced(base: Path) -> dict[str, bytes]:
    """Upload what waits, and return what is in the store then."""
    outbox = Outbox(OutboxSettings(path=str(base / "outbox"), keep_free=0))
    with Sync(outbox, open_sink, TransferOptions()) as sync:
        assert {outcome.status for outcome in sync.run()} <= {"landed", "superseded"}
    assert outbox.rows() == []
    outbox.close()
    return landed(base)


def bytes_of(name: str, size: int = 2000) -> bytes:
    """Return what ``made`` writes into a file of that name."""
    return name.encode() * (size // len(name) + 1)
