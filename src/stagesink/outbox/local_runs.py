"""Runs that are kept on this disk: what happened to them, and how much of it each server has been told.

``runs/<id>.jsonl`` gets a line for each thing that happens to a run, and none is ever changed. A line counts from its
end on, once it is on the disk: what a killed process has begun of one, the next to write cuts off, and nobody reads.
``runs/<id>.sent`` is written in the same way by whoever tells a server: first what it is about to send, then that it
was sent. So after a kill at any moment it is known what the server has for certain, and what it may have.
"""

from __future__ import annotations

import fcntl
import glob
import json
import logging
import os
import time
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from filelock import FileLock, Timeout

from stagesink.artifacts import ArtifactKey
from stagesink.disk import settle
from stagesink.errors import InvalidKey, OutboxError, OutboxFull, StagesinkError
from stagesink.outbox.snapshot import FULL
from stagesink.redaction import bare_uri

_log = logging.getLogger("stagesink")

FORMAT = "stagesink.run/1"
RUNS = "runs"
"""Folder of an outbox that holds its runs."""

_LOCK_SECONDS = 600.0
_LONGEST_ID = 240  # bytes: its files have longer names
_FORGOTTEN_AFTER = 30 * 86400.0
_CHUNK = 1 << 16

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RunStart:
    """How a run began: the first line of its journal.

    Parameters
    ----------
    run_id : str
    sink : str
        URI of the sink it was begun for, without secrets.
    time : int
        Milliseconds since 1970.
    joined : bool
        The server knows the run under this id: only what could not be told is kept here.
    experiment, name, parent_run_id : str or None
    tags : mapping of str to str
    experiment_id : str or None
        In the terms of the server behind that sink; where no name is given.
    """

    run_id: str
    sink: str
    time: int
    joined: bool = False
    experiment: str | None = None
    name: str | None = None
    parent_run_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    experiment_id: str | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """What one server knows of a run.

    Parameters
    ----------
    experiment : str or None
        Where the run is to be made, in the server's terms.
    run_id : str or None
        The run there; None before it was made.
    sent : int
        Bytes of the journal that it has for certain.
    sending : int
        Bytes of the journal that it may have.
    ended : int
        Bytes of the journal up to the end that was set there.
    error : str or None
        Why it could not be told the last time.
    """

    experiment: str | None = None
    run_id: str | None = None
    sent: int = 0
    sending: int = 0
    ended: int = 0
    error: str | None = None


_FACTS = {each.name for each in fields(Told)}


class LocalRun:
    """One run of an outbox. Safe for any number of threads and processes at once."""

    def __init__(self, path: Path, start: RunStart) -> None:
        self.start = start
        self.path = path

    @property
    def run_id(self) -> str:
        return self.start.run_id

    def add(self, event: Mapping[str, Any]) -> None:
        """Write down what happened; it is on the disk then.

        Raises
        ------
        OutboxError
            The outbox cannot be written, or the run was removed.
        """
        _append(self.path, event, make=False)

    def events(self, start: int = 0) -> Iterator[tuple[int, Event]]:
        """Yield what happened from a place in the journal on, each with the place after it."""
        yield from _read(self.path, start)

    def end(self) -> tuple[int, Event] | None:
        """Return the last end that was set here, with the place after it."""
        return next((each for each in reversed(list(self.events())) if each[1].get("event") == "end"), None)

    @property
    def size(self) -> int:
        """Bytes of the journal, without a line that is being written."""
        with _opened(self.path) as file:
            return 0 if file is None else _whole(file)

    # -- servers -----------------------------------------------------------------------------------------------------

    def servers(self) -> dict[str, Told]:
        """Return what each server knows, by the sink's URI."""
        found: dict[str, Told] = {}
        for _, line in _read(self._sent, 0):
            known = found.get(line["server"], Told())
            changes = {name: value for name, value in line.items() if name in _FACTS}
            found[line["server"]] = replace(known, **changes)
        if self.start.joined:
            found[self.start.sink] = replace(found.get(self.start.sink, Told()), run_id=self.run_id)
        return found

    def told(self, sink_uri: str) -> Told:
        """Return what one server knows."""
        return self.servers().get(bare_uri(sink_uri), Told())

    def note(self, sink_uri: str, **facts: str | int | None) -> None:
        """Remember what a server knows now: some of the fields of :class:`Told`."""
        _append(self._sent, {"server": bare_uri(sink_uri), **facts}, make=True)

    def waits_for(self, sink_uri: str) -> bool:
        """Tell whether a server has not been told everything."""
        told, end = self.told(sink_uri), self.end()
        return told.run_id is None or told.sent < self.size or (end is not None and told.ended < end[0])

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Be the only one who tells servers of this run, in the block.

        Raises
        ------
        OutboxError
            Another process has been at it for minutes.
        """
        lock = FileLock(self.path.with_suffix(".lock"), mode=0o600, thread_local=False)
        try:
            lock.acquire(timeout=_LOCK_SECONDS)
        except Timeout as error:
            raise OutboxError(
                f"Another process is uploading run {self.run_id}.", hint="Wait for it, or end it; then try again."
            ) from error
        try:
            yield
        finally:
            lock.release()

    @property
    def _sent(self) -> Path:
        return self.path.with_suffix(".sent")


class LocalRuns:
    """The runs of an outbox.

    Parameters
    ----------
    folder : Path
        Made with the first run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self, start: RunStart) -> LocalRun:
        """Begin a run; one that is there already stays as it is.

        Raises
        ------
        OutboxError
            The outbox cannot be written.
        """
        ArtifactKey(start.run_id, "any")  # refuses what can be no name of a file
        if not _can_be_kept(start.run_id):
            raise InvalidKey(f"Run id {start.run_id[:77]!r}... is too long.", hint="Use a shorter one.")
        path = self._path(start.run_id)
        begin = {
            "event": "start",
            "format": FORMAT,
            "run_id": start.run_id,
            "sink": bare_uri(start.sink),
            "time": start.time,
            "joined": start.joined,
            "experiment": start.experiment,
            "name": start.name,
            "parent_run_id": start.parent_run_id,
            "tags": dict(start.tags),
            "experiment_id": start.experiment_id,
        }
        try:
            os.makedirs(self.folder, 0o700, exist_ok=True)
        except OSError as error:
            _refuse(self.folder, error)
        _append(path, begin, make=True, first=True)
        made = self.get(start.run_id)
        if made is None:
            raise OutboxError(f"{path} is damaged.", hint="Look at it, then move it away.")
        return made

    def get(self, run_id: str) -> LocalRun | None:
        """Return a run; None when it is none of this outbox's."""
        if not _can_be_kept(run_id):
            return None
        path = self._path(run_id)
        start = next((event for _, event in _read(path, 0)), None)
        if start is None:
            return None
        try:
            if start["format"] != FORMAT or start["run_id"] != run_id:
                raise ValueError("it is another one's")
            begun = RunStart(
                run_id,
                str(start["sink"]),
                int(start["time"]),
                bool(start["joined"]),
                start["experiment"],
                start["name"],
                start["parent_run_id"],
                {str(name): str(value) for name, value in start["tags"].items()},
                start.get("experiment_id"),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OutboxError(f"{path} is damaged: {error}.", hint="Look at it, then move it away.") from error
        return LocalRun(path, begun)

    def all(self) -> list[LocalRun]:
        """Return all runs, oldest first. What is damaged is left out, with a warning."""
        found = []
        for path in self._files():
            try:
                run = self.get(path.stem)
            except StagesinkError as error:
                _log.warning("%s", error)
                continue
            if run is not None:
                found.append(run)
        return sorted(found, key=lambda run: (run.start.time, run.run_id))

    def waiting(self) -> list[tuple[LocalRun, str]]:
        """Return the runs of which a server does not know everything yet, each with the sink's URI, oldest first.

        Each is to be known by the server it was begun for, and by those that know it already.
        """
        found = []
        for run in self.all():
            servers = dict.fromkeys([run.start.sink, *run.servers()])
            found += [(run, uri) for uri in servers if run.waits_for(uri)]
        return found

    def gc(self, used: Container[str], *, older_than: float = _FORGOTTEN_AFTER) -> int:
        """Forget the runs of which servers know everything, once nobody is likely to name them by their local ids.

        Parameters
        ----------
        used : container of str
            Ids of runs that uploads wait for.
        older_than : float
            Seconds since the last thing that happened to a run.

        Returns
        -------
        int
            Bytes that were freed.
        """
        waiting = {run.run_id for run, _ in self.waiting()}
        freed = 0
        for run in self.all():
            if run.run_id in waiting or run.run_id in used:
                continue
            with run.turn():
                files = [file for file in self.folder.glob(f"{glob.escape(run.run_id)}.*") if file.stem == run.run_id]
                # The lock was taken just now.
                told = [file.stat().st_mtime for file in files if file.suffix != ".lock"]
                changed = max(told, default=time.time())  # none: somebody else has just forgotten it
                if time.time() - changed < older_than:
                    continue
                freed += sum(file.stat().st_size for file in files)
                for file in sorted(files):  # the journal before what was sent of it: else it would be sent again
                    file.unlink()
        return freed

    def on_server(self, run_id: str, sink_uri: str) -> str | None:
        """Return a run's id on a sink's server: its own when it was not made here, None before it is made there."""
        run = self.get(run_id)
        if run is None or run.start.joined:
            return run_id
        return run.told(sink_uri).run_id

    def names_of(self, run_id: str, sink_uri: str) -> set[str]:
        """Return a server's run id with the ids that the run may have here."""
        return {run_id, *(run.run_id for run in self.all() if run.told(sink_uri).run_id == run_id)}

    def _path(self, run_id: str) -> Path:
        return self.folder / f"{run_id}.jsonl"

    def _files(self) -> list[Path]:
        try:
            return sorted(path for path in self.folder.iterdir() if path.suffix == ".jsonl")
        except FileNotFoundError:
            return []
        except OSError as error:
            _refuse(self.folder, error)


def _can_be_kept(run_id: str) -> bool:
    try:
        ArtifactKey(run_id, "any")
    except InvalidKey:
        return False
    return len(run_id.encode()) <= _LONGEST_ID


def _append(path: Path, line: Mapping[str, Any], *, make: bool, first: bool = False) -> None:
    """Add a line, and wait until it is on the disk; with ``first`` only where there is none yet."""
    data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if make else 0)
    try:
        is_new = make and not path.exists()
        with open(os.open(path, flags, 0o600), "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = _whole(file)
            file.truncate(end)
            if not (first and end):
                try:
                    _write(file, end, data)
                except BaseException:
                    file.truncate(end)
                    raise
            os.fsync(file.fileno())
        if is_new:
            settle(str(path.parent))
    except OSError as error:
        _refuse(path, error)


def _write(file: Any, end: int, data: bytes) -> None:
    file.seek(end)
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _read(path: Path, start: int) -> Iterator[tuple[int, Event]]:
    with _opened(path) as file:
        if file is None:
            return
        file.seek(start)
        place = start
        for line in file:
            if not line.endswith(b"\n"):
                return  # it is being written, or its writer was killed
            place += len(line)
            try:
                event = json.loads(line)
                if not isinstance(event, dict):
                    raise ValueError("no object")
            except ValueError:
                _log.warning("%s is damaged before byte %d: that line is left out.", path, place)
                continue
            yield place, event


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO | None]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        _refuse(path, error)
    with open(fd, "rb") as file:
        if os.fstat(fd).st_uid != os.geteuid():
            # It says which run of which server an upload goes to.
            raise OutboxError(f"{path} is another user's.", hint="Remove it, and ask who wrote it.")
        yield file


def _whole(file: Any) -> int:
    """Return where the last whole line ends."""
    end: int = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _CHUNK)
        file.seek(start)
        found = bytes(file.read(end - start)).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _refuse(path: Path, error: OSError) -> NoReturn:
    reason = error.strerror or str(error)
    if error.errno in FULL:
        raise OutboxFull(f"The disk of {path} is full: {reason}.") from error
    raise OutboxError(f"{path} cannot be used: {reason}.") from error
