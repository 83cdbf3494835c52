"""What the outbox remembers of its entries: an index over the folders, and how landing them went.

The folders are the truth, this is what makes them quick to ask. So whatever happens to the file, it can be made anew:
a damaged one is set aside, with its bytes, and the entries are read again.
"""

from __future__ import annotations

import calendar
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from stagesink.artifacts import Fingerprint
from stagesink.errors import OutboxError
from stagesink.manifest import ManifestEntry
from stagesink.outbox.entry import Entry

_BUSY_SECONDS = 30.0
_BITS = (1 << 63) - 1
_COMPANIONS = ("", "-wal", "-shm", "-journal")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entry (
    id TEXT PRIMARY KEY, created REAL NOT NULL, sink TEXT NOT NULL, run_id TEXT NOT NULL, path TEXT NOT NULL,
    adds INTEGER NOT NULL, stage TEXT, slot TEXT, priority INTEGER NOT NULL, files INTEGER NOT NULL,
    bytes INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, last_attempt REAL, error TEXT,
    host TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS destination ON entry (sink, run_id);
CREATE TABLE IF NOT EXISTS landed (
    entry TEXT NOT NULL, path TEXT NOT NULL, size INTEGER NOT NULL, sha256 TEXT NOT NULL, PRIMARY KEY (entry, path)
);
CREATE TABLE IF NOT EXISTS source (
    path TEXT PRIMARY KEY, inode INTEGER NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    rewritten INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS done (entry TEXT PRIMARY KEY);
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One entry as the index knows it. Times in seconds since 1970, ``bytes`` of all files."""

    id: str
    created: float
    sink: str
    run_id: str
    path: str
    adds: bool
    stage: str | None
    slot: str | None
    priority: int
    files: int
    bytes: int
    attempts: int = 0
    last_attempt: float | None = None
    error: str | None = None
    host: str = ""

    @property
    def store(self) -> tuple[str, str]:
        """The store that it goes to, to be told from others."""
        return self.sink, self.host

    @classmethod
    def of(cls, entry: Entry) -> Row:
        """Return the row of an entry that nobody has tried to land yet."""
        return cls(
            entry.id,
            entry.created,
            entry.sink,
            entry.run_id,
            entry.path,
            entry.upload.adds,
            entry.stage,
            entry.slot,
            entry.priority,
            len(entry.files),
            entry.size,
            host=entry.host,
        )

    @classmethod
    def damaged(cls, entry_id: str, why: str) -> Row:
        """Return the row of an entry that cannot be read; its id begins with its time."""
        created = time.time()
        with suppress(ValueError):
            created = calendar.timegm(time.strptime(entry_id[:15], "%Y%m%dT%H%M%S"))
        return cls(entry_id, created, "", "", entry_id, False, None, None, 0, 0, 0, error=why)


_REMEMBERED = 10_000  # source files
_REMEMBERED_DONE = 1_000  # entries
_COLUMNS = tuple(each.name for each in fields(Row))
_TABLES = {
    "entry": {*_COLUMNS},
    "landed": {"entry", "path", "size", "sha256"},
    "source": {"path", "inode", "size", "mtime_ns", "rewritten"},
    "done": {"entry"},
}


class Index:
    """The sqlite file of an outbox. Safe to share between threads and after fork."""

    _process = staticmethod(os.getpid)  # `os` itself may be gone when the interpreter ends

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._connection is not None and self._opened is not None and self._opened[0] == self._process():
                self._connection.close()
            self._connection = None

    # -- entries -----------------------------------------------------------------------------------------------------

    def add(self, entries: Iterable[Entry], *, quick: bool = False) -> None:
        """Take entries in; those that are known stay as they are. A quick one does not wait for the disk."""
        rows = [astuple(Row.of(entry)) for entry in entries]
        with self._transaction(quick=quick) as connection:
            connection.executemany(
                f"INSERT OR IGNORE INTO entry ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})", rows
            )

    def drop(self, ids: Iterable[str]) -> None:
        """Forget entries."""
        wanted = [(each,) for each in ids]
        with self._transaction() as connection:
            connection.executemany("DELETE FROM entry WHERE id = ?", wanted)
            connection.executemany("DELETE FROM landed WHERE entry = ?", wanted)

    def ids(self) -> set[str]:
        """Return the ids of all known entries."""
        return {row[0] for row in self._ask("SELECT id FROM entry")}

    def rows(self) -> list[Row]:
        """Return all entries, oldest first."""
        return self._rows()

    def rows_of(self, store: tuple[str, str], run_ids: Iterable[str]) -> list[Row]:
        """Return the entries that go to some runs of one store, oldest first."""
        runs = tuple(run_ids)
        return self._rows(f"WHERE sink = ? AND host = ? AND run_id IN ({', '.join('?' * len(runs))})", (*store, *runs))

    def _rows(self, which: str = "", values: tuple[object, ...] = ()) -> list[Row]:
        found = self._ask(f"SELECT {', '.join(_COLUMNS)} FROM entry {which} ORDER BY created, id", values)
        return [Row(**{**dict(zip(_COLUMNS, row, strict=True)), "adds": bool(row[5])}) for row in found]

    def failed(self, entry_id: str, why: str) -> None:
        """Note an attempt that failed."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE entry SET attempts = attempts + 1, last_attempt = ?, error = ? WHERE id = ?",
                (time.time(), why, entry_id),
            )

    # -- what has landed of an entry ---------------------------------------------------------------------------------

    def note_landed(self, entry_id: str, objects: Iterable[ManifestEntry]) -> None:
        """Note objects that landed. What a power cut takes of it is sent again, so it does not wait for the disk."""
        with self._transaction(quick=True) as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO landed (entry, path, size, sha256) VALUES (?, ?, ?, ?)",
                [(entry_id, each.path, each.size, each.sha256) for each in objects],
            )

    def landed(self, entry_id: str) -> tuple[ManifestEntry, ...]:
        """Return what has landed of an entry."""
        found = self._ask("SELECT path, size, sha256 FROM landed WHERE entry = ?", (entry_id,))
        return tuple(ManifestEntry(*row) for row in found)

    def note_done(self, entry_id: str) -> None:
        """Remember for a while that an entry has landed: whoever kept it may ask when it is gone."""
        with self._transaction(quick=True) as connection:
            connection.execute("INSERT OR REPLACE INTO done (entry) VALUES (?)", (entry_id,))
            connection.execute("DELETE FROM done WHERE rowid <= (SELECT max(rowid) FROM done) - ?", (_REMEMBERED_DONE,))

    def is_done(self, entry_id: str) -> bool:
        """Tell whether an entry that is gone is known to have landed."""
        return bool(self._ask("SELECT 1 FROM done WHERE entry = ?", (entry_id,)))

    # -- files that get rewritten in place ---------------------------------------------------------------------------

    def rewritten(self, found: Sequence[tuple[str, Fingerprint]]) -> set[str]:
        """Return which source files are known to be rewritten in place, and remember what they are now.

        One is when it was here before with the same inode and other bytes.
        """
        # As sqlite can take them: names are UTF-8, and numbers have 63 bits, which some disks' inodes do not fit.
        seen = {os.fsencode(path).decode(errors="backslashreplace"): (path, fingerprint) for path, fingerprint in found}
        now = {name: tuple(value & _BITS for value in fingerprint) for name, (_, fingerprint) in seen.items()}
        again: set[str] = set()
        names = list(seen)
        for start in range(0, len(names), 500):  # fewer than sqlite's limit of variables in one statement
            part = names[start : start + 500]
            marks = ",".join("?" * len(part))
            rows = self._ask(f"SELECT path, inode, size, mtime_ns, rewritten FROM source WHERE path IN ({marks})", part)
            for name, inode, size, mtime_ns, rewritten in rows:
                if rewritten or (inode == now[name][0] and (size, mtime_ns) != now[name][1:]):
                    again.add(name)
        with self._transaction(quick=True) as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO source (path, inode, size, mtime_ns, rewritten) VALUES (?, ?, ?, ?, ?)",
                [(name, *numbers, int(name in again)) for name, numbers in now.items()],
            )
            # What is seen again becomes the newest: a training of weeks leaves no more behind than the last ones.
            connection.execute("DELETE FROM source WHERE rowid <= (SELECT max(rowid) FROM source) - ?", (_REMEMBERED,))
        return {seen[name][0] for name in again}

    # -- the file ----------------------------------------------------------------------------------------------------

    def _ask(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._using() as connection:
            return connection.execute(statement, values).fetchall()

    @contextmanager
    def _transaction(self, *, quick: bool = False) -> Iterator[sqlite3.Connection]:
        """Change the file, as one; a quick change is not lost by a kill, but may be by a power cut."""
        with self._using() as connection:
            connection.execute(f"PRAGMA synchronous = {'NORMAL' if quick else 'FULL'}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._connected()
            except UnicodeDecodeError as error:  # what it holds, or what sqlite says of it
                self.close()
                raise DamagedIndex(f"{self.path} is damaged: it holds text that is none") from error
            except sqlite3.Error as error:
                self.close()
                if is_damage(error) or _is_cut(self.path):
                    raise DamagedIndex(f"{self.path} is damaged: {error}") from error
                raise self._unusable(error) from error

    def _connected(self) -> sqlite3.Connection:
        here = (os.getpid(), _inode(self.path))
        if self._connection is not None and self._opened == here:
            return self._connection
        self.close()  # the parent's, before a fork; or of a file that was removed since
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise self._unusable(error.strerror or error) from error
        connection = sqlite3.connect(
            self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=32
        )
        connection.text_factory = _text
        try:
            for table, columns in _TABLES.items():
                found = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
                if found and found != columns:
                    raise DamagedIndex(f"{self.path} is damaged, or of another version: {table} has other columns")
            connection.execute("PRAGMA journal_mode = WAL")  # stays what it was where the file system knows no mmap
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(_SCHEMA)
        except BaseException:
            connection.close()
            raise
        self._connection, self._opened = connection, (os.getpid(), _inode(self.path))
        return connection

    def _unusable(self, why: object) -> OutboxError:
        return OutboxError(
            f"The outbox's index {self.path} cannot be used: {why}.",
            hint="Another process may hold it, or the disk is full or read-only. What waits is untouched.",
        )

    def is_sound(self) -> bool:
        """Read all of it, and tell whether it is as it should be."""
        try:
            self.rows()
            return bool(self._ask("PRAGMA integrity_check") == [("ok",)])
        except DamagedIndex:
            return False

    def set_aside(self) -> Path:
        """Move the damaged file out of the way, and return where it is now."""
        with self._lock:
            self.close()
            aside = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}")
            for ending in _COMPANIONS:
                with suppress(FileNotFoundError):
                    os.rename(f"{self.path}{ending}", f"{aside}{ending}")
            return aside


class DamagedIndex(OutboxError):
    """The index is no sqlite file any more. The entries are not touched by that."""


def _text(data: bytes) -> str:
    return data.decode()  # sqlite3's own raises, where this fails, what it raises for a lock, too


def is_damage(error: sqlite3.Error) -> bool:
    """Tell damage from a lock, a full disk and the like: sqlite3 raises its plain class for that alone."""
    return type(error) is sqlite3.DatabaseError


def _is_cut(path: Path) -> bool:
    """Tell whether the file is shorter than it says, which sqlite calls an I/O error."""
    try:
        with path.open("rb") as file:  # https://www.sqlite.org/fileformat.html#the_database_header
            header = file.read(32)
            size = os.fstat(file.fileno()).st_size
    except OSError:
        return False
    page = int.from_bytes(header[16:18], "big")
    return size < int.from_bytes(header[28:32], "big") * (65536 if page == 1 else page)


def _inode(path: Path) -> int:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return -1
