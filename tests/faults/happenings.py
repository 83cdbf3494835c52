"""What can happen to an upload, each as a block in which it happens: on the wire, to this machine's disks, to the
outbox, to the files themselves."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from faults.proxy import Answer, CutRequest, Fault, FaultProxy, Stall
from faults.worlds import World
from outside import running, said, small_disk

Happening = Callable[[World], AbstractContextManager[None]]

ALWAYS = 500
"""Requests: more than any cell makes."""


@contextmanager
def nothing(world: World) -> Iterator[None]:
    yield


def both(*happenings: Happening) -> Happening:
    """Several at once; they end in the opposite order."""

    @contextmanager
    def happening(world: World) -> Iterator[None]:
        with ExitStack() as stack:
            for each in happenings:
                stack.enter_context(each(world))
            yield

    return happening


def away(world: World) -> AbstractContextManager[None]:
    """Make the backend fail at everything."""
    return world.away()


# -- on the wire -------------------------------------------------------------------------------------------------------


def wire(fault: Fault, *, path: str = "model.bin", **others: Fault) -> Happening:
    """Let a fault meet every request about one file; another fault for a sink that is named."""
    return _on_the_way(fault, others, ALWAYS, "", path)


def once(fault: Fault, *, method: str = "PUT", path: str = "model.bin", **others: Fault) -> Happening:
    """Let a fault meet one request: one that puts a file, where nothing else is said."""
    return _on_the_way(fault, others, 1, method, path)


def _on_the_way(fault: Fault, others: Mapping[str, Fault], times: int, method: str, path: str) -> Happening:

    @contextmanager
    def happening(world: World) -> Iterator[None]:
        assert world.line is not None
        world.line.plan(others.get(world.kind, fault), times=times, method=method, path=path)
        yield
        world.line.forget()

    return happening


def each_line(happening: Callable[[FaultProxy], AbstractContextManager[None]]) -> Happening:
    """Let it happen to whatever stands between us and the backend."""

    @contextmanager
    def happens(world: World) -> Iterator[None]:
        with ExitStack() as stack:
            for line in world.lines:
                stack.enter_context(happening(line))
            yield

    return happens


@contextmanager
def ends_midway(world: World) -> Iterator[None]:
    """Let what gives access end while a large file is sent: in its parts, or in its one request."""
    assert world.line is not None
    if world.kind == "s3":
        world.line.plan(refusal("ExpiredToken"), times=ALWAYS, path="partNumber=2")
    elif world.kind == "azureml":  # its URLs are renewed
        world.line.plan(refusal("AuthenticationFailed"), method="PUT", path="comp=block&")
    else:
        world.line.plan(CutRequest(1 << 20, Answer(401)), times=ALWAYS, method="PUT", path="large.bin")
    yield
    world.line.forget()


def refusal(code: str) -> Answer:
    """403 as a store words it."""
    body = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>no</Message></Error>'
    headers = {"x-ms-error-code": code, "x-ms-request-id": "1", "x-ms-version": "2021-12-02"}
    return Answer(403, body=body.encode(), headers=headers)


@contextmanager
def stalls(world: World) -> Iterator[None]:
    """Have one request of a client that waits four seconds stay without an answer."""
    with once(Stall(), path="model.bin")(world), world.monkeypatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "4")
        if world.kind == "s3":
            patch.setitem(world.options, "config_kwargs", {"read_timeout": 4.0})
        if world.kind == "azureml":
            from stagesink.sinks._http import pools

            patch.setitem(pools.pool_manager.__kwdefaults__, "seconds", 4.0)
        yield


@contextmanager
def no_names(world: World) -> Iterator[None]:
    """Have no host name resolved."""
    if world.kind == "s3":  # its client asks the system by itself
        there = world.options["endpoint_url"]
        world.options["endpoint_url"] = f"http://store.invalid:{there.rpartition(':')[2]}"
        yield
        world.options["endpoint_url"] = there
        return

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with world.monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", unknown)
        yield


def clock(before: float, after: float) -> Happening:
    """Let this machine's clock be off by some seconds, and by others from the fifth look at it on.

    Azure ML's fake, which is in this process too, has its own.
    """

    @contextmanager
    def happening(world: World) -> Iterator[None]:
        true, looks = time.time, itertools.count()

        def ours() -> float:
            if str(sys._getframe(1).f_globals.get("__name__")).startswith("stagesink.testing"):
                return true()
            return true() + (before if next(looks) < 5 else after)

        with world.monkeypatch.context() as patch:
            patch.setattr(time, "time", ours)
            yield

    return happening


# -- disks -------------------------------------------------------------------------------------------------------------


def _move(world: World, what: str, folder: Path) -> None:
    """Put the checkpoint, the outbox or the target of ``file:`` there."""
    if what == "outbox":
        world.outbox = folder / "outbox"
        world.monkeypatch.setenv("STAGESINK_OUTBOX_PATH", str(world.outbox))
    elif what == "checkpoint":
        shutil.copytree(world.checkpoint, folder / "checkpoint")
        world.checkpoint = folder / "checkpoint"
    else:
        world.root = folder / "store"


def disk(what: str, *others: str, state: str) -> Happening:
    """Put things on a small real disk that is full, or mounted read-only."""

    @contextmanager
    def happening(world: World) -> Iterator[None]:
        mount = small_disk(world.work / f"disk of {what}", "512k")
        folder = world.mounts.enter_context(mount)
        for each in (what, *others):
            if each == "target":
                assert world.root is not None
                world.root.symlink_to(folder)
            else:
                _move(world, each, folder)
        filler = folder / "filler"
        if state == "full":
            _fill(filler)
        else:
            _remount(folder, "ro")
        yield
        if state == "full":
            filler.unlink()
        else:
            _remount(folder, "rw")
        _remount(folder, "size=64m")

    return happening


def _remount(folder: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


def _fill(filler: Path) -> None:
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)


_BY_PATH = ("open", "mkdir", "rename", "replace", "link", "unlink", "rmdir", "utime", "scandir")
_BY_FD = ("write", "fsync")


def refusing(what: str, code: int, calls: tuple[str, ...] = _BY_PATH + _BY_FD, *, reads: bool = False) -> Happening:
    """Let the operating system refuse calls on one place: ``source``, ``outbox`` or ``target``."""

    @contextmanager
    def happening(world: World) -> Iterator[None]:
        places = {"source": world.checkpoint, "outbox": world.outbox, "target": world.root}
        place = str(places[what])

        def refused(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                where = args[0] if args else "."
                if isinstance(where, int):
                    where = os.readlink(f"/proc/self/fd/{where}")
                if str(where).startswith(place):
                    raise OSError(code, os.strerror(code), str(where))
                return call(*args, **kwargs)

            return wrapper

        with world.monkeypatch.context() as patch:
            if what == "source":
                patch.setattr(io, "FileIO", _refusing_file(place, code, opening=not reads))
            else:
                for name in calls:
                    patch.setattr(os, name, refused(name, getattr(os, name)))
            yield

    return happening


def _refusing_file(place: str, code: int, *, opening: bool) -> type[io.FileIO]:
    class File(io.FileIO):
        def __init__(self, path: Any, *args: Any, **kwargs: Any) -> None:
            self.refused = str(path).startswith(place)
            if self.refused and opening:
                raise OSError(code, os.strerror(code), str(path))
            super().__init__(path, *args, **kwargs)

        def readinto(self, buffer: Any) -> int:
            if self.refused:
                raise OSError(code, os.strerror(code))
            return super().readinto(buffer) or 0

    return File


# -- the outbox --------------------------------------------------------------------------------------------------------


@contextmanager
def removed_outbox(world: World) -> Iterator[None]:
    """Remove the outbox under a process that uses it; what waited in it has landed before."""
    world.sync()
    shutil.rmtree(world.outbox)
    yield


_HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked_index(world: World) -> Iterator[None]:
    """Have another process hold the index for itself, longer than anybody waits for it."""
    with world.monkeypatch.context() as patch, running(_HOLD, world.outbox / "index.db") as holder:
        patch.setattr("stagesink.outbox.index._BUSY_SECONDS", 0.2)
        assert said(holder) == "held"
        yield
        assert holder.stdin is not None
        holder.stdin.close()
        holder.wait()


def index_becomes(change: Callable[[bytes], bytes | None]) -> Happening:
    """Let the index hold other bytes, or be gone."""

    @contextmanager
    def happening(world: World) -> Iterator[None]:
        index = world.outbox / "index.db"
        _checkpoint(index)
        before = index.read_bytes()
        for ending in ("-wal", "-shm"):
            Path(f"{index}{ending}").unlink(missing_ok=True)
        after = change(before)
        if after is None:
            index.unlink()
        else:
            index.write_bytes(after)
        yield

    return happening


def _checkpoint(index: Path) -> None:
    connection = sqlite3.connect(index)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


# -- the files themselves ----------------------------------------------------------------------------------------------


def while_read(change: Callable[[Path], None], *, once: bool = True, keeping: bool = False) -> Happening:
    """Change a file of the checkpoint while its bytes are read; once, or at every reading.

    Parameters
    ----------
    change : callable
    once : bool
    keeping : bool
        Only while the outbox takes it.
    """

    @contextmanager
    def happening(world: World) -> Iterator[None]:
        file = world.checkpoint / "model.bin"
        saved = file.read_bytes()
        done: list[bool] = []

        class File(io.FileIO):
            def __init__(self, path: Any, *args: Any, **kwargs: Any) -> None:
                super().__init__(path, *args, **kwargs)
                self.is_it = str(path) == str(file)
                self.changed = False

            def readinto(self, buffer: Any) -> int:
                count = super().readinto(memoryview(buffer)[:10_000]) or 0
                kept = any((world.outbox / "entries").glob(".*")) if keeping else True
                if self.is_it and not self.changed and kept and not (once and done):
                    self.changed = True
                    done.append(True)
                    change(file)
                return count

        with world.monkeypatch.context() as patch:
            patch.setattr(io, "FileIO", File)
            yield
        assert done, "the file was never read"
        if not once:
            file.write_bytes(saved)

    return happening


def grows(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b"one more epoch")


def shrinks(file: Path) -> None:
    os.truncate(file, 15_000)


def vanishes(file: Path) -> None:
    file.unlink()


def is_replaced(file: Path) -> None:
    newer = file.with_name("newer")
    newer.write_bytes(b"another epoch" * 2000)
    os.replace(newer, file)


def is_rewritten(file: Path) -> None:
    data = file.read_bytes()
    with file.open("r+b") as stream:
        stream.write(bytes(255 - byte for byte in data))
