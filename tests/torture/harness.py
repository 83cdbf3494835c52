"""Kills work at any moment, looks at once, has it done anew to its end, and looks again."""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from torture.boundaries import MOMENTS
from torture.expected import Sources, Verdict
from torture.jobs import Kill, Worker, start_worker
from torture.phases import PHASES, Phase, Setting
from torture.stores import Store, open_store

_TEARABLE = ("write", "send", "sendall", "tls send")
_THREADS = 4
_TRIES = 4  # at a call that was not hit


@dataclass
class Row:
    """What came of one phase on one store.

    Attributes
    ----------
    store, phase : str
    boundaries : int
        Calls that matter in the work, by the client that has most.
    hit : int
        How many of those, over all clients, a kill has hit with one thread.
    kills : int
        Workers that were killed before they were done.
    by_time : int
        Of those, the ones killed by a clock.
    late : int
        Workers that were done before their time came; they count for nothing.
    lost, half_visible, duplicated : int
        Kills after which an independent reader found that.
    failures : list of str
        What was found, each with the command that repeats it.
    died_at : dict
        Kills by the name of the call.
    seconds : float
    """

    store: str
    phase: str
    boundaries: int = 0
    hit: int = 0
    kills: int = 0
    by_time: int = 0
    late: int = 0
    lost: int = 0
    half_visible: int = 0
    duplicated: int = 0
    failures: list[str] = field(default_factory=list)
    died_at: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


class Torture:
    """Kills in one store, with one worker.

    Parameters
    ----------
    store : Store
    worker : Worker
    folder : Path
        Of its own; gets what is uploaded.
    seed : int
        Decides what is uploaded, and when the worker dies.
    say : callable
        Told of each failure at once.
    """

    def __init__(
        self, store: Store, worker: Worker, folder: Path, seed: int, say: Callable[[str], None] = print
    ) -> None:
        self.store = store
        self.worker = worker
        self.folder = folder
        self.seed = seed
        self.say = say
        self.sources = Sources.make(folder / "sources", seed)

    def run(self, phase: str, kills: int, *, until: float | None = None, every_call: bool = False) -> Row:
        """Kill work of one phase so many times; fewer when ``time.monotonic()`` has come to ``until``.

        With ``every_call`` it goes on until each call was hit, as far as a few tries get there: with threads at work
        a call may come at another number in each run.
        """
        row, start = Row(self.store.name, phase), time.monotonic()
        clients = {
            name: _Client(self._phase(phase, name), name, self.seed) for name in dict.fromkeys(self.store.clients)
        }
        row.boundaries = sum(len(client.names) for client in clients.values())
        hit: set[tuple[str, int]] = set()
        plans = {name: client.kills() for name, client in clients.items()}
        for name in itertools.cycle(self.store.clients):
            if row.kills >= kills or (until is not None and time.monotonic() > until):
                break
            kill = next(plans[name])
            if self._once(row, clients[name].phase, kill) and kill.at and kill.workers == 1:
                hit.add((kill.client, kill.at))
        for _ in range(_TRIES if every_call else 0):
            for client in clients.values():
                for kill in client.kills_at(hit):
                    if self._once(row, client.phase, kill):
                        hit.add((kill.client, kill.at))
        row.hit = len(hit)
        row.seconds = time.monotonic() - start
        return row

    def once(self, phase: str, kill: Kill) -> Row:
        """Kill once, at a given moment."""
        row = Row(self.store.name, phase)
        self._once(row, self._phase(phase, kill.client), kill)
        return row

    def _phase(self, name: str, client: str) -> Phase:
        folder = self.folder / f"{name}-{client}"
        folder.mkdir(exist_ok=True)
        return PHASES[name](Setting(self.store, self.worker, self.sources, folder), client)

    def _once(self, row: Row, phase: Phase, kill: Kill) -> bool:
        """Do it, and tell whether the worker was killed before it was done."""
        run, steps = phase.begin(Random(f"{self.seed} {kill}"))
        folder = phase.setting.folder
        answer = self.worker.do(run, steps, folder, kill)
        problems: list[tuple[str, Verdict]] = []
        killed = answer.ended == "killed"
        if killed:
            row.kills += 1
            row.by_time += kill.seconds is not None
            at = answer.at or "by time"
            row.died_at[at] = row.died_at.get(at, 0) + 1
            problems.append(("At once", phase.at_once()))
            answer = self.worker.do(run, phase.again(steps), folder, Kill(client=kill.client, workers=_THREADS))
        else:
            row.late += 1
            if answer.ended == "done" and phase.again(steps) != steps:
                answer = self.worker.do(run, phase.again(steps), folder, Kill(client=kill.client, workers=_THREADS))
        if answer.ended != "done":
            problems.append(("Done anew", Verdict(lost=[f"it failed: {answer.why}"])))
        problems.append(("At the end", phase.at_the_end()))
        phase.end()
        self._note(row, kill, problems)
        return killed

    def _note(self, row: Row, kill: Kill, problems: list[tuple[str, Verdict]]) -> None:
        found = [(when, verdict) for when, verdict in problems if verdict]
        if not found:
            return
        for kind in ("lost", "half_visible", "duplicated"):
            setattr(row, kind, getattr(row, kind) + any(getattr(verdict, kind) for _, verdict in found))
        again = f"python tests/torture {row.store} --phase {row.phase} --seed {self.seed} --kill {kill}"
        lines = [f"{row.store} {row.phase}: killed {kill}. Again: {again}"]
        lines += [f"  {when}:\n    " + str(verdict).replace("\n", "\n    ") for when, verdict in found]
        row.failures.append("\n".join(lines))
        self.say(row.failures[-1])


class _Client:
    """One client of a store at one phase: the calls of its work are counted first, without a kill."""

    def __init__(self, phase: Phase, client: str, seed: int) -> None:
        self.phase = phase
        self.name = client
        self._random = Random(f"{seed} {client}")
        run, steps = phase.begin(Random(1))  # it decides for the work with most calls
        answer = phase.setting.worker.do(run, steps, phase.setting.folder, Kill(client=client))
        if answer.ended == "done" and phase.again(steps) != steps:
            phase.setting.do(run, phase.again(steps), client)
        if answer.ended != "done" or (verdict := phase.at_the_end()):
            raise RuntimeError(f"Without a kill: {answer.why or verdict}")
        phase.end()
        self.names, self._seconds = answer.names, answer.seconds

    def kills(self) -> Iterator[Kill]:
        """Yield when to kill, without end: three of five walk through all calls, the others are random.

        Those that walk run with one thread, so that the number of a call says what it is; the others with several.
        """
        moments = [
            (at, moment)
            for at, name in enumerate(self.names, 1)
            for moment in MOMENTS
            if moment != "torn" or name in _TEARABLE
        ]
        self._random.shuffle(moments)
        passes: dict[int, Iterator[int]] = defaultdict(itertools.count)
        # Each call at one of its moments, then each at another: so all are hit as soon as can be.
        walk = itertools.cycle(sorted(moments, key=lambda moment: next(passes[moment[0]])))
        random = self._random
        for number in itertools.count():
            if number % 5 < 3:
                at, moment = next(walk)
                yield Kill(at, moment, client=self.name)
            elif number % 5 == 3:
                at, moment = random.choice(moments)
                yield Kill(at, moment, workers=_THREADS, client=self.name)
            else:
                yield Kill(seconds=random.uniform(0, self._seconds), workers=_THREADS, client=self.name)

    def kills_at(self, hit: Container[tuple[str, int]]) -> Iterator[Kill]:
        """Yield a kill for each call that was not hit yet."""
        for at, name in enumerate(self.names, 1):
            if (self.name, at) not in hit:
                moments = MOMENTS if name in _TEARABLE else ("before", "after")
                yield Kill(at, self._random.choice(moments), client=self.name)


def torture_phase(
    name: str,
    phase: str,
    *,
    seed: int,
    kills: int,
    minutes: float | None = None,
    every_call: bool = False,
    kill: Kill | None = None,
) -> Row:
    """Start a store and kill work of one phase in it, so many times or for so long; or once, at a given moment.

    Raises
    ------
    RuntimeError
        The harness or the store itself broke. Says how, without what cannot be sent to another process.
    """
    try:
        with (
            tempfile.TemporaryDirectory(prefix="torture-") as folder,
            open_store(name, Path(folder)) as store,
            start_worker(Path(folder, "worker.log")) as worker,
        ):
            torture = Torture(store, worker, Path(folder, "torture"), seed, _say)
            until = None if minutes is None else time.monotonic() + minutes * 60
            row = torture.once(phase, kill) if kill else torture.run(phase, kills, until=until, every_call=every_call)
    except Exception as error:
        raise RuntimeError(f"{name} {phase} broke: {type(error).__name__}: {error}") from None
    _say(f"{name} {phase}: {row.kills} kills in {row.seconds:.0f} s, {len(row.failures)} with a defect")
    return row


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
