"""When the machine is taken away: what is on its way lands, or is kept, before the process leaves.

A signal handler runs in the main thread between any two lines of it, with whatever locks those hold. So ours does next
to nothing: it notes the time, wakes a thread, and calls the handler that was there before. The thread does the rest,
while the main thread goes on: training is not stopped by us, and what it hands over meanwhile is taken too. At the end
of the deadline, or as soon as nothing is left to do, that thread ends the process, if the signal would have ended it.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

from stagesink.errors import ConfigError, DrainError, OutboxError, StagesinkError

if TYPE_CHECKING:
    from stagesink.outbox.entry import Entry
    from stagesink.outbox.store import Outbox

_log = logging.getLogger("stagesink")

DEADLINE = 25.0
"""Seconds: most platforms grant 30 between their notice and the end."""

_LONGEST = 86400.0
_SAME_NOTICE = 1.0  # seconds: a terminal, a wrapper and a batch system may each pass the same notice on
_RESERVE = 0.2  # of the deadline, for making safe what could not land

Handler = Callable[[int, FrameType | None], object]


def install_drain(deadline: float = DEADLINE, signals: Iterable[int] = (signal.SIGTERM, signal.SIGINT)) -> None:
    """When a signal says that the machine is taken away, upload what is small and valuable, and keep the rest.

    From the signal on, what waits for upload in the background goes by priority and size, several at once; an upload
    in the foreground is kept in the outbox as well. What has not landed by the deadline waits there. Handlers that were
    there before are called at once, as before: Python's own raises KeyboardInterrupt, a trainer's own may go on to its
    last checkpoint. Where there was none, training goes on until all is done, and the process then dies of the signal.
    A second signal, more than a second after the first, ends it at once.

    Parameters
    ----------
    deadline : float
        Seconds from the signal.
    signals : iterable of int
        Add what your platform sends as its notice, for example ``signal.SIGUSR1`` for Slurm's ``--signal``. One that
        this process ignores stays ignored.

    Raises
    ------
    DrainError
        Called in another thread than the main one, or a signal cannot be handled.
    ConfigError
        The deadline is none.

    Examples
    --------
    >>> stagesink.install_drain(deadline=100)  # Google's and Azure's notices come earlier than Kubernetes'
    """
    global _drain
    if not 0 < deadline <= _LONGEST:
        raise ConfigError(f"The deadline is {deadline!r}.", hint="It takes seconds, more than 0 and up to a day.")
    if threading.current_thread() is not threading.main_thread():
        raise DrainError(
            "The drain can only be installed in the main thread.",
            hint="Call stagesink.install_drain() there, before training starts, or start it with `stagesink run`.",
        )
    if _drain is None:
        _drain = _Drain()
    _drain.deadline = float(deadline)
    for each in signals:
        _drain.listen_to(each)


def install_wanted_drain(deadline: float | None) -> None:
    """Install it as the configuration says, unless it is there or this is not the main thread."""
    if deadline is not None and _drain is None and threading.current_thread() is threading.main_thread():
        try:
            install_drain(deadline)
        except DrainError as error:
            _log.warning("%s", error)


@contextmanager
def kept_on_a_signal(
    keep: Callable[[], Sequence[Entry]],
    land: Callable[[Sequence[Entry]], object],
    outbox: Callable[[], Outbox],
    kept: list[Entry],
) -> Iterator[None]:
    """Keep the upload of the block when a signal comes meanwhile, or has come.

    Parameters
    ----------
    keep : callable
        Keeps it, quickly, and returns the entries.
    land : callable
        Has entries uploaded in the background: those of a block that the signal has ended.
    outbox : callable
        Returns the outbox that it is kept in.
    kept : list of Entry
        Gets the entries of a block that has failed.
    """
    drain = _drain
    if drain is None:
        yield
        return
    upload = _Upload(keep, outbox)
    drain.uploads.append(upload)  # one bytecode: no lock, nothing to be interrupted in
    try:
        if drain.is_on:
            upload.keep()
        yield
    except Exception:
        kept += upload.as_kept()
        raise  # it failed, and its caller keeps what may land later
    except BaseException:
        if drain.is_on:
            land(upload.keep())
        raise
    else:
        upload.has_landed()
    finally:
        drain.uploads.remove(upload)


class _Upload:
    """An upload in the foreground."""

    def __init__(self, keep: Callable[[], Sequence[Entry]], outbox: Callable[[], Outbox]) -> None:
        self._keep = keep
        self._outbox = outbox
        self._lock = threading.Lock()
        self._done = False
        self._entries: Sequence[Entry] = ()

    def keep(self) -> Sequence[Entry]:
        """Keep it, once, whoever asks first."""
        with self._lock:
            if not self._done:
                self._done = True
                try:
                    self._entries = self._keep()
                except StagesinkError as error:
                    _log.error("An upload that was under way could not be kept: %s", error)
            return self._entries

    def as_kept(self) -> Sequence[Entry]:
        """Return what was kept of it, and keep nothing from now on."""
        with self._lock:
            self._done = True
            return self._entries

    def secure(self) -> int:
        """Make what was kept of it safe for long, and return how many entries that are."""
        for entry in self._entries:
            try:
                self._outbox().secure(entry.id)
            except StagesinkError as error:  # it is safe from the end of this process all the same
                _log.warning("%s: %s", entry.path, error)
        return len(self._entries)

    def has_landed(self) -> None:
        """Take away what was kept of it."""
        with self._lock:
            self._done = True
            for entry in self._entries:
                with suppress(OutboxError):  # `stagesink sync` sees that it is there
                    self._outbox().remove(entry.id)


class _Notice:
    """One time that the machine is taken away: from its first signal to the deadline."""

    def __init__(self, until: float) -> None:
        self.until = until
        self.handled_at: float | None = None  # the handler may run late, while the thread is at it already
        self.given_up = False
        self.ends_by: int | None = None
        self.done = threading.Event()

    @property
    def is_on(self) -> bool:
        return time.monotonic() < self.until and not self.given_up


class _Drain:
    """Listens for signals, and serves their notices. One per process."""

    def __init__(self) -> None:
        from stagesink.outbox.background import before_threads_end  # brings sqlite3: not before it is asked for

        self.deadline = DEADLINE
        self.uploads: list[_Upload] = []
        self._pid = os.getpid()
        self._handlers: dict[int, tuple[Handler, Handler | int]] = {}
        self._notice: _Notice | None = None
        self._next: dict[_Notice | None, _Notice] = {}
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        # The interpreter's own handler writes there too, also while the main thread is stuck in a call of C.
        other = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        if other != -1:
            signal.set_wakeup_fd(other)
        before_threads_end(self._wait)
        threading.Thread(target=self._watch, name="stagesink-drain", daemon=True).start()

    @property
    def is_on(self) -> bool:
        """Whether a signal has come, and neither the deadline nor a second one."""
        return self._notice is not None and self._notice.is_on

    def listen_to(self, signum: int) -> None:
        try:
            name = signal.Signals(signum).name
            previous = signal.getsignal(signum)
            known = self._handlers.get(signum)
            if previous == signal.SIG_IGN or (known is not None and previous is known[0]):
                return
            if previous is None:
                raise DrainError(f"{name} is handled outside of Python.", hint="Leave it out of `signals`.")
            handler = self._make_handler(previous)
            signal.signal(signum, handler)
        except (OSError, ValueError) as error:
            raise DrainError(f"Signal {signum} cannot be handled.", hint="Leave it out of `signals`.") from error
        self._handlers[signum] = (handler, previous)

    def leave_to_parent(self) -> None:
        """Forget it in a forked child: the uploads are the parent's, and so is the pipe."""
        told = signal.set_wakeup_fd(-1)
        if told != self._writing:
            signal.set_wakeup_fd(told)
        for signum, (handler, previous) in self._handlers.items():
            if signal.getsignal(signum) is handler:
                signal.signal(signum, previous)
        os.close(self._reading)
        os.close(self._writing)

    # -- in the main thread: nothing here may wait for a lock, since this thread may hold it ---------------------------

    def _make_handler(self, previous: Handler | int) -> Handler:
        from stagesink.outbox.background import give_up

        served: _Notice | None = None

        def handle(signum: int, frame: FrameType | None) -> None:
            nonlocal served
            notice = self._note() if os.getpid() == self._pid else None
            if notice is not None:
                now = time.monotonic()
                if notice.handled_at is None:
                    notice.handled_at = now
                elif now - notice.handled_at > _SAME_NOTICE:
                    notice.given_up = True
                    give_up()
                elif served is notice and previous is signal.default_int_handler:
                    return  # another KeyboardInterrupt would only cut off what the first one has begun
                served = notice
            if callable(previous):
                if notice is not None:
                    self._tell(signum)
                previous(signum, frame)
            elif notice is None or notice.given_up:
                _die_of(signum)
            else:
                notice.ends_by = signum
                self._tell(signum)

        return handle

    def _note(self) -> _Notice:
        """Return the notice that this signal belongs to: the thread may ask at the same moment, and gets the same."""
        current = self._notice
        now = time.monotonic()
        if current is None or now >= current.until:
            current = self._next.setdefault(current, _Notice(now + self.deadline))
            self._notice = current
        return current

    def _tell(self, signum: int) -> None:
        with suppress(BlockingIOError):  # it has been told often enough
            os.write(self._writing, bytes([signum]))

    def _wait(self) -> None:
        """Let the thread finish, at the end of the process."""
        notice = self._notice
        if notice is None or os.getpid() != self._pid:
            return
        with suppress(KeyboardInterrupt):
            while notice.is_on and not notice.done.wait(0.1):
                pass
        if notice.ends_by is not None:
            _die_of(notice.ends_by)

    # -- in the thread -----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while told := os.read(self._reading, 1):
            signum = told[0]
            if signum in self._handlers:
                self._serve(signum)

    def _serve(self, signum: int) -> None:
        notice = self._note()
        if not notice.done.is_set():
            # In a thread of its own: a disk or a store that hangs must not hold up the end.
            work = threading.Thread(target=self._drain, args=[signum, notice], name="stagesink-drain-work", daemon=True)
            with suppress(RuntimeError):  # the interpreter shuts down: nothing can be done any more
                work.start()
                work.join(max(0.0, notice.until - time.monotonic()))
        handler, previous = self._handlers[signum]
        if notice.ends_by is not None:
            _die_of(notice.ends_by)
        elif previous == signal.SIG_DFL and signal.getsignal(signum) is handler:
            _die_of(signum)  # nobody else handles it, and the main thread was too busy to run the handler
        notice.done.set()

    def _drain(self, signum: int, notice: _Notice) -> None:
        from stagesink.outbox import background

        name = signal.Signals(signum).name
        lands_until = notice.until - _RESERVE * self.deadline
        background.hurry(notice.until)
        for upload in list(self.uploads):
            if notice.is_on:
                upload.keep()
        uploaders = background.uploaders_here()
        for uploader in uploaders:
            uploader.flush(max(0.0, lands_until - time.monotonic()), waits_for_others=False)
        while self.uploads and notice.is_on and time.monotonic() < lands_until:
            time.sleep(0.05)  # they go on, in threads of their callers
        for upload in list(self.uploads) if notice.is_on else ():
            if left := upload.secure():
                _log.warning("%s: %d uploads under way are kept: `stagesink sync` uploads them.", name, left)
        for uploader in uploaders if notice.is_on else ():
            if left := uploader.secure(notice.until):
                _log.warning(
                    "%s: %d uploads wait in %s: `stagesink sync` uploads them.", name, left, uploader.outbox.path
                )


_drain: _Drain | None = None


def _die_of(signum: int) -> None:
    """End this process as the signal does that nobody handles, in whatever thread.

    ``signal.signal`` works in the main thread alone, which may be stuck.
    """
    ctypes.pythonapi.PyOS_setsig(ctypes.c_int(signum), ctypes.c_void_p(None))  # None: SIG_DFL
    os.kill(os.getpid(), signum)


def _leave_to_parent_after_fork() -> None:
    global _drain
    drain, _drain = _drain, None
    if drain is not None:
        drain.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent_after_fork)
