"""Starting, resuming and ending the runs of an MLflow tracking server, through MLflow's own client."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

from stagesink.errors import (
    ConfigError,
    MissingExtra,
    RunNotFound,
    SinkAuthError,
    SinkError,
    TransientSinkError,
)
from stagesink.sinks._backend_errors import translating

_log = logging.getLogger("stagesink")

EndStatus = Literal["FINISHED", "FAILED", "KILLED"]

_ENDED = ("FINISHED", "FAILED", "KILLED")
PARENT_TAG = "mlflow.parentRunId"
_DEFAULT_EXPERIMENT = "0"
_LONGEST_PARAM = 6000  # characters; what every server from 2.9 on takes
LONGEST_TAG = 5000
INVALID = "INVALID_PARAMETER_VALUE"

_HINTS: dict[type[SinkError], str] = {
    RunNotFound: "Check the run id, and that the sink names the server it was made on.",
    SinkAuthError: "Check MLFLOW_TRACKING_USERNAME and _PASSWORD, or _TOKEN, and what they may do on this server.",
    TransientSinkError: "Check that the server runs and that its address is right.",
    SinkError: "Check that this is the address of an MLflow server, with the prefix it is served under.",
}
_REFUSED = "A parameter keeps its first value, and a name has at most 250 letters, digits, '_', '-', '.', ' ' and '/'."
_SILENT = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"
_RUN_ID = "MLFLOW_RUN_ID"

_environment = threading.Lock()


def start_run(
    tracking_uri: str,
    *,
    experiment: str | None = None,
    run_name: str | None = None,
    tags: Mapping[str, str] | None = None,
    parent_run_id: str | None = None,
) -> TrackedRun:
    """Start a run.

    Parameters
    ----------
    tracking_uri : str
        Of the server, as MLflow's client takes it. MLflow's own, global one is neither used nor changed.
    experiment : str, optional
        Its name; created when it does not exist. Default: the parent's, else what ``mlflow.set_experiment`` named on
        this server, else ``MLFLOW_EXPERIMENT_NAME``, else ``MLFLOW_EXPERIMENT_ID`` when MLflow's own tracking URI is
        this server, else MLflow's default.
    run_name : str, optional
        Default: one that the server makes up.
    tags : mapping of str to str, optional
    parent_run_id : str, optional
        The run under which MLflow's pages show this one.

    Raises
    ------
    MissingExtra
        mlflow is not installed.
    RunNotFound
        There is no such parent, or it or the experiment is deleted.
    SinkAuthError, TransientSinkError, SinkError
        The server refused, could not be reached, or answered otherwise.
    """
    server = TrackingServer(tracking_uri)
    parent = None if parent_run_id is None else server.living_run(parent_run_id)
    if parent is not None and experiment is None:
        experiment_id = parent.info.experiment_id
    else:
        experiment_id = server.experiment_id(experiment)
    wanted = {name: str(value)[:LONGEST_TAG] for name, value in (tags or {}).items()}
    if parent_run_id is not None:
        wanted[PARENT_TAG] = parent_run_id
    with server.asked(f"No run could be started on {server.shown}"):
        from mlflow.tracking.context.registry import resolve_tags

        # Who and what it comes from, as `mlflow.start_run` notes it: MLflow's pages show user and source.
        run = server.client.create_run(experiment_id, tags=resolve_tags(wanted), run_name=run_name)
    return TrackedRun(server, run, is_new=True)


def resume_run(tracking_uri: str, run_id: str, *, tags: Mapping[str, str] | None = None) -> TrackedRun:
    """Join a run that exists. One that has ended is running again until :meth:`TrackedRun.end`.

    Parameters
    ----------
    tracking_uri, run_id : str
    tags : mapping of str to str, optional
        Those that the run does not have yet are added.

    Raises
    ------
    MissingExtra
        mlflow is not installed.
    RunNotFound
        There is no such run, or it is deleted.
    SinkAuthError, TransientSinkError, SinkError
        The server refused, could not be reached, or answered otherwise.
    """
    server = TrackingServer(tracking_uri)
    run = server.living_run(run_id)
    missing = {name: value for name, value in (tags or {}).items() if name not in run.data.tags}
    server.log(run_id, "tags", tags=missing)
    if run.info.status in _ENDED:
        with server.asked(f"Run {run_id} could not be resumed"):
            server.client.update_run(run_id, status="RUNNING")
    return TrackedRun(server, run, is_new=False)


class TrackedRun:
    """A run that is open: :func:`start_run` and :func:`resume_run` make it.

    Until it ends, ``mlflow.log_metric`` and the like reach it too, if MLflow's own tracking URI is the same server.
    MLflow 2 keeps one active run for all threads, so there this holds in the main thread alone.

    Attributes
    ----------
    run_id : str
    url : str or None
        Where a browser shows it; None where there is no server.
    is_new : bool
        It was started here.
    """

    def __init__(self, server: TrackingServer, run: Any, *, is_new: bool) -> None:
        self.run_id: str = run.info.run_id
        self.url = server.page_of(run.info)
        self._server = server
        self.is_new = is_new
        self._found = None if is_new else run.info
        self._is_active = server.is_mlflows_own() and _activate(self.run_id)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log parameters; what is no text becomes ``str`` of it, cut off after 6,000 characters.

        Raises
        ------
        SinkError
            The server refused, for example to change a parameter that it has already, or could not be reached.
        """
        self._server.log(self.run_id, "params", params={name: shortened(value) for name, value in params.items()})

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None, *, time: int | None = None) -> None:
        """Log metrics: anything that ``float`` takes, NaN and infinities too.

        Parameters
        ----------
        metrics : mapping of str to number
        step : int, optional
        time : int, optional
            When it was: milliseconds since 1970. Default: now.

        Raises
        ------
        ConfigError
            Some are no numbers. The others are logged.
        SinkError
            The server refused or could not be reached.
        """
        numbers, wrong = as_numbers(metrics)
        self._server.log(self.run_id, "metrics", metrics=numbers, step=int(step or 0), time=time)
        if wrong is not None:
            raise wrong

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, over those of the same name.

        Raises
        ------
        SinkError
            The server refused or could not be reached.
        """
        self._server.log(self.run_id, "tags", tags=dict(tags))

    def end(self, status: EndStatus) -> None:
        """End a run that was started here; leave one that was joined as it was, or as its owner has ended it since.

        Raises
        ------
        SinkError
            The server refused or could not be reached.
        """
        info = self._found
        with self._server.asked(f"Run {self.run_id} could not be ended"), in_peace(once=self._server.is_gone):
            try:
                if info is not None and info.status not in _ENDED:
                    info = self._server.client.get_run(self.run_id).info
            finally:
                if self._is_active:
                    _deactivate(self.run_id)
            last = status if info is None else info.status
            if last in _ENDED:
                end_time = None if info is None else info.end_time
                self._server.client.set_terminated(self.run_id, last, end_time)

    def delete(self) -> None:
        """End the run and mark it as deleted.

        Raises
        ------
        SinkError
            The server refused or could not be reached.
        """
        self.end("KILLED")
        with self._server.asked(f"Run {self.run_id} could not be deleted"):
            self._server.client.delete_run(self.run_id)


class TrackingServer:
    """One tracking server, and what its client raises in our terms.

    Attributes
    ----------
    client : mlflow.MlflowClient
    is_gone : bool
        What was asked last got no answer.
    """

    def __init__(self, tracking_uri: str) -> None:
        try:
            from stagesink.sinks.mlflow import connection
            from stagesink.sinks.mlflow.address import Address
            from stagesink.sinks.mlflow.tracking import client_of, reach
        except ModuleNotFoundError as error:
            raise MissingExtra(
                f"The package {error.name} is not installed.", hint="pip install 'stagesink[mlflow]'"
            ) from error
        self._address = Address(tracking_uri)
        self._secrets = partial(connection.secrets, self._address)
        self.is_gone = False
        reach(self._address)
        self.client = client_of(self._address)

    @property
    def shown(self) -> str:
        return self._address.shown

    @contextmanager
    def asked(
        self, doing: str, *, missing: type[SinkError] = SinkError, hints: Mapping[type[SinkError], str] = _HINTS
    ) -> Iterator[None]:
        try:
            with translating(doing, missing=missing, secrets=self._secrets):
                yield
            self.is_gone = False
        except SinkError as error:
            self.is_gone = isinstance(error, TransientSinkError)
            error.hint = hints.get(type(error), error.hint)
            raise

    def living_run(self, run_id: str) -> Any:
        from stagesink.sinks.mlflow.tracking import check_living

        with self.asked(f"Run {run_id} could not be looked up on {self.shown}", missing=RunNotFound):
            run = self.client.get_run(run_id)
        check_living(run_id, run.info.lifecycle_stage)
        return run

    def experiment_id(self, name: str | None) -> str:
        own = self.is_mlflows_own()
        if name is None and own and (active := _active_experiment_id()):
            return active
        name = name or os.environ.get("MLFLOW_EXPERIMENT_NAME")
        if name:
            return self._experiment_called(name)
        return (own and os.environ.get("MLFLOW_EXPERIMENT_ID")) or _DEFAULT_EXPERIMENT

    def experiment_by_id(self, experiment_id: str) -> str:
        """Return the id, or the default experiment's where this server has none of that id."""
        try:
            with self.asked(f"The experiment {experiment_id!r} could not be looked up", missing=RunNotFound):
                if self.client.get_experiment(experiment_id).lifecycle_stage != "deleted":
                    return experiment_id
        except SinkError as error:
            # Another service's id can be none here at all, which is answered otherwise than one that is not there.
            if not isinstance(error, RunNotFound) and getattr(error.__cause__, "error_code", None) != INVALID:
                raise
        _log.warning("%s has no experiment %r: the run goes to the default one.", self.shown, experiment_id)
        return _DEFAULT_EXPERIMENT

    def _experiment_called(self, name: str) -> str:
        with self.asked(f"The experiment {name!r} could not be looked up on {self.shown}"):
            experiment = self.client.get_experiment_by_name(name) or self._create_experiment(name)
        if experiment.lifecycle_stage == "deleted":
            raise RunNotFound(f"The experiment {name!r} is deleted.", hint="Restore it in MLflow, or name another.")
        return str(experiment.experiment_id)

    def _create_experiment(self, name: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_experiment(self.client.create_experiment(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self.client.get_experiment_by_name(name)  # another process was the quicker one

    def log(
        self,
        run_id: str,
        what: str,
        *,
        params: Mapping[str, str] | None = None,
        metrics: Mapping[str, float] | None = None,
        step: int = 0,
        time: int | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Send it all; the client cuts it into batches of the size that servers take."""
        from mlflow.entities import Metric, Param, RunTag

        from stagesink.sinks.mlflow.tracking import reach

        now = now_in_ms() if time is None else time
        doing = f"The {what} could not be logged to run {run_id}"
        with self.asked(doing, missing=RunNotFound, hints={**_HINTS, SinkError: _REFUSED}):
            if self.is_gone:
                reach(
                    self._address
                )  # the client goes on for minutes: once is enough for a training that logs each step
            self.client.log_batch(
                run_id,
                metrics=[Metric(name, value, now, step) for name, value in (metrics or {}).items()],
                params=[Param(name, value) for name, value in (params or {}).items()],
                tags=[RunTag(name, str(value)[:LONGEST_TAG]) for name, value in (tags or {}).items()],
                synchronous=True,  # so that what is returned holds
            )

    def is_mlflows_own(self) -> bool:
        """Tell whether the functions of the package mlflow talk to this server."""
        import mlflow

        from stagesink.sinks.mlflow.address import Address

        return Address(mlflow.get_tracking_uri()).server == self._address.server

    def page_of(self, info: Any) -> str | None:
        if not self._address.is_http:
            return None
        return f"{self._address.server}/#/experiments/{info.experiment_id}/runs/{info.run_id}"


def now_in_ms() -> int:
    """Return the time as MLflow counts it: milliseconds since 1970."""
    return int(time.time() * 1000)


def as_numbers(metrics: Mapping[str, Any]) -> tuple[dict[str, float], ConfigError | None]:
    """Return what ``float`` makes of metrics, and an error that names those that it takes nothing from."""
    numbers: dict[str, float] = {}
    wrong: list[str] = []
    for name, value in metrics.items():
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):  # torch raises RuntimeError, numpy TypeError
            wrong.append(f"{name} ({type(value).__name__})")
    if not wrong:
        return numbers, None
    return numbers, ConfigError(
        f"These metrics were not logged, since they are no numbers: {', '.join(wrong)}.",
        hint="Log them as parameters, or leave them out.",
    )


def shortened(value: object) -> str:
    """Return a parameter's text, cut off where servers would."""
    text = str(value)
    return text if len(text) <= _LONGEST_PARAM else text[: _LONGEST_PARAM - 1] + "…"


# -- the run that mlflow's own functions log to ------------------------------------------------------------------------


def _active_experiment_id() -> str | None:
    """Return what ``mlflow.set_experiment`` chose; there is no public way to ask."""
    from mlflow.tracking import fluent

    return getattr(fluent, "_active_experiment_id", None)


def _activate(run_id: str) -> bool:
    import mlflow
    from mlflow.exceptions import MlflowException

    per_thread = importlib.util.find_spec("mlflow.utils.thread_utils") is not None
    if not per_thread and threading.current_thread() is not threading.main_thread():
        return False
    active = mlflow.active_run()
    if active is not None and active.info.run_id == run_id:
        return False  # whoever made it active ends it
    try:
        mlflow.start_run(run_id=run_id, nested=True)
    except MlflowException as error:
        _log.warning(
            "Run %s is open, but mlflow.log_metric and the like do not reach it: mlflow refused (%s). If "
            "mlflow.set_experiment named another experiment, pass the same one as experiment=.",
            run_id,
            error.error_code,
        )
        return False
    return True


def _deactivate(run_id: str) -> None:
    """Let go of the run without an end on the server.

    MLflow's own end writes a time of its own, for a run that had ended long ago too, and for one that goes on. What it
    does besides, to hand over what was logged with ``synchronous=False``, is done.
    """
    import mlflow
    from mlflow.tracking import fluent

    active = mlflow.active_run()
    if active is None or active.info.run_id != run_id:
        return  # code in the block has ended it, or left another one open
    getattr(mlflow, "flush_async_logging", lambda: None)()  # not there before MLflow 2.10
    theirs, ours = fluent.MlflowClient, threading.get_ident()
    leaving = True

    class Silent(theirs):  # type: ignore[misc,valid-type]
        def set_terminated(self, *arguments: Any, **named: Any) -> None:
            if not leaving or threading.get_ident() != ours:
                super().set_terminated(*arguments, **named)

    try:
        fluent.MlflowClient = Silent
        mlflow.end_run()
    finally:
        leaving = False
        fluent.MlflowClient = theirs


@contextmanager
def in_peace(*, once: bool) -> Iterator[None]:
    """Keep mlflow from printing the server's address, password and all, and from forgetting MLFLOW_RUN_ID.

    Parameters
    ----------
    once : bool
        Keep it from trying for minutes too.
    """
    from stagesink.sinks.mlflow.patience import trying_once

    with _environment:
        before = {name: os.environ.get(name) for name in (_SILENT, _RUN_ID)}
        os.environ[_SILENT] = "true"
        try:
            with _without_links(), trying_once() if once else nullcontext():
                yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


@contextmanager
def _without_links() -> Iterator[None]:
    """Keep MLflow 2.14 to 2.22 from it too, which print the address and have no variable against that."""
    from mlflow import environment_variables
    from mlflow.tracking._tracking_service.client import TrackingServiceClient as Client

    shows = getattr(Client, "_log_url", None)
    if shows is None or hasattr(environment_variables, _SILENT):
        yield
        return
    Client._log_url = lambda *_: None
    try:
        yield
    finally:
        Client._log_url = shows
