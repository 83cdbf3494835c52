"""What the trackers share: a run that is joined or started, and what is logged to it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, ClassVar, TypeVar

from stagesink.errors import SinkAuthError, TransientSinkError
from stagesink.planning import StrPath
from stagesink.runs.kept import KeptRun, KeptRuns
from stagesink.runs.tracked import EndStatus, TrackedRun, now_in_ms, resume_run, start_run
from stagesink.sinks import ArtifactSink
from stagesink.uploader import ArtifactUploader

_log = logging.getLogger("stagesink")

_KILLED_FROM = 129  # exit codes: 128 and the signal's number, by the shells' convention

Self = TypeVar("Self", bound="StageTracker")


class StageTracker:
    """A stage's run: a context manager that joins or starts it, and ends it as the block ended.

    The run that is named is joined: by ``run_id``, ``STAGESINK_RUN_ID``, an active MLflow run, ``MLFLOW_RUN_ID`` or
    ``AZUREML_RUN_ID``, the first that there is. When none is, or ``parent_run_id`` asks for a nested one, a run is
    started. A run that was started ends FINISHED, FAILED after an exception, or KILLED after Ctrl-C. One that was
    joined is left as it was: running, or with the status it had.

    Offline (``STAGESINK_MODE=offline``), or when the server does not answer or does not let us in, the run begins in
    the outbox with an id of its own: parameters, metrics, tags and uploads wait there, and ``stagesink sync`` makes the
    run on the server. Of a run whose server goes away later, what it does not take waits in the same way.
    ``log_params`` and ``log_metrics`` return False for what waits, as uploads do.

    A training run is never killed by its tracker, unless ``on_failure="raise"``. When the run cannot be joined or
    started, one logged line says why; then :attr:`run_id` is what was given, ``log_params`` and ``log_metrics`` return
    False, and uploads are tried as without a tracker. With a sink whose runs nobody tracks (``file:``, ``s3:``) a
    tracker only uploads.

    Parameters
    ----------
    run_id : str, optional
        The run to join.
    sink : str, path or ArtifactSink, optional
        Where to: a URI, or an open sink, which stays open. Default: the configured one.
    config_dir : path, optional
        Folder that holds ``mlflow.yaml``.
    experiment : str, optional
        Name of the experiment a started run belongs to; created when it does not exist. Default: the parent's, or the
        one that ``mlflow.start_run`` would take.
    run_name : str, optional
        Of a started run. Default: one that the server makes up.
    tags : mapping of str to str, optional
        For the run, beside ``stagesink.stage``; a joined run keeps those that it has.
    parent_run_id : str, optional
        Starts a run nested under this one.
    sweep_run_id, training_run_id, conversion_run_id : str, optional
        Runs of earlier stages this one builds on: become the tags ``stagesink.sweep_run_id`` and so on.
    **options
        Of :class:`stagesink.ArtifactUploader`: ``on_failure``, ``verify``, ``workers``, ``progress``,
        ``storage_options``.

    Attributes
    ----------
    run_id : str or None
        The run; None before it is known.
    run_url : str or None
        Where a browser shows it; None when no server does.
    """

    stage: ClassVar[str]

    def __init__(
        self,
        run_id: str | None = None,
        *,
        sink: StrPath | ArtifactSink | None = None,
        config_dir: StrPath | None = None,
        experiment: str | None = None,
        run_name: str | None = None,
        tags: Mapping[str, str] | None = None,
        parent_run_id: str | None = None,
        sweep_run_id: str | None = None,
        training_run_id: str | None = None,
        conversion_run_id: str | None = None,
        **options: Any,
    ) -> None:
        self.run_id = run_id
        self.run_url: str | None = None
        self._experiment = experiment
        self._run_name = run_name
        self._parent_run_id = parent_run_id
        lineage = {
            "sweep_run_id": sweep_run_id,
            "training_run_id": training_run_id,
            "conversion_run_id": conversion_run_id,
        }
        self._tags = {
            "stagesink.stage": self.stage,
            **{f"stagesink.{name}": earlier for name, earlier in lineage.items() if earlier is not None},
            **(tags or {}),
        }
        self._options = {"config_dir": config_dir, **options}
        self._given_sink = self._sink = sink
        self._facade = ArtifactUploader(run_id, self.stage, sink=sink, **self._options)
        self._run: TrackedRun | KeptRun | None = None
        self._rest: KeptRun | None = None  # what the server did not take of a run that it has

    def __enter__(self: Self) -> Self:
        with ExitStack() as on_error:
            on_error.callback(self._facade.close)
            with self._facade.guard(f"The stage {self.stage} has no run"):
                self._open()
            on_error.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        run, self._run = self._run, None
        with self._facade.guard(f"Run {self.run_id} is still shown as running"):
            if run is not None:
                self._end(run, self._end_status(error))
        self._rest = None
        self._sink = self._given_sink
        self._facade.close()

    def log_params(self, params: Mapping[str, object]) -> bool:
        """Log parameters, which keep their first value; True when they are logged.

        Parameters
        ----------
        params : mapping of str to object
            Flat. What is no text becomes ``str`` of it, cut off after 6,000 characters.
        """
        return self._tell(lambda run: run.log_params(params))

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> bool:
        """Log metrics; True when all of them are logged.

        Parameters
        ----------
        metrics : mapping of str to number
            Flat. Anything that ``float`` takes, numpy's scalars among it; NaN and infinities too.
        step : int, optional
            For example the epoch.
        """
        time = now_in_ms()
        return self._tell(lambda run: run.log_metrics(metrics, step, time=time))

    def set_tags(self, tags: Mapping[str, str]) -> bool:
        """Set tags, over those of the same name; True when they are set."""
        return self._tell(lambda run: run.set_tags(tags))

    def _open(self) -> None:
        self._sink = self._facade.sink  # opened once, for every upload in the block
        server = self._facade.tracking_uri
        if server is None:
            self.run_id = self._facade.run_id
            _log.info("%s tracks no runs: parameters and metrics are not kept.", self._sink.uri)
            return
        run = self._run = self._joined_or_started(server)
        if run is None:
            return
        self.run_id, self.run_url = run.run_id, run.url
        _log.info("%s: run %s %s", self.stage, run.run_id, run.url or "")

    def _joined_or_started(self, server: str) -> TrackedRun | KeptRun | None:
        named = self._facade.named_run_id if self._parent_run_id is None else None
        run_id, parent = self._on_server(named), self._on_server(self._parent_run_id)
        kept = self._kept
        is_there = (run_id is None) == (named is None) and (parent is None) == (self._parent_run_id is None)
        if kept is not None and (not is_there or self._facade.config.artifacts.mode == "offline"):
            return self._begun(kept, named)
        try:
            if run_id is not None:
                return resume_run(server, run_id, tags=self._tags)
            return start_run(
                server,
                experiment=self._experiment,
                run_name=self._run_name,
                tags=self._tags,
                parent_run_id=parent,
            )
        except (TransientSinkError, SinkAuthError) as error:
            if kept is None or self._facade.failure_policy != "keep":
                raise
            return self._begun(kept, named, f"{error.message} ")

    def _on_server(self, run_id: str | None) -> str | None:
        """Return what the server calls a run; None for one that it does not know yet."""
        return run_id if run_id is None or self._kept is None else self._kept.on_server(run_id)

    def _begun(self, kept: KeptRuns, named: str | None, why: str = "") -> KeptRun:
        """Join or start a run without its server."""
        if named is not None:
            run = kept.join(named, tags=self._tags)
        else:
            run = kept.start(
                experiment=self._experiment,
                run_name=self._run_name,
                tags=self._tags,
                parent_run_id=self._parent_run_id,
            )
        _log.warning(
            "%s%s: run %s waits in %s until `stagesink sync` brings it to %s.",
            *(why, self.stage, run.run_id, kept.path, self._facade.sink.uri),
        )
        return run

    @property
    def _kept(self) -> KeptRuns | None:
        return self._facade.kept_runs

    def _tell(self, tell: Callable[[TrackedRun | KeptRun], None]) -> bool:
        told = False
        with self._facade.guard(f"The stage {self.stage}"):
            if self._run is not None:
                try:
                    tell(self._run)
                    told = isinstance(self._run, TrackedRun)
                except (TransientSinkError, SinkAuthError) as error:
                    tell(self._kept_instead(error))
        return told

    def _kept_instead(self, error: TransientSinkError | SinkAuthError) -> KeptRun:
        """Return where to keep what the server did not take just now."""
        kept = self._kept
        if kept is None or self.run_id is None or self._facade.failure_policy != "keep":
            raise error
        if self._rest is None:
            self._rest = kept.join(self.run_id)
            _log.warning("%s What run %s logs waits in %s until `stagesink sync`.", error, self.run_id, kept.path)
        return self._rest

    def _end(self, run: TrackedRun | KeptRun, status: EndStatus) -> None:
        try:
            run.end(status)
        except (TransientSinkError, SinkAuthError) as error:
            if not (isinstance(run, TrackedRun) and run.is_new):
                raise
            self._kept_instead(error).set_end(status)

    def _end_status(self, error: BaseException | None) -> EndStatus:
        """Return what a run that was started here ends with, after the error that ended the block."""
        code = error.code if isinstance(error, SystemExit) else None
        if error is None or (isinstance(error, SystemExit) and not code):
            return "FINISHED"
        # A handler of SIGTERM ends with 143; `sys.exit(1)` is how a program says that it failed.
        by_signal = isinstance(code, int) and code >= _KILLED_FROM
        return "KILLED" if by_signal or isinstance(error, KeyboardInterrupt) else "FAILED"

    @property
    def _uploads(self) -> dict[str, Any]:
        """What each stage helper is given."""
        return {"run_id": self.run_id, "sink": self._sink, **self._options}
