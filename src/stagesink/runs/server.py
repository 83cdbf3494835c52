"""Making the runs on an MLflow tracking server that began without it, through MLflow's own client."""

from __future__ import annotations

from collections.abc import Mapping

from stagesink.errors import ArtifactNotFound, SinkError
from stagesink.runs.tracked import INVALID, LONGEST_TAG, PARENT_TAG, TrackingServer, in_peace
from stagesink.sinks.protocol import TrackedSink
from stagesink.sinks.runs import LOCAL_RUN_TAG, Logged, LogRefused, NewRun, Point, RunMakingSink, RunServer


def run_server(sink: TrackedSink) -> RunServer:
    """Return what makes runs for a sink.

    Raises
    ------
    MissingExtra
        mlflow is not installed, and this sink needs it for that.
    SinkError
        The server cannot be reached.
    """
    return sink.run_server() if isinstance(sink, RunMakingSink) else MlflowRuns(sink.tracking_uri)


class MlflowRuns:
    """The runs of one tracking server; see :class:`.RunServer`.

    MLflow's client would send a request again whose answer was lost. Here it must not: a run would be there twice, and
    on servers that keep metrics in files a value too. Whoever calls looks first, and then asks again.
    """

    def __init__(self, tracking_uri: str) -> None:
        self._server = TrackingServer(tracking_uri)

    def experiment_of(self, run: NewRun) -> str:
        if run.experiment is None and run.parent_run_id is not None:
            return str(self._server.living_run(run.parent_run_id).info.experiment_id)
        if run.experiment is None and run.experiment_id is not None:
            return self._server.experiment_by_id(run.experiment_id)
        return self._server.experiment_id(run.experiment)

    def find(self, run: NewRun, experiment: str) -> str | None:
        from mlflow.entities import ViewType

        wanted = f"tags.`{LOCAL_RUN_TAG}` = '{run.local_id}'"
        with self._server.asked(f"Run {run.local_id} could not be looked for on {self._server.shown}"):
            found = self._server.client.search_runs([experiment], wanted, run_view_type=ViewType.ALL, max_results=1)
        return None if not found else str(found[0].info.run_id)

    def make(self, run: NewRun, experiment: str) -> str:
        tags = {**run.tags, LOCAL_RUN_TAG: run.local_id}
        if run.parent_run_id is not None:
            tags[PARENT_TAG] = run.parent_run_id
        tags = {name: value[:LONGEST_TAG] for name, value in tags.items()}
        with self._server.asked(f"No run could be made on {self._server.shown}"), in_peace(once=True):
            made = self._server.client.create_run(experiment, start_time=run.time, tags=tags, run_name=run.name)
        return str(made.info.run_id)

    def check(self, run_id: str) -> None:
        self._server.living_run(run_id)

    def tags(self, run_id: str) -> Mapping[str, str]:
        return dict(self._server.living_run(run_id).data.tags)

    def history(self, run_id: str, key: str) -> set[Point]:
        doing = f"What run {run_id} has of {key} could not be looked up"
        try:
            with self._server.asked(doing, missing=ArtifactNotFound):
                found = self._server.client.get_metric_history(run_id, key)
        except ArtifactNotFound:
            return set()  # so say servers that keep metrics in files, before the first value
        return {Point(key, each.value, each.timestamp, each.step).shown for each in found}

    def log(self, run_id: str, logged: Logged) -> None:
        from mlflow.entities import Metric, Param, RunTag

        doing = f"What waited for run {run_id} could not be logged"
        try:
            with self._server.asked(doing), in_peace(once=True):
                self._server.client.log_batch(
                    run_id,
                    metrics=[Metric(each.key, each.value, each.time, each.step) for each in logged.points],
                    params=[Param(name, value) for name, value in logged.params],
                    tags=[RunTag(name, value[:LONGEST_TAG]) for name, value in logged.tags],
                    synchronous=True,
                )
        except SinkError as error:
            if getattr(error.__cause__, "error_code", None) == INVALID:
                raise LogRefused(error.message, hint=error.hint) from error
            raise

    def end(self, run_id: str, status: str, time: int) -> None:
        with self._server.asked(f"Run {run_id} could not be ended"), in_peace(once=True):
            self._server.client.set_terminated(run_id, status, time)
