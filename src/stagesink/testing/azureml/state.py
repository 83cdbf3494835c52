"""What the workspace knows: experiments, runs, and the artifact paths that were registered."""

from __future__ import annotations

import bisect
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone

ORIGIN = "ExperimentRun"


@dataclass(frozen=True)
class Workspace:
    """Names of a workspace, and of what belongs to it."""

    subscription: str
    resource_group: str
    name: str

    @property
    def path(self) -> str:
        """Its ARM path, which all calls begin with."""
        return (
            f"/subscriptions/{self.subscription}/resourceGroups/{self.resource_group}"
            f"/providers/Microsoft.MachineLearningServices/workspaces/{self.name}"
        )


@dataclass(frozen=True)
class Artifact:
    """A path that was registered. Whether there is a blob behind it, nobody has looked."""

    container: str
    path: str
    tags: Mapping[str, str]
    etag: str = field(default_factory=lambda: str(uuid.uuid4()))
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat())

    @property
    def id(self) -> str:
        return f"{ORIGIN}/{self.container}/{self.path}"

    @property
    def blob(self) -> str:
        return self.id


@dataclass
class Container:
    """The artifacts of one run."""

    name: str
    _by_path: dict[str, Artifact] = field(default_factory=dict)
    _paths: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def register(self, path: str, tags: Mapping[str, str]) -> Artifact | None:
        """Return the new artifact, or ``None`` where the path is registered already."""
        with self._lock:
            if path in self._by_path:
                return None
            artifact = self._by_path[path] = Artifact(self.name, path, tags)
            bisect.insort(self._paths, path)
            return artifact

    def get(self, path: str) -> Artifact | None:
        return self._by_path.get(path)

    def delete(self, path: str) -> Artifact | None:
        with self._lock:
            artifact = self._by_path.pop(path, None)
            if artifact:
                del self._paths[bisect.bisect_left(self._paths, path)]
            return artifact

    def page(self, prefix: str, after: str, size: int) -> tuple[list[Artifact], bool]:
        """Return the artifacts that follow a path, and whether there are more."""
        with self._lock:
            start = bisect.bisect_right(self._paths, after) if after else bisect.bisect_left(self._paths, prefix)
            found = []
            for path in self._paths[start : start + size + 1]:
                if not path.startswith(prefix):
                    break
                found.append(self._by_path[path])
            return found[:size], len(found) > size


@dataclass(frozen=True)
class Experiment:
    name: str
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class Run:
    """A run, with what was logged to it."""

    id: str
    experiment: Experiment
    name: str = ""
    user: str = ""
    status: str = "RUNNING"
    started: int = field(default_factory=lambda: int(time.time() * 1000))
    ended: int | None = None
    deleted: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: list[dict[str, object]] = field(default_factory=list)
    artifacts: Container = field(init=False)

    def __post_init__(self) -> None:
        self.artifacts = Container(f"dcid.{self.id}")


@dataclass
class State:
    """Everything that is kept, for all threads."""

    workspace: Workspace
    experiments: dict[str, Experiment] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def experiment(self, name: str) -> Experiment:
        """Return an experiment by name; it is made where it is not there."""
        with self._lock:
            if name not in self.experiments:
                self.experiments[name] = Experiment(name)
            return self.experiments[name]

    def new_run(self, experiment: Experiment, run_id: str | None = None) -> Run:
        run = Run(run_id or str(uuid.uuid4()), experiment)
        with self._lock:
            if run.id in self.runs:
                raise ValueError(f"There is a run {run.id} already.")
            self.runs[run.id] = run
        return run

    def container(self, name: str) -> Container | None:
        run = self.runs.get(name.removeprefix("dcid."))
        return run.artifacts if run and name == run.artifacts.name else None
