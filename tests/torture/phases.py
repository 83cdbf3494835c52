"""The kinds of work that are killed, and what must come of each."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from outside import files_in
from torture.expected import (
    RANKS,
    Sources,
    Upload,
    Verdict,
    digest_of_members,
    look_at_once,
    look_at_the_end,
    look_into_outbox,
)
from torture.jobs import Kill, Step, Worker
from torture.stores import Run, Store

AT = "checkpoint"
"""Where checkpoints go in a run."""


@dataclass
class Setting:
    """Where a phase takes place."""

    store: Store
    worker: Worker
    sources: Sources
    folder: Path

    def do(self, run: Run, steps: Sequence[Step], client: str) -> None:
        """Have something done that must succeed."""
        answer = self.worker.do(run, steps, self.folder, Kill(client=client, workers=4))
        if answer.ended != "done":
            raise RuntimeError(answer.why)


class Phase(ABC):
    """One kind of work: made ready, begun, killed, looked at, done anew to its end, looked at again."""

    def __init__(self, setting: Setting, client: str) -> None:
        self.setting = setting
        self.client = client

    @abstractmethod
    def begin(self, chance: Random) -> tuple[Run, Sequence[Step]]:
        """Make ready for one more kill, and return the work; ``chance`` decides what is left open."""

    def again(self, steps: Sequence[Step]) -> Sequence[Step]:
        """Return what brings the work to its end after a kill, given its steps."""
        return steps

    @abstractmethod
    def at_once(self) -> Verdict:
        """Look, right after the kill."""

    @abstractmethod
    def at_the_end(self) -> Verdict:
        """Look, after the work was done anew."""

    def end(self) -> None:  # noqa: B027 - there may be nothing to clear up
        """Clear up after one kill."""


class Uploading(Phase):
    """A checkpoint, a file and an archive, into a run that holds nothing."""

    def begin(self, chance: Random) -> tuple[Run, Sequence[Step]]:
        sources = self.setting.sources
        self.run = self.setting.store.new_run()
        self.uploads = list(_three_uploads(sources).values())
        return self.run, [("upload", {"tree": str(sources.trees[0]), "file": str(sources.file)})]

    def at_once(self) -> Verdict:
        return look_at_once(self.run.objects(), self.uploads)

    def at_the_end(self) -> Verdict:
        return look_at_the_end(self.run.objects(), self.run.leftovers(), self.uploads)

    def end(self) -> None:
        self.run.clear()


class Committing(Phase):
    """A checkpoint over another: few files differ, so most of it is taking the old manifest away and the commit."""

    def __init__(self, setting: Setting, client: str) -> None:
        super().__init__(setting, client)
        self.run = setting.store.new_run()
        self.there = 0
        self._replace(0)

    def begin(self, chance: Random) -> tuple[Run, Sequence[Step]]:
        trees, old, new = self.setting.sources, self.there, 1 - self.there
        versions = [trees.tree(old, AT), trees.tree(new, AT)]
        self.uploads = [Upload("checkpoint.manifest.json", versions)]
        self.there = new
        return self.run, self._steps(new)

    def at_once(self) -> Verdict:
        return look_at_once(self.run.objects(), self.uploads)

    def at_the_end(self) -> Verdict:
        verdict = look_at_the_end(self.run.objects(), self.run.leftovers(), self.uploads)
        if verdict:  # the next one begins anew
            self.run.clear()
            self.run = self.setting.store.new_run()
            self._replace(self.there)
        return verdict

    def _replace(self, number: int) -> None:
        self.setting.do(self.run, self._steps(number), self.client)

    def _steps(self, number: int) -> list[Step]:
        return [("replace", {"tree": str(self.setting.sources.trees[number])})]


class Restoring(Phase):
    """A checkpoint into a folder, which may hold another one."""

    def __init__(self, setting: Setting, client: str) -> None:
        super().__init__(setting, client)
        self.run = setting.store.new_run()
        setting.do(self.run, [("replace", {"tree": str(setting.sources.trees[0])})], client)
        self.target = setting.folder / "restored"

    def begin(self, chance: Random) -> tuple[Run, Sequence[Step]]:
        sources = self.setting.sources
        stored, other = sources.tree(0, AT), sources.tree(1, AT)
        if chance.random() < 0.5:
            shutil.copytree(sources.trees[1], self.target / AT)
            self.uploads = [Upload("", [other, stored, {**other, **stored}])]
        else:
            self.uploads = [Upload("", [stored])]
        return self.run, [("restore", {"target": str(self.target)})]

    def at_once(self) -> Verdict:
        files = {path: data for path, data in files_in(self.target).items() if not _is_temp(path)}
        return look_at_once(files, self.uploads)

    def at_the_end(self) -> Verdict:
        files = files_in(self.target)
        temps = {path for path in files if _is_temp(path)}
        wanted = self.uploads[0].versions[-1]
        verdict = look_at_once({path: files[path] for path in files.keys() - temps}, [Upload("", [wanted])])
        verdict.lost += [f"{path} is not there." for path in sorted(wanted.keys() - files.keys())]
        verdict.duplicated += [f"{path} was left behind." for path in sorted(temps)]
        return verdict

    def end(self) -> None:
        shutil.rmtree(self.target)


class Keeping(Phase):
    """A checkpoint, a file and an archive, kept on this disk while the store is out of reach.

    The trainer takes each away as soon as the call for it has returned. From then on it is in the outbox, or in the
    store; after a kill the rest is handed over, and all of it is synced.
    """

    background = False

    def begin(self, chance: Random) -> tuple[Run, Sequence[Step]]:
        sources, folder = self.setting.sources, self.setting.folder
        self.run = self.setting.store.new_run()
        self.outbox = folder / ".stagesink" / "outbox"
        self.uploads = _three_uploads(sources)
        self.train = folder / "train"
        shutil.copytree(sources.trees[0], self.train / AT)
        shutil.copytree(sources.trees[0] / "shards", self.train / "best.tar.gz")
        shutil.copy(sources.file, self.train / "metrics.json")
        items = {name: str(self.train / name) for name in self.uploads}
        return self.run, [("hand over", {"items": items, "background": self.background})]

    def again(self, steps: Sequence[Step]) -> Sequence[Step]:
        return [*steps, ("sync", {}), ("collect garbage", {})]

    def at_once(self) -> Verdict:
        objects = self.run.objects()
        verdict = look_at_once(objects, list(self.uploads.values()))
        kept = look_into_outbox(self.outbox, self.uploads, verdict)
        for name, upload in self.uploads.items():
            if not (self.train / name).exists() and name not in kept and upload.manifest not in objects:
                verdict.lost.append(f"{name} was handed over, and is neither in the outbox nor in the store.")
        return verdict

    def at_the_end(self) -> Verdict:
        verdict = look_at_the_end(self.run.objects(), self.run.leftovers(), list(self.uploads.values()))
        left = [each.name for each in (self.outbox / "entries").iterdir()]
        verdict.duplicated += [f"The outbox still holds {name}." for name in left]
        return verdict

    def end(self) -> None:
        self.run.clear()
        shutil.rmtree(self.train)
        shutil.rmtree(self.outbox)


class Background(Keeping):
    """The same, uploaded by a thread meanwhile."""

    background = True


class Syncing(Keeping):
    """What was kept, on its way into the store."""

    def begin(self, chance: Random) -> tuple[Run, Sequence[Step]]:
        run, steps = super().begin(chance)
        self.setting.do(run, steps, self.client)
        return run, [("sync", {})]


class Ranking(Phase):
    """The ranks of a job upload one checkpoint over another together, and one of them is killed.

    Some of the others are there before it and some come only afterwards; then it starts again.
    """

    def __init__(self, setting: Setting, client: str) -> None:
        super().__init__(setting, client)
        self.run = setting.store.new_run()
        self.there = 0
        self.sessions = 0
        setting.do(self.run, [self._rank(0, rank) for rank in range(RANKS)], client)

    def begin(self, chance: Random) -> tuple[Run, Sequence[Step]]:
        sources, old, new = self.setting.sources, self.there, 1 - self.there
        self.uploads = [Upload("checkpoint.manifest.json", [sources.tree(old, AT), sources.tree(new, AT)])]
        self.there, self.sessions = new, self.sessions + 1
        steps = [self._rank(new, rank) for rank in chance.sample(range(RANKS), RANKS)]
        before = RANKS - 1 if chance.random() < 0.7 else 1
        self.setting.do(self.run, steps[:before], self.client)
        self.after = steps[before + 1 :]
        return self.run, steps[before : before + 1]

    def again(self, steps: Sequence[Step]) -> Sequence[Step]:
        return [*self.after, *steps]

    def at_once(self) -> Verdict:
        return look_at_once(self.run.objects(), self.uploads)

    def at_the_end(self) -> Verdict:
        return look_at_the_end(self.run.objects(), self.run.leftovers(), self.uploads)

    def _rank(self, number: int, rank: int) -> Step:
        tree = str(self.setting.sources.of_rank(number, rank))
        return "rank", {"tree": tree, "rank": rank, "world_size": RANKS, "session": f"session {self.sessions}"}


def _three_uploads(sources: Sources) -> dict[str, Upload]:
    packed = digest_of_members(files_in(sources.trees[0] / "shards"))
    return {
        "checkpoint": Upload("checkpoint.manifest.json", [sources.tree(0, AT)]),
        "metrics.json": Upload("metrics.json.manifest.json", [{"metrics.json": sources.digest_of_file()}]),
        "best.tar.gz": Upload("best_manifest.json", [{"best.tar.gz": packed}]),
    }


def _is_temp(path: str) -> bool:
    return path.endswith(".tmp")


PHASES: dict[str, type[Phase]] = {
    "upload": Uploading,
    "commit": Committing,
    "ranks": Ranking,
    "snapshot": Keeping,
    "background": Background,
    "sync": Syncing,
    "restore": Restoring,
}
