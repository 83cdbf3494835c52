"""Taking turns: of several writers at one place, one after the other.

A tree is many objects under fixed names, and its manifest is one more. Two processes that write them at once would
leave one's object under the other's manifest, and a look after the commit does not help: the other may overwrite an
object after the look and die before its own commit. So a writer takes a turn before it changes anything, and ends it
after its commit.

A turn is a :class:`.Note`. A writer **puts its note, then lists**, and writes only if the listing shows no other that
meets it. Of two writers, each put before it listed, so whichever listed last has seen the other: both cannot go on.
All it takes is that a store lists what was put, which all of ours do; no lock, no conditional put, no clock.

Who sees another waits. Of all who wait, the one whose note has the smallest name leaves it there, the others take
theirs away and look again: so one of them always gets on. A name begins with the time, which is for fairness alone.

A writer that died leaves its note.

- On the same machine, process ids tell that it is dead, and the note is removed at once.
- Otherwise a living writer replaces its note every quarter minute by one with another name, and a note that has not
  changed for a minute, by the watch of the one who waits, is removed. Whoever removed one lists again before it
  writes.
- A writer that was only slow, or whose machine slept, finds its note removed: when it replaces it, it **puts the new
  one, lists, and takes the old one away**. If the old one is in the listing, nobody has removed it before; who does
  so after that lists after that, and sees the new one. If it is not, another may be writing: the turn is lost, and
  the upload fails before its commit, with :class:`~stagesink.errors.SinkConflict`. Before a commit this is asked anew
  when the last answer is older than half a minute.

What is left: a request that is under way when its sender dies, or sleeps a minute through, and that the store carries
out after all, later than the next writer's own. No store that we know lets one forbid that for plain objects.

Where a store is known to be unable to remove anything, as through mlflow's own client, each turn would leave an empty
note for good: a writer that writes alone looks for others there, and leaves none itself. Two at once can mix there.

Cost: a put and a listing before the first question, and a removal at the end, side by side with the look at the
manifest: two round trips more than without. What lies there is asked after the listing, not beside it: another may
commit and end its turn between an answer and the listing, which then shows nobody.

Those of one group (the ranks of a job) take one turn together; see :mod:`stagesink.transfer.ranks`.
"""

from __future__ import annotations

import json
import logging
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timezone

from stagesink.errors import SinkConflict, StagesinkError, TransferCancelled, TransientSinkError
from stagesink.interrupts import interrupts_whole
from stagesink.sinks.protocol import ArtifactSink
from stagesink.transfer.alive import is_dead, me
from stagesink.transfer.notes import ALONE, Note, Notes, Place, place_of
from stagesink.transfer.pool import stepping_aside
from stagesink.transfer.retry import RetryPolicy

logger = logging.getLogger(__name__)

STALE_SECONDS = 60.0
"""After so long without a change a note counts as left by a dead process."""

_RENEWED = 4  # times within that
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 2.0  # seconds between two looks

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while a machine sleeps, where there is one


_under_way: set[str] = set()
"""The tokens of this process's turns."""


class Turn:
    """One writer's turn at a place of a run.

    Parameters
    ----------
    sink : ArtifactSink
    run_id : str
    paths : sequence of str
        What is written: one upload's path, or those of several, which take the whole run.
    retry : RetryPolicy
    cancel : threading.Event
        Ends a wait.
    patience : float
        Seconds to wait for others that are alive.
    group : str
        ``ALONE``, or the name of a group and, after a plus, of one in it: those of one group do not wait for each
        other, but two with the very same name do.
    """

    def __init__(
        self,
        sink: ArtifactSink,
        run_id: str,
        paths: Sequence[str],
        retry: RetryPolicy,
        cancel: threading.Event,
        patience: float,
        group: str = ALONE,
    ) -> None:
        self.run_id = run_id
        self.place: Place = place_of(paths)
        self.notes = Notes(sink, run_id)
        self.seen: list[Note] = []
        """What the last listing showed: notes of all kinds."""
        self.answer = 0.0
        """Seconds that the store took for it."""
        self._what = f"{run_id}/{paths[0]}" if len(paths) == 1 else f"The run {run_id}"
        self._uri = sink.uri
        self._retry = retry
        self._cancel = cancel
        self._patience = max(patience, 1.5 * STALE_SECONDS)
        self._group = group
        self._token = f"{time.time_ns():016x}{secrets.token_hex(4)}"
        self._renewals = 0
        self._note: Note | None = None
        self._strays: list[Note] = []  # put, and perhaps not taken away
        self._since = 0.0  # when the note was put
        self._mine = self._lost = self._silent = False
        self._ended = threading.Event()
        self._renewing = threading.Lock()

    @property
    def is_mine(self) -> bool:
        """Whether it was taken, and did not end."""
        return self._mine and not self._ended.is_set()

    # -- its way -------------------------------------------------------------------------------------------------------

    def announce(self) -> None:
        """Put the note."""
        self._silent = self._group == ALONE and not self._retry.call(self.notes.can_remove)
        if self._silent:
            return
        _under_way.add(self._token)
        note = self._next_note()
        self._since = _now()
        with self._renewing:
            self._note = note
        self._retry.call(lambda: self.notes.put(note, _who_writes()))

    def wait(self, until: Callable[[Sequence[Note]], bool] | None = None) -> bool:
        """Return once nobody else writes here; :meth:`announce` comes first.

        Parameters
        ----------
        until : callable, optional
            Given all notes at each look; when it returns True the turn is no longer wanted.

        Returns
        -------
        bool
            Whether it is this one's turn at once, with nobody else met. False too when it is not wanted any more.

        Raises
        ------
        SinkConflict
            Somebody else went on writing for too long.
        """
        first_seen: dict[str, float] = {}
        met = False
        deadline = _now() + self._patience
        pause = _FIRST_PAUSE
        while True:
            self.seen = self._retry.call(self._look)
            others = [note for note in self.seen if self._minds(note)]
            if self._ended.is_set():
                return False
            if until is not None and until(self.seen):
                self.end()
                return False
            if not others and (self._note is not None or self._silent):
                self._mine = True
                if self._silent:
                    return not met
                threading.Thread(target=self._keep_renewing, name="stagesink-turn", daemon=True).start()
                return not met
            if not others:
                self.announce()
                continue
            met = True
            now = _now()
            over = [n for n in others if _is_over(n) or now - first_seen.setdefault(n.path, now) >= STALE_SECONDS]
            for note in over:
                self._retry.call(lambda note=note: self.notes.remove(note))  # type: ignore[misc]
                logger.debug("%s: removed what a dead writer left: %s", self._uri, note.path)
            if len(over) < len(others):
                self._step_back(others)
            if now >= deadline and len(over) < len(others):
                self.end()
                raise self._conflict(others[0])
            self._pause(pause if len(over) < len(others) else _FIRST_PAUSE)
            pause = min(_LONGEST_PAUSE, 1.5 * pause)

    def _look(self) -> list[Note]:
        asked = time.monotonic()
        found = self.notes.list()
        self.answer = time.monotonic() - asked
        return found

    def check(self) -> None:
        """See that the turn was not lost; before a commit.

        Raises
        ------
        SinkConflict
            Another writer took this one for dead.
        """
        if self._silent:
            return
        if self._note is not None and _now() - self._since > STALE_SECONDS / 2:
            self._retry.call(self._renew)
        if self._lost or self._note is None:
            raise SinkConflict(
                f"{self._what}: another process took this one for dead and went on in its place, since "
                f"{self._uri} had not heard of it for {STALE_SECONDS:g} s.",
                hint="Upload it again.",
            )

    def end(self) -> None:
        """Let others write. Never raises a sink's error: whoever comes next waits until the note counts as stale."""
        self._ended.set()
        _under_way.discard(self._token)
        with self._renewing:
            notes = [*self._strays, *([] if self._note is None else [self._note])]
            self._note, self._strays = None, []
            try:
                for note in notes:
                    try:
                        self.notes.remove(note)
                    except TransientSinkError:
                        # Once more, and without a wait: the upload is whole, or failed already with a better reason.
                        self.notes.remove(note)
            except StagesinkError as error:
                # No warning: where this fails the upload has mostly failed too, and has said why.
                logger.info(
                    "%s Another process's next upload to %s may wait %g s because of it.",
                    *(error.message, self._what, STALE_SECONDS),
                )

    # -- parts of it ---------------------------------------------------------------------------------------------------

    def _minds(self, other: Note) -> bool:
        if other.kind != "turn" or other.rest[1] == self._token or not other.meets(self.place):
            return False
        return not share_turns(self._group, other.group)

    def _step_back(self, others: Sequence[Note]) -> None:
        """Leave the note only to the first of those who wait; but renew it, so that it is seen to be alive."""
        if self._note is None:
            return
        if min(note.rest[1] for note in others) < self._token:
            with self._renewing:
                note, self._note = self._note, None
                self._strays.append(note)
            self._retry.call(lambda: self.notes.remove(note))
            self._strays.remove(note)
        elif _now() - self._since > STALE_SECONDS / _RENEWED:
            self._retry.call(self._renew)
            self._lost = False  # it has not begun: removed or not, it looks before it writes

    def _keep_renewing(self) -> None:
        while not self._ended.wait(STALE_SECONDS / _RENEWED) and not self._lost:
            with suppress(StagesinkError):  # tried again a quarter minute later, and before the commit
                self._renew()

    def _renew(self) -> None:
        with self._renewing:
            old = self._note
            if old is None:
                return
            new, begun = self._next_note(), _now()
            self._strays.append(new)
            self.notes.put(new, _who_writes())
            self._lost = self._lost or old not in self.notes.list()
            self._note, self._since = new, begun
            self._strays[-1] = old
            self.notes.remove(old)
            self._strays.pop()

    def _next_note(self) -> Note:
        # None of a turn's names may begin with another: some servers remove whatever begins with a name.
        self._renewals += 1
        return Note("turn", self.place, self._group, (me(), self._token, f"{self._renewals}r"))

    def _pause(self, seconds: float) -> None:
        with interrupts_whole(), stepping_aside():
            stopped = self._cancel.wait(seconds * random.uniform(0.5, 1.5))
        if stopped:
            self.end()
            raise TransferCancelled("The transfer was stopped while it waited for another one to the same place.")

    def _conflict(self, other: Note) -> SinkConflict:
        who = ""
        with suppress(StagesinkError, ValueError, KeyError, TypeError):
            said = json.loads(self.notes.read(other))
            who = f": process {int(said['pid'])} on {str(said['host'])[:80]!a}, since {ascii(said['since'])[:40]}"
        return SinkConflict(
            f"{self._what} is being written by somebody else{who}.",
            hint="Upload it again when that has ended; artifacts.retries.budget is how long is waited for it.",
        )


def share_turns(one: str, other: str) -> bool:
    """Tell whether two write together: two of one group, and not one of them twice."""
    (group, plus, _), (others, _, _) = one.partition("+"), other.partition("+")
    return bool(plus) and group == others and one != other


def _is_over(note: Note) -> bool:
    """Tell whether its writer is surely done: dead, or a turn of this process that ended and could not say so."""
    who, token, *_ = note.rest
    return token not in _under_way if who == me() else is_dead(who)


def _who_writes() -> bytes:
    """For people; what the protocol needs is in the name."""
    since = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return json.dumps({"host": socket.gethostname(), "pid": me().split("-")[1], "since": since}).encode()


def _now() -> float:
    return time.clock_gettime(_CLOCK)
