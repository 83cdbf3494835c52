"""Processes that write to one place at once and are killed at any moment, and a reader that is none of ours.

The long form: ``python -m torture.writers file s3 azureml mlflow --rounds 100`` in ``tests/``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torture.stores import STORES, Run, Store, open_store

_PROGRAM = """
import json, os, select, signal, sys, tempfile
from stagesink import ArtifactUploader

# What is imported late is imported here.
with tempfile.TemporaryDirectory() as folder, open(folder + "/x", "w"):
    assert ArtifactUploader("warm-up", sink="memory:", progress="none").upload_checkpoint(folder)

def work(job):
    os.environ.update(job["environment"])
    with ArtifactUploader(job["run"], sink=job["sink"], progress="none") as uploader:
        if job["kind"] == "add":
            return uploader.add_files(job["path"], "tree")
        ranks = {name: job[name] for name in ("rank", "world_size", "session") if name in job}
        return uploader.upload_checkpoint(job["path"], "tree", **ranks)

children, waiting, open_ = {}, b"", True
while open_ or children:
    # One thread, so that a fork copies no lock that is taken.
    if open_ and select.select([0], [], [], 0.005)[0]:
        data = os.read(0, 1 << 16)
        open_, waiting = bool(data), waiting + data
    *lines, waiting = waiting.split(b"\\n")
    for job in map(json.loads, lines):
        if "kill" in job:
            for pid in [pid for pid, number in children.items() if number == job["kill"]]:
                os.kill(pid, signal.SIGKILL)
            continue
        pid = os.fork()
        if pid == 0:
            code = 3
            try:
                code = 0 if work(job) else 1
            finally:
                sys.stderr.flush()
                os._exit(code)
        children[pid] = job["number"]
        print(json.dumps([job["number"], None]), flush=True)
    while children and (ended := os.waitpid(-1, os.WNOHANG))[0]:
        print(json.dumps([children.pop(ended[0]), os.waitstatus_to_exitcode(ended[1])]), flush=True)
"""

Tree = Mapping[str, bytes]


class Crew:
    """Starts writers, each a process of its own that has to import nothing."""

    def __init__(self, log: Path) -> None:
        self._log = log.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=log.parent,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("COV")},
                "STAGESINK_OUTBOX_ENABLED": "false",
            },
        )
        self._numbers = iter(range(1 << 30))
        self._started: set[int] = set()
        self._ended: dict[int, int] = {}
        self._changed = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, **job: Any) -> int:
        """Start a writer; return its number once it runs."""
        number = next(self._numbers)
        with self._changed:
            self._say({**job, "number": number})
            assert self._changed.wait_for(lambda: number in self._started, timeout=60)
        return number

    def kill(self, number: int) -> None:
        """Have a writer killed by its parent, who alone knows whether its process is still there."""
        with self._changed:
            if number not in self._ended:
                self._say({"kill": number})

    def running(self, numbers: Sequence[int]) -> bool:
        with self._changed:
            return not self._changed.wait_for(lambda: all(number in self._ended for number in numbers), timeout=0.01)

    def wait(self, number: int) -> int:
        """Wait for the end of a writer: 0 when it landed, negative when it was killed."""
        with self._changed:
            assert self._changed.wait_for(lambda: number in self._ended, timeout=300), "a writer hangs"
            return self._ended[number]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def _say(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            number, ended = json.loads(line)
            with self._changed:
                if ended is None:
                    self._started.add(number)
                else:
                    self._ended[number] = ended
                self._changed.notify_all()


@contextmanager
def crew(log: Path) -> Iterator[Crew]:
    found = Crew(log)
    try:
        yield found
    finally:
        found.close()


@dataclass
class Findings:
    """What came of some rounds.

    Attributes
    ----------
    rounds, kills, looks, whole : int
        ``looks`` at a store that was written to meanwhile; ``whole`` of them found an upload.
    failures : list of str
    """

    store: str
    what: str
    rounds: int = 0
    writers: int = 0
    kills: int = 0
    looks: int = 0
    whole: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def say(self) -> str:
        return (
            f"{self.store:8} {self.what:7} {self.rounds:5} rounds {self.writers:6} writers {self.kills:5} kills "
            f"{self.looks:6} looks {self.whole:6} whole {len(self.failures):3} failures {self.seconds:7.0f} s"
        )


class Writers:
    """Rounds of writers at one place of one store."""

    def __init__(self, store: Store, crew: Crew, folder: Path, seed: int) -> None:
        self._store = store
        self._crew = crew
        self._folder = folder
        self._chance = random.Random(seed)
        self._version = 0

    # -- three kinds of rounds -----------------------------------------------------------------------------------------

    def jobs(self, rounds: int) -> Findings:
        """Two to four jobs upload other trees of the same names and sizes to one place, and some are killed."""
        found, run = Findings(self._store.name, "jobs"), self._store.new_run()
        known: dict[str, Tree] = {}
        with _timed(found):
            for _ in range(rounds):
                trees = [self._tree() for _ in range(self._chance.randint(2, 4))]
                known.update((_name(tree), tree) for tree in trees)
                writers = [self._start(run, tree) for tree in trees]
                doomed = self._doomed(writers, found)
                self._watch(run, writers, known, found)
                ends = [self._crew.wait(writer) for writer in writers]
                self._check_ends(ends, doomed, found)
                there = self._whole(run, known, found)
                landed = {_name(tree) for tree, ended in zip(trees, ends, strict=True) if ended == 0}
                if there is None and not doomed:
                    found.failures.append("all jobs said that they had landed, and nothing is there")
                if not doomed and there not in landed:
                    found.failures.append(f"{there} is there, which no job has uploaded")
                last = self._tree()
                known[_name(last)] = last
                self._must_land(run, last, known, found)
                found.rounds += 1
                found.writers += len(writers) + 1
        run.clear()
        return found

    def additions(self, rounds: int) -> Findings:
        """Jobs add files of their own to one folder at once; none is lost from its manifest."""
        found = Findings(self._store.name, "adds")
        with _timed(found):
            for _ in range(rounds):
                run = self._store.new_run()
                trees = [{f"job-{number}/{name}": data for name, data in self._tree().items()} for number in range(4)]
                writers = [self._start(run, tree, kind="add") for tree in trees]
                for writer in writers:
                    if self._crew.wait(writer) != 0:
                        found.failures.append("an addition did not land")
                everything = {name: data for tree in trees for name, data in tree.items()}
                self._whole(run, {_name(everything): everything}, found)
                if (_manifest(run.objects()) or {}).get("file_count") != len(everything):
                    found.failures.append("the manifest does not name all that was added")
                run.clear()
                found.rounds += 1
                found.writers += len(writers)
        return found

    def ranks(self, rounds: int) -> Findings:
        """Ranks upload their shards in any order, die and start again, until each has landed."""
        found, run = Findings(self._store.name, "ranks"), self._store.new_run()
        known: dict[str, Tree] = {}
        with _timed(found):
            for number in range(rounds):
                size = self._chance.randint(2, 5)
                shards = [{f"{rank}/{name}": data for name, data in self._tree().items()} for rank in range(size)]
                whole = {name: data for shard in shards for name, data in shard.items()}
                known[_name(whole)] = whole
                todo = list(range(size))
                while todo:
                    self._chance.shuffle(todo)
                    writers = [
                        self._start(run, shards[rank], rank=rank, world_size=size, session=f"s{number}")
                        for rank in todo
                    ]
                    doomed = self._doomed(writers, found)
                    self._watch(run, writers, known, found)
                    ends = [self._crew.wait(writer) for writer in writers]
                    self._check_ends(ends, doomed, found)
                    again = self._chance.random() < 0.1  # one that has landed is started again as well
                    todo = [rank for rank, ended in zip(todo, ends, strict=True) if ended != 0 or (again and rank == 0)]
                    found.writers += len(writers)
                if self._whole(run, known, found) != _name(whole):
                    found.failures.append("every rank said that its part had landed, and the whole is not there")
                found.rounds += 1
        if any(path.startswith(".stagesink/") and data for path, data in run.objects().items()):
            found.failures.append("notes were left")
        run.clear()
        return found

    # -- parts of them -------------------------------------------------------------------------------------------------

    def _tree(self) -> Tree:
        self._version += 1
        return {
            name: f"{self._version:08}".encode() + self._chance.randbytes(size - 8)
            for name, size in (("model.bin", 60_000), ("config.json", 50), ("opt/state.bin", 9_000))
        }

    def _start(self, run: Run, tree: Tree, kind: str = "tree", **more: Any) -> int:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        for name, data in tree.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        job = {"run": run.run_id, "sink": run.sink, "path": str(folder), "environment": run.environment}
        return self._crew.start(kind=kind, **job, **more)

    def _doomed(self, writers: Sequence[int], found: Findings) -> set[int]:
        """Choose who is killed, and have it done at a random moment."""
        doomed = {writer for writer in writers if self._chance.random() < 0.3}
        for writer in doomed:
            threading.Timer(self._chance.random() ** 3 * 0.8, self._crew.kill, [writer]).start()
        return doomed

    def _check_ends(self, ends: Sequence[int], doomed: set[int], found: Findings) -> None:
        found.kills += sum(ended == -signal.SIGKILL for ended in ends)
        if any(ended not in (0, -signal.SIGKILL) for ended in ends):
            found.failures.append(f"writers ended with {ends}")

    def _watch(self, run: Run, writers: Sequence[int], known: Mapping[str, Tree], found: Findings) -> None:
        """Look again and again while they write. What stands under one manifest from before to after is whole."""
        before, during = _look(run), _look(run)
        while self._crew.running(writers):
            after = _look(run)
            manifests = [_manifest(each) for each in (before, during, after)]
            found.looks += 1
            if manifests[0] is not None and manifests[0] == manifests[1] == manifests[2]:
                found.whole += 1
                self._compare(during, manifests[0], known, found)
            before, during = during, after

    def _whole(self, run: Run, known: Mapping[str, Tree], found: Findings) -> str | None:
        """Look while nobody writes; return which tree is there."""
        there = run.objects()
        manifest = _manifest(there)
        return None if manifest is None else self._compare(there, manifest, known, found)

    def _compare(
        self, there: Tree, manifest: Mapping[str, Any], known: Mapping[str, Tree], found: Findings
    ) -> str | None:
        named = {entry["path"]: there.get(f"tree/{entry['path']}", b"") for entry in manifest["files"]}
        wrong = [e["path"] for e in manifest["files"] if hashlib.sha256(named[e["path"]]).hexdigest() != e["sha256"]]
        if wrong:
            found.failures.append(f"the manifest stands over other bytes of {wrong}")
            return None
        name = _name(named)
        if name not in known:
            found.failures.append("what is there is a mix of several uploads")
        return name

    def _must_land(self, run: Run, tree: Tree, known: Mapping[str, Tree], found: Findings) -> None:
        if self._crew.wait(self._start(run, tree)) != 0:
            found.failures.append("an upload with nobody beside it did not land")
        if self._whole(run, known, found) != _name(tree):
            found.failures.append("the last upload is not what is there")


def _look(run: Run) -> Tree:
    """Read everything while it changes: what goes between the listing and the reading makes any client fail."""
    for _ in range(50):
        with suppress(Exception):
            return run.objects()
    return run.objects()


def _manifest(there: Tree) -> dict[str, Any] | None:
    data = there.get("tree.manifest.json")
    if not data:
        return None
    document: dict[str, Any] = json.loads(data)
    return document


def _name(tree: Tree) -> str:
    return hashlib.sha256(json.dumps({name: tree[name].hex() for name in sorted(tree)}).encode()).hexdigest()[:12]


@contextmanager
def _timed(found: Findings) -> Iterator[None]:
    start = time.monotonic()
    try:
        yield
    finally:
        found.seconds = time.monotonic() - start


KINDS: dict[str, Callable[[Writers, int], Findings]] = {
    "jobs": Writers.jobs,
    "adds": Writers.additions,
    "ranks": Writers.ranks,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the long form; return the number of failures."""
    parser = argparse.ArgumentParser(description="Processes that write to one place at once, and are killed.")
    parser.add_argument("stores", nargs="*", default=list(STORES), metavar="store", help=", ".join(STORES))
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    chosen = parser.parse_args(arguments)
    print(f"seed {chosen.seed}", flush=True)
    failures = 0
    for name in chosen.stores:
        with tempfile.TemporaryDirectory() as folder, open_store(name, Path(folder)) as store:
            with crew(Path(folder, "writers.log")) as workers:
                for kind in chosen.kind or KINDS:
                    found = KINDS[kind](Writers(store, workers, Path(folder), chosen.seed), chosen.rounds)
                    print(found.say(), *found.failures, sep="\n  ", flush=True)
                    failures += len(found.failures)
            if failures:
                print(Path(folder, "writers.log").read_text()[-5000:])
    return failures


if __name__ == "__main__":
    sys.exit(min(main(), 1))
