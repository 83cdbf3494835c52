"""The outbox: uploads that could not land yet, whole on this disk.

An entry is a folder. It is made under a name with a dot, and is there from the moment it is renamed to its own:

1.  ``claims/<id>`` is locked, as long as its writer lives, then ``entries/.<id>`` is made. What no living process
    holds is garbage.
2.  The bytes are taken (:mod:`.snapshot`), then ``plan.json`` is written: a folder without it is never an entry.
3.  Files, plan and folder reach the disk; then the rename to ``entries/<id>``, and the parent reaches the disk. A kill
    before it leaves garbage, a kill after it leaves an entry.
4.  The index is told. A kill before that leaves an entry that the index adopts when it is opened.

Taking one away goes backwards: rename to ``.<id>``, index, bytes. So at no moment is there an entry with a part of its
bytes, and whoever lands one holds its ``claim``, a lock that dies with its process.
"""

from __future__ import annotations

import logging
import os
import platform
import posixpath
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, TypeVar

from filelock import FileLock, Timeout

from stagesink.archive import ArchiveSource
from stagesink.artifacts import FileSource, Fingerprint, Source
from stagesink.disk import settle
from stagesink.errors import OutboxError, OutboxFull
from stagesink.manifest import ManifestEntry
from stagesink.outbox.entry import FILES, PLAN_FILE, Entry, KeptFile, Packed, overlap
from stagesink.outbox.index import DamagedIndex, Index, Row
from stagesink.outbox.local_runs import RUNS, LocalRuns
from stagesink.outbox.settings import OutboxSettings
from stagesink.outbox.snapshot import FULL, LINK_FROM, Taken, copy, is_shared, take, unshare
from stagesink.redaction import bare_uri, without_secrets_in
from stagesink.transfer.plan import Plan

T = TypeVar("T")

_log = logging.getLogger("stagesink")

_ENTRIES = "entries"
_CLAIMS = "claims"
_SYNC = "sync.lock"
_ROOM = "room.lock"
_ROOM_SECONDS = 60.0
_MANY = 32  # writers at once that there must be room for, or they go one after the other


class Outbox:
    """Uploads that wait on this disk.

    Safe for any number of threads and processes at once.

    Parameters
    ----------
    settings : OutboxSettings
        Where it lies, and how much it may take.

    Raises
    ------
    OutboxError
        The folder cannot be made, belongs to another user, or is a link.
    """

    def __init__(self, settings: OutboxSettings) -> None:
        self.settings = settings
        self.path = Path(settings.path).absolute()
        self.runs = LocalRuns(self.path / RUNS)
        self._entries = self.path / _ENTRIES
        self._index = Index(self.path / "index.db")
        self._damaged: list[Row] = []  # entries that cannot be read, and that the index never knew
        self._make()
        self._reconciled(lambda: None)

    def __repr__(self) -> str:
        return f"Outbox({str(self.path)!r})"

    def close(self) -> None:
        """Close the index. What waits stays."""
        self._index.close()

    # -- keeping -----------------------------------------------------------------------------------------------------

    def keep(
        self,
        plan: Plan,
        sink_uri: str,
        *,
        host: str = "",
        stage: str | None = None,
        slot: str | None = None,
        priority: int = 0,
        quick: bool = False,
        why: str | None = None,
    ) -> Entry:
        """Take what is to be uploaded, and return once it is whole on this disk.

        Parameters
        ----------
        plan : Plan
        sink_uri : str
            Where it is to land. Secrets in it are left out.
        host : str
            Of the store, where the URI does not say it.
        stage, slot : str, optional
        priority : int
            The smaller goes first when time is short.
        quick : bool
            Large files may be hard links for now, and nothing waits for the disk: safe from a kill at once, and from a
            power cut after :meth:`settle`.
        why : str, optional
            Why it did not land, if that was tried.

        Raises
        ------
        SourceError
            A file is gone, changed or cannot be read.
        OutboxFull
            There is no room, even without what newer uploads have superseded.
        OutboxError
            The outbox cannot be written.
        """
        entry_id = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(6)}"
        entry = Entry(
            entry_id,
            time.time(),
            bare_uri(sink_uri),
            stage,
            slot,
            priority,
            replace(plan, objects=()),
            (),
            folder=self._entries / entry_id,
            host=host,
        )
        sources, packed = _sources_of(plan)
        self._make()  # somebody may have removed it under us
        try:
            linkable = self._linkable(sources) if quick and self.settings.snapshot == "auto" else frozenset()
            copied = sum(size for path, _, size in sources if path not in linkable)
            with ExitStack() as claims:
                if self.settings.max_bytes is not None or self._lacks(_MANY * copied) > 0:
                    # What others take at the same time counts, too; but one that was stopped holds nobody up for ever.
                    room = FileLock(self.path / _ROOM, mode=0o600, thread_local=False)
                    with suppress(Timeout):
                        claims.enter_context(room.acquire(timeout=_ROOM_SECONDS))
                rows = self.rows()
                # Clocks go back, and of what waits for one place the newest is what lands.
                created = max([entry.created, *(row.created + 1e-5 for row in rows)])
                entry = replace(entry, created=created, packed=packed)
                gives_way = self._make_room(entry, rows, sum(size for _, _, size in sources), copied, claims)
                entry = self._add(entry, sources, linkable, quick=quick)
                with self._forgiving():
                    self._reconciled(lambda: self._index.add([entry], quick=quick))
                    for row in gives_way:
                        self._give_way(row)
        except OSError as error:
            self._refuse(error)
        if why is not None:
            self.note_failed(entry.id, why)
        return entry

    def settle(self, entry: Entry) -> None:
        """Wait until a quickly kept entry is on the disk, safe from a power cut.

        Raises
        ------
        OutboxError
            The disk refused.
        """
        try:
            for file in entry.files:
                settle(entry.place(file))
            settle(str(entry.folder / PLAN_FILE))
            for folder in (entry.folder / FILES, entry.folder, self._entries):
                settle(str(folder))
        except OSError as error:
            self._refuse(error)

    def secure(self, entry_id: str) -> Entry | None:
        """Make an entry safe from a power cut, and from the owner of the files that it links to.

        Returns
        -------
        Entry or None
            As it is then; None when it is held elsewhere, or gone.

        Raises
        ------
        SourceChanged, OutboxFull, OutboxError
            See :meth:`settle` and :meth:`own`.
        """
        with self.claim(entry_id) as entry:
            if entry is None:
                return None
            self.settle(entry)
            return self.own(entry)

    def own(self, entry: Entry) -> Entry:
        """Make copies of what an entry holds by links that its owner still has too, and may write into.

        Raises
        ------
        SourceChanged
            One was rewritten in place before this: what was handed over is lost. The entry stays for a look.
        OutboxFull, OutboxError
            There is no room for the copies, or the outbox cannot be written. The links stay.
        """
        try:
            files = tuple(_own(entry, file) for file in entry.files)
            if files == entry.files:
                return entry
            own = replace(entry, files=files)
            settle(str(own.folder / FILES))
            # Until this names the copies, the links are what was kept: a kill at any moment leaves one of both.
            _replace(own.folder / PLAN_FILE, own.to_bytes())
            settle(str(own.folder))
            for name in {file.name for file in entry.files} - {file.name for file in files}:
                os.unlink(own.folder / FILES / name)
        except OSError as error:
            self._refuse(error)
        return own

    # -- looking -----------------------------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """Return what waits, oldest first, as the index knows it, and then what is damaged."""
        return [*self._reconciled(self._index.rows), *self._damaged]

    def entries(self) -> list[Entry]:
        """Return what waits, oldest first. What is damaged is left out, with a warning."""
        found = []
        for row in self.rows():
            entry = self.entry(row.id)
            if entry is not None:
                found.append(entry)
        return found

    def entry(self, entry_id: str) -> Entry | None:
        """Return one entry; None when it is not there (any more), or damaged."""
        found = self._read(entry_id)
        if isinstance(found, OutboxError):
            _log.warning("%s", found)
            return None
        return found

    def is_there(self, entry_id: str) -> bool:
        """Tell whether an entry is there, be it damaged."""
        return self._read(entry_id) is not None

    def damage_of(self, entry_id: str) -> OutboxError | None:
        """Return what is wrong with an entry that is there and cannot be read."""
        found = self._read(entry_id)
        return found if isinstance(found, OutboxError) else None

    def waiting_for(self, sink_uri: str, run_id: str, path: str, host: str = "") -> list[Row]:
        """Return what waits to land at ``path``, inside it, or around it; oldest first."""
        store, names = (bare_uri(sink_uri), host), self.runs.names_of(run_id, sink_uri)
        rows = self._reconciled(lambda: self._index.rows_of(store, names))
        return [row for row in rows if overlap(row.path, path)]

    # -- landing -----------------------------------------------------------------------------------------------------

    @contextmanager
    def claim(self, entry_id: str, *, timeout: float = 0.0) -> Iterator[Entry | None]:
        """Hold an entry, so that nobody else lands or removes it. Yields None when it is held elsewhere, or gone.

        Parameters
        ----------
        entry_id : str
        timeout : float
            Seconds to wait for whoever holds it; -1 waits as long as it takes.
        """
        if not (self._entries / entry_id).is_dir():
            yield None
            return
        lock = self._lock(entry_id)
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            yield None
            return
        except OSError as error:
            self._refuse(error)
        try:
            entry = self.entry(entry_id)
            if entry is None:
                self._forget_claim(entry_id)
            yield entry
        finally:
            lock.release()

    @contextmanager
    def one_sync(self, *, wait: bool, notice: Callable[[str], None] = lambda text: None) -> Iterator[None]:
        """Be the only one in the block that syncs the whole outbox.

        Parameters
        ----------
        wait : bool
            For another one to end.
        notice : callable
            Told who that is, when there is one to wait for.

        Raises
        ------
        OutboxError
            Another one is at it, and ``wait`` is false.
        """
        lock = FileLock(self.path / _SYNC, mode=0o600, thread_local=False)
        holder = self.path / f"{_SYNC}.holder"
        try:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                who = _read_text(holder) or "another process"
                if not wait:
                    raise OutboxError(f"{who} is syncing {self.path}.", hint="Wait for it, or stop it.") from None
                notice(f"{who} is syncing {self.path}: waiting for it to end.")
                lock.acquire()
            self.gc()
            who = f"Process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M:%S')},"
            _replace(holder, who.encode())
        except OSError as error:
            self._refuse(error)
        try:
            yield
        finally:
            lock.release()

    def landed(self, entry_id: str) -> tuple[ManifestEntry, ...]:
        """Return what an interrupted landing has brought over, with paths inside the run."""
        return self._asked(lambda: self._index.landed(entry_id))

    def note_landed(self, entry_id: str, objects: Sequence[ManifestEntry]) -> None:
        """Note objects that landed. Failing that costs time later, nothing else."""
        with self._forgiving():
            self._asked(lambda: self._index.note_landed(entry_id, objects))

    def note_failed(self, entry_id: str, why: str) -> None:
        """Note why an attempt to land it failed, without the secrets of URLs that somebody else's error may quote."""
        with self._forgiving():
            self._asked(lambda: self._index.failed(entry_id, without_secrets_in(why)))

    def has_landed(self, entry_id: str) -> bool:
        """Tell whether an entry that is gone had landed, as far as is remembered."""
        return self._asked(lambda: self._index.is_done(entry_id))

    def remove(self, entry_id: str, *, for_good: bool = False, landed: bool = False) -> None:
        """Take an entry away, with its bytes. One that is not there is no error.

        Parameters
        ----------
        entry_id : str
        for_good : bool
            Also when the power fails now. What has landed needs no such care: it would be found unchanged.
        landed : bool
            It is taken away because it is where it was to go.

        Raises
        ------
        OutboxError
            The outbox cannot be written.
        """
        gone = self._entries / f".{entry_id}"
        if landed:
            with self._forgiving():
                self._asked(lambda: self._index.note_done(entry_id))  # before anybody can see that it is gone
        try:
            with suppress(FileNotFoundError):
                os.rename(self._entries / entry_id, gone)
                if for_good:
                    settle(str(self._entries))
        except OSError as error:
            self._refuse(error)
        with self._forgiving():
            self._asked(lambda: self._index.drop([entry_id]))
        shutil.rmtree(gone, ignore_errors=True)
        self._forget_claim(entry_id)

    def gc(self) -> int:
        """Remove what killed processes have left half-made, and return how many bytes that was."""
        freed = 0
        ids = {name[1:] for name in self._names() if name.startswith(".")}
        for entry_id in {*ids, *self._claimed()}:
            lock = self._lock(entry_id)
            try:
                lock.acquire(timeout=0)
            except (Timeout, OSError):
                continue  # it is being written, or being removed
            try:
                left = self._entries / f".{entry_id}"
                freed += sum(each.lstat().st_size for each in left.rglob("*"))
                shutil.rmtree(left, ignore_errors=True)
                self._forget_claim(entry_id)
            finally:
                lock.release()
        return freed

    # -- in here -----------------------------------------------------------------------------------------------------

    def _make(self) -> None:
        """Make the folder for this user alone, and refuse one that another user could have laid out."""
        wanted = () if self._entries.is_dir() else (self._entries, self.path, *self.path.parents)
        new = [each for each in wanted if not each.exists()]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self.path, self._entries, self.path / _CLAIMS):
                with suppress(FileExistsError):
                    os.mkdir(folder, 0o700)
                status = os.lstat(folder)
                if not os.path.isdir(folder) or os.path.islink(folder) or status.st_uid != os.geteuid():
                    raise OutboxError(
                        f"{folder} is a link, no folder, or another user's.",
                        hint="Name a folder of your own in artifacts.outbox.path (STAGESINK_OUTBOX_PATH).",
                    )
                if status.st_mode & 0o077:
                    os.chmod(folder, 0o700)
            ignore = self.path / ".gitignore"
            if not ignore.exists():
                with suppress(FileExistsError):  # another process was the quicker one
                    _write(ignore, b"*\n", sync=False)
            for folder in new:
                settle(str(folder.parent))  # else a power cut may take them with all that was kept
        except OSError as error:
            self._refuse(error)

    def _read(self, entry_id: str) -> Entry | OutboxError | None:
        """Read an entry; what is wrong with it when it is there and cannot be read, None when it is not there."""
        folder = self._entries / entry_id
        try:
            return Entry.read(folder)
        except OutboxError as error:
            gone = isinstance(error.__cause__, FileNotFoundError) and not os.path.lexists(folder)
            return None if gone else error  # what the disk refuses to tell is there

    def _lock(self, entry_id: str) -> FileLock:
        # Beside the entry, not in it: the lock is there before its folder, and the library makes missing folders.
        return FileLock(self.path / _CLAIMS / entry_id, mode=0o600, thread_local=False)

    def _claimed(self) -> set[str]:
        """Return the ids that have a lock file and no entry."""
        claims = {each.name for each in (self.path / _CLAIMS).iterdir()}
        return claims - set(self._names())

    def _forget_claim(self, entry_id: str) -> None:
        """Remove the lock file of an entry that is gone. No other will ever have its id."""
        with suppress(OSError):  # also where the disk does not tell whether it is gone
            if not (self._entries / entry_id).exists():
                os.unlink(self.path / _CLAIMS / entry_id)

    def _refuse(self, error: OSError) -> NoReturn:
        reason = error.strerror or str(error)
        if error.errno in FULL:
            raise OutboxFull(f"The disk of the outbox {self.path} is full: {reason}.") from error
        raise OutboxError(f"The outbox {self.path} cannot be used: {reason}.") from error

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        """Go on without the index: the folders are the truth, and the next one to open it mends it."""
        try:
            yield
        except OutboxError as error:
            _log.warning("%s", error)

    def _reconciled(self, ask: Callable[[], T]) -> T:
        """Ask the index, once it knows what the folders hold."""
        return self._asked(ask, adopt=True)

    def _asked(self, ask: Callable[[], T], *, adopt: bool = False) -> T:
        """Ask the index; about one entry that it told of before, it need not look at all the others' folders."""
        for last in (False, True):
            try:
                self._make()  # somebody may have removed it under us
                if adopt or last:
                    self._adopt()
                return ask()
            except DamagedIndex as error:
                if last:
                    raise
                self._mend(error)
        raise AssertionError

    def _mend(self, error: DamagedIndex) -> None:
        with FileLock(self.path / "mending.lock", mode=0o600, timeout=60):
            if not self._index.is_sound():  # else another process was the quicker one
                aside = self._index.set_aside()
                _log.warning("%s. It is now %s, and was made anew from the entries.", error.message, aside)

    def _adopt(self) -> None:
        there = {name for name in self._names() if not name.startswith(".")}
        known = self._index.ids()
        new = {entry_id: self._read(entry_id) for entry_id in sorted(there - known)}
        if found := [entry for entry in new.values() if isinstance(entry, Entry)]:
            self._index.add(found)
        self._damaged = [
            Row.damaged(entry_id, error.message) for entry_id, error in new.items() if isinstance(error, OutboxError)
        ]
        if gone := known - there:
            self._index.drop(gone)

    def _names(self) -> list[str]:
        try:
            return os.listdir(self._entries)
        except FileNotFoundError:
            return []
        except OSError as error:
            self._refuse(error)

    def _add(
        self, entry: Entry, sources: Sequence[tuple[str, Source, int]], linkable: frozenset[str], *, quick: bool
    ) -> Entry:
        """Take the bytes, and let the entry appear once they are whole."""
        part = self._entries / f".{entry.id}"
        with self._lock(entry.id):
            try:
                os.mkdir(part, 0o700)
                os.mkdir(part / FILES, 0o700)
                files = tuple(
                    _take(number, path, source, part / FILES, may_link=path in linkable, sync=not quick)
                    for number, (path, source, _) in enumerate(sources)
                )
                entry = replace(entry, files=files)
                _write(part / PLAN_FILE, entry.to_bytes(), sync=not quick)
                if not quick:
                    settle(str(part / FILES))
                    settle(str(part))
                os.rename(part, entry.folder)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
        if not quick:
            settle(str(self._entries))
        return entry

    def _linkable(self, sources: Sequence[tuple[str, Source, int]]) -> frozenset[str]:
        """Name what may be a hard link for now: large files that were never seen rewritten in place."""
        found = {
            path: (os.path.abspath(source.path), source.fingerprint())
            for path, source, size in sources
            if isinstance(source, FileSource) and size >= LINK_FROM
        }
        rewritten: set[str] = set()
        with self._forgiving():
            rewritten = self._reconciled(lambda: self._index.rewritten(list(found.values())))
        return frozenset(path for path, (place, _) in found.items() if place not in rewritten)

    def _make_room(self, entry: Entry, rows: Sequence[Row], wanted: int, copied: int, claims: ExitStack) -> list[Row]:
        """See that there is room, at the cost of what the new entry supersedes, oldest first; refuse if there is none.

        Returns what gives way once the new one is there, held until then: nothing goes for one that never comes. Only a
        disk that is full needs the room before. A link takes none of the disk now, but counts for what the outbox may
        hold: its owner may delete the file.
        """
        most, used = self.settings.max_bytes, sum(row.bytes for row in rows)
        if self._lacks(copied) > 0:
            self.gc()  # what killed processes have left half-made, before anything that is whole
        lacking = self._lacks(copied)
        if lacking <= 0 and (most is None or used + wanted <= most):
            return []
        superseded = [row for row in rows if not entry.upload.adds and _same_slot(row, entry)]
        short = 0 if most is None else used + wanted - most
        if short > sum(row.bytes for row in superseded):
            raise self._full(entry, wanted, used, f"{most:,} bytes are its most")
        frees = {row.id: self._frees(row) if lacking > 0 else 0 for row in superseded}
        if lacking > 0 and lacking > sum(frees.values()):
            raise self._full(entry, wanted, used, "the disk is full")
        free: list[Row] = []
        given, freed = 0, 0
        for row in superseded:  # no more than it takes: each that is held is an open file
            if given >= short and freed >= lacking:
                break
            if claims.enter_context(self.claim(row.id)) is not None:  # what is landing just now gives way to nobody
                free.append(row)
                given += row.bytes
                freed += frees[row.id]
        if given < short or freed < lacking:
            limit = "the disk is full" if freed < lacking else f"{most:,} bytes are its most"
            raise self._full(entry, wanted, used, limit)
        gives_way = []
        for row in free:
            if self._lacks(copied) > 0:
                self._give_way(row)
            elif most is not None and used + wanted > most:
                gives_way.append(row)
            else:
                break
            used -= row.bytes
        if self._lacks(copied) > 0:
            raise self._full(entry, wanted, used, "the disk is full")
        return gives_way

    def _lacks(self, copied: int) -> int:
        """Return how many bytes the disk lacks for so many more; not above 0 when it has room."""
        return copied + self.settings.keep_free - shutil.disk_usage(self._entries).free

    def _frees(self, row: Row) -> int:
        """Return how many bytes the disk may have back when an entry is removed: of links that others share, none.

        Whether others share a reflink's bytes cannot be told.
        """
        entry = self.entry(row.id)
        if entry is None:
            return 0
        freed = 0
        for file in entry.files:
            with suppress(FileNotFoundError):
                if os.lstat(entry.place(file)).st_nlink == 1:
                    freed += file.size
        return freed

    def _give_way(self, row: Row) -> None:
        """Remove an entry, which is held, for the sake of a newer one."""
        _log.warning(
            "The outbox is full: %s of run %s, kept %s, gives way to a newer one and was NOT uploaded.",
            *(row.path, row.run_id, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.created))),
        )
        self.remove(row.id)

    def _full(self, entry: Entry, wanted: int, used: int, limit: str) -> OutboxFull:
        return OutboxFull(
            f"The outbox {self.path} has no room for {entry.path} ({wanted:,} bytes; {used:,} wait; {limit})."
        )


def _same_slot(row: Row, entry: Entry) -> bool:
    """Tell whether the new entry does for the old one: the same destination, or a newer checkpoint of the same slot."""
    if (row.store, row.run_id) != (entry.store, entry.run_id) or row.adds:
        return False
    if row.path == entry.path:
        return True
    if entry.upload.share is not None and posixpath.basename(row.path) != posixpath.basename(entry.path):
        return False  # another rank's share, maybe of the same checkpoint: without it that one never is whole
    return entry.slot is not None and entry.upload.kind != "file" and (row.stage, row.slot) == (entry.stage, entry.slot)


def _sources_of(plan: Plan) -> tuple[list[tuple[str, Source, int]], Packed | None]:
    """Return what must be kept to carry the plan out later: path, bytes, and how many."""
    if len(plan.objects) == 1 and isinstance(source := plan.objects[0].source, ArchiveSource):
        # Its files, not the archive: packing takes time, and whoever lands it makes the same bytes of them.
        packed = Packed(source.archive_format, source.level, source.prefix)
        return [(file.path, file.source, file.size) for file in source.tree.files], packed
    return [(item.key.path, item.source, item.size or 0) for item in plan.objects], None


def _take(number: int, path: str, source: Source, folder: Path, *, may_link: bool, sync: bool) -> KeptFile:
    name = f"{number:06}"
    target = str(folder / name)
    if isinstance(source, FileSource):
        taken = take(source, target, may_link=may_link, sync=sync)
    else:
        sha256 = copy(source, target)
        if sync:
            settle(target)
        taken = Taken("copy", Fingerprint.of(os.stat(target)), sha256)
    return KeptFile(path, name, taken.fingerprint.size, taken.how, taken.fingerprint, taken.sha256)


def _own(entry: Entry, file: KeptFile) -> KeptFile:
    if file.how != "link":
        return file
    place = entry.place(file)
    if entry.source(file).is_untouched() and not is_shared(place):
        return replace(file, how="copy")  # its owner has let go of it
    own = replace(file, how="copy", name=f"0{file.name}")  # no other file's: those of seven digits begin with another
    taken = unshare(place, file.fingerprint, entry.place(own))
    return replace(own, fingerprint=taken.fingerprint, sha256=taken.sha256)


def _write(path: Path, data: bytes, *, sync: bool) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
        if sync:
            file.flush()
            os.fsync(file.fileno())


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.unlink(missing_ok=True)
    _write(temporary, data, sync=True)
    os.replace(temporary, path)
