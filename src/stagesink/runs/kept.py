"""Runs without their server: what trackers and helpers log to them waits in the outbox."""

from __future__ import annotations

import atexit
import getpass
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagesink.errors import ConfigError, OutboxError
from stagesink.outbox.local_runs import RUNS, LocalRun, LocalRuns, RunStart
from stagesink.provenance import git_commit
from stagesink.redaction import bare_uri
from stagesink.runs.named import new_run_id
from stagesink.runs.tracked import LONGEST_TAG, EndStatus, as_numbers, now_in_ms, shortened

if TYPE_CHECKING:
    from stagesink.outbox.store import Outbox

_log = logging.getLogger("stagesink")

_LONGEST_NAME = 250


class KeptRuns:
    """The runs that an outbox keeps for one sink whose runs a server tracks.

    Parameters
    ----------
    path : str
        Folder of the outbox, which may not be there yet.
    sink_uri : str
    make_outbox : callable
        Makes the outbox, if it is not there yet.
    """

    def __init__(self, path: str, sink_uri: str, make_outbox: Callable[[], Outbox]) -> None:
        self.path = Path(path).absolute()
        self._runs = LocalRuns(self.path / RUNS)
        self._sink_uri = sink_uri
        self._make_outbox = make_outbox

    def on_server(self, run_id: str) -> str | None:
        """Return what the server calls a run; None for one that is not there yet."""
        try:
            return self._runs.on_server(run_id, self._sink_uri)
        except OutboxError:  # what cannot be read here must not stop an upload: the server knows its own runs
            return run_id

    def start(
        self,
        *,
        run_id: str | None = None,
        experiment: str | None = None,
        run_name: str | None = None,
        tags: Mapping[str, str] | None = None,
        parent_run_id: str | None = None,
    ) -> KeptRun:
        """Begin a run of which no server knows, with an id of its own or the one that is given.

        Raises
        ------
        OutboxError
            The outbox cannot be written.
        """
        by_id = None
        if parent_run_id is None:  # else it goes where its parent is
            experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or None
            by_id = self._experiment_by_id() if experiment is None else None
        start = RunStart(
            run_id or new_run_id(),
            self._sink_uri,
            now_in_ms(),
            experiment=experiment or None,
            experiment_id=by_id,
            name=run_name,
            parent_run_id=parent_run_id,
            tags={**_source(), **{name: str(value)[:LONGEST_TAG] for name, value in (tags or {}).items()}},
        )
        return KeptRun(self._make_outbox().runs.make(start), is_new=True)

    def _experiment_by_id(self) -> str | None:
        """Return the id that the environment gives, if it is one of this sink's server: elsewhere it is another's."""
        if not (os.environ.get("MLFLOW_EXPERIMENT_ID") and os.environ.get("MLFLOW_TRACKING_URI")):
            return None
        from stagesink.sinks.mlflow.address import address_of

        is_own = bare_uri(address_of("mlflow:", os.environ).shown) == bare_uri(self._sink_uri)
        return os.environ["MLFLOW_EXPERIMENT_ID"] if is_own else None

    def join(self, run_id: str, *, tags: Mapping[str, str] | None = None) -> KeptRun:
        """Go on with a run: one of this outbox's, or one that the server knows under this id.

        Raises
        ------
        OutboxError
            The outbox cannot be written.
        """
        run = self._runs.get(run_id)
        if run is None:
            run = self._make_outbox().runs.make(RunStart(run_id, self._sink_uri, now_in_ms(), joined=True))
        kept = KeptRun(run, is_new=False)
        missing = {name: value for name, value in (tags or {}).items() if name not in run.start.tags}
        if missing:
            kept.add_tags(missing)
        return kept

    def of_this_process(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Begin the run of a process that names none, unless it has begun; it ends with the process."""
        if self._runs.get(run_id) is None:
            atexit.register(_end, self.start(run_id=run_id, tags=tags), os.getpid())


class KeptRun:
    """A run as trackers use it; see :class:`.TrackedRun`. All of it is on this disk when a call returns.

    Attributes
    ----------
    run_id : str
    url : None
    """

    url = None

    def __init__(self, run: LocalRun, *, is_new: bool) -> None:
        self.run_id = run.run_id
        self._run = run
        self._is_new = is_new

    def log_params(self, params: Mapping[str, object]) -> None:
        """Keep parameters.

        Raises
        ------
        ConfigError
            A name is one that no server takes, or a parameter has another value already. None of them is kept.
        OutboxError
            The outbox cannot be written.
        """
        texts = {name: shortened(value) for name, value in params.items()}
        _check_names(texts)
        known: dict[str, str] = {}
        for _, event in self._run.events():
            if event.get("event") == "params":
                known = {**event["params"], **known}
        if changed := [name for name, text in texts.items() if known.get(name, text) != text]:
            raise ConfigError(
                f"The parameters of run {self.run_id} were not logged: {', '.join(changed)} has another value already.",
                hint="A parameter keeps its first value; log what changes as a metric.",
            )
        if new := {name: text for name, text in texts.items() if name not in known}:
            self._run.add({"event": "params", "params": new})

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None, *, time: int | None = None) -> None:
        """Keep metrics; see :meth:`.TrackedRun.log_metrics`.

        Raises
        ------
        ConfigError
            Some are no numbers; the others are kept. Or a name is one that no server takes; none is kept then.
        OutboxError
            The outbox cannot be written.
        """
        numbers, wrong = as_numbers(metrics)
        _check_names(numbers)
        if numbers:
            when = now_in_ms() if time is None else time
            self._run.add({"event": "metrics", "metrics": numbers, "step": int(step or 0), "time": when})
        if wrong is not None:
            raise wrong

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Keep tags.

        Raises
        ------
        ConfigError
            A name is one that no server takes. None of them is kept.
        OutboxError
            The outbox cannot be written.
        """
        _check_names(tags)
        self._run.add({"event": "tags", "tags": {name: str(value)[:LONGEST_TAG] for name, value in tags.items()}})

    def add_tags(self, tags: Mapping[str, str]) -> None:
        """Keep tags for what its server knows no value of.

        Raises
        ------
        OutboxError
            The outbox cannot be written.
        """
        added = {
            "event": "tags",
            "tags": {name: str(value)[:LONGEST_TAG] for name, value in tags.items()},
            "adds": True,
        }
        if not any(event == added for _, event in self._run.events()):
            self._run.add(added)

    def end(self, status: EndStatus) -> None:
        """Keep that it has ended, if it was begun here; one that was joined stays as it was.

        Raises
        ------
        OutboxError
            The outbox cannot be written.
        """
        if self._is_new:
            self.set_end(status)

    def set_end(self, status: EndStatus) -> None:
        """Keep that it has ended.

        Raises
        ------
        OutboxError
            The outbox cannot be written.
        """
        self._run.add({"event": "end", "status": status, "time": now_in_ms()})


def _check_names(named: Mapping[str, object]) -> None:
    wrong = [name for name in named if not 0 < len(str(name)) <= _LONGEST_NAME]
    if wrong:
        raise ConfigError(
            f"Nothing was logged: {ascii(wrong[0])[:80]} is no name.",
            hint=f"A name has at most {_LONGEST_NAME} letters, digits, '_', '-', '.', ' ' and '/'.",
        )


def _source() -> dict[str, str]:
    """Return who and what it comes from, as MLflow's pages show it."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user without a name
        user = "unknown"
    commit = git_commit()
    return {
        "mlflow.user": user,
        "mlflow.source.name": sys.argv[0] if sys.argv else "",
        "mlflow.source.type": "LOCAL",
        **({"mlflow.source.git.commit": commit} if commit else {}),
    }


def _end(run: KeptRun, pid: int) -> None:
    if os.getpid() != pid:
        return
    try:
        run.end("FINISHED")
    except OutboxError as error:
        _log.warning("Run %s has no end: %s", run.run_id, error)
