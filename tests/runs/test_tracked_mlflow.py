"""Runs of a real tracking server, read back with mlflow's own client."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from faults.proxy import Answer, DropReply, FaultProxy, Reset
from outside import python

from stagesink.errors import (
    ConfigError,
    MissingExtra,
    RunNotFound,
    SinkAuthError,
    SinkError,
    StagesinkError,
    TransientSinkError,
)
from stagesink.runs.tracked import resume_run, start_run

UNKNOWN = "0" * 32


@pytest.fixture
def uri(mlflow_server: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # mlflow's own go on for minutes
    url: str = mlflow_server.url
    return url


@pytest.fixture
def client(mlflow: Any, uri: str) -> Any:
    return mlflow.MlflowClient(uri)


@pytest.fixture
def as_own(mlflow: Any, uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """mlflow, whose own functions talk to this server; nothing may be left of it afterwards."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    yield mlflow
    assert mlflow.active_run() is None


# -- starting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_a_started_run_runs_until_it_is_ended(uri: str, client: Any, status: Any) -> None:
    run = start_run(uri, run_name="a name", tags={"colour": "blue", "long": "x" * 9000})
    assert client.get_run(run.run_id).info.status == "RUNNING"
    run.end(status)
    found = client.get_run(run.run_id)
    assert found.info.status == status
    assert found.info.end_time >= found.info.start_time
    assert found.info.run_name == "a name"
    assert found.data.tags["colour"] == "blue"
    assert found.data.tags["long"] == "x" * 5000
    assert {"mlflow.user", "mlflow.source.name"} <= found.data.tags.keys()  # what mlflow's pages show as its source


def test_a_run_below_another_is_in_its_experiment(uri: str, client: Any) -> None:
    parent = start_run(uri, experiment=f"of the parent {uuid4()}")
    child = start_run(uri, parent_run_id=parent.run_id)
    found = client.get_run(child.run_id)
    assert found.data.tags["mlflow.parentRunId"] == parent.run_id
    assert found.info.experiment_id == client.get_run(parent.run_id).info.experiment_id != "0"


def test_its_page_is_where_the_server_shows_it(uri: str, client: Any) -> None:
    run = start_run(uri)
    assert run.url == f"{uri}/#/experiments/{client.get_run(run.run_id).info.experiment_id}/runs/{run.run_id}"


def test_an_experiment_that_many_create_at_once_is_made_once(uri: str, client: Any) -> None:
    name = f"wanted by all {uuid4()}"
    barrier = threading.Barrier(6)

    def start(_: int) -> str:
        barrier.wait()
        return start_run(uri, experiment=name).run_id

    with ThreadPoolExecutor(6) as pool:
        found = {client.get_run(run_id).info.experiment_id for run_id in pool.map(start, range(6))}
    assert found == {client.get_experiment_by_name(name).experiment_id}


def test_the_variable_names_the_experiment_on_any_server(
    uri: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"by variable {uuid4()}"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    run = client.get_run(start_run(uri).run_id)
    assert run.info.experiment_id == client.get_experiment_by_name(name).experiment_id
    run = client.get_run(start_run(uri, experiment=f"{name} argument").run_id)
    assert client.get_experiment(run.info.experiment_id).name == f"{name} argument"


def test_the_experiment_id_in_the_environment_counts_only_on_mlflows_own_server(
    uri: str, client: Any, mlflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment_id = client.create_experiment(f"by id {uuid4()}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment_id)
    assert client.get_run(start_run(uri).run_id).info.experiment_id == "0"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run = start_run(uri)
    assert client.get_run(run.run_id).info.experiment_id == experiment_id
    run.end("FINISHED")


def test_a_deleted_experiment_is_said(uri: str, client: Any) -> None:
    name = f"deleted {uuid4()}"
    client.delete_experiment(client.create_experiment(name))
    with pytest.raises(RunNotFound, match=r"is deleted\. Restore it in MLflow, or name another\."):
        start_run(uri, experiment=name)


# -- resuming ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_a_run_that_has_ended_runs_meanwhile_and_is_put_back_as_it_was(uri: str, client: Any, status: str) -> None:
    run_id = client.create_run("0").info.run_id
    client.set_terminated(run_id, status, end_time=1_700_000_000_000)
    run = resume_run(uri, run_id)
    assert client.get_run(run_id).info.status == "RUNNING"
    run.log_metrics({"later": 1})
    run.end("FAILED")
    info = client.get_run(run_id).info
    assert (info.status, info.end_time) == (status, 1_700_000_000_000)


@pytest.mark.parametrize("ended_meanwhile", [None, "FINISHED", "KILLED"])
@pytest.mark.parametrize("own", [True, False])
def test_a_run_that_another_keeps_open_is_left_to_it(
    uri: str, client: Any, monkeypatch: pytest.MonkeyPatch, ended_meanwhile: str | None, own: bool
) -> None:
    if own:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run_id = client.create_run("0").info.run_id
    run = resume_run(uri, run_id)
    if ended_meanwhile:
        client.set_terminated(run_id, ended_meanwhile, end_time=1_700_000_000_000)
    run.end("FAILED")
    info = client.get_run(run_id).info
    assert info.status == (ended_meanwhile or "RUNNING")
    assert (info.end_time or None) == (1_700_000_000_000 if ended_meanwhile else None)


def test_a_joined_run_keeps_the_tags_it_has(uri: str, client: Any) -> None:
    run_id = client.create_run("0", tags={"stage": "theirs"}).info.run_id
    resume_run(uri, run_id, tags={"stage": "ours", "new": "ours"})
    tags = client.get_run(run_id).data.tags
    assert (tags["stage"], tags["new"]) == ("theirs", "ours")


def test_an_unknown_and_a_deleted_run_are_said(uri: str, client: Any) -> None:
    deleted = client.create_run("0").info.run_id
    client.delete_run(deleted)
    for run_id, said in ((UNKNOWN, "Check the run id"), (deleted, f"mlflow runs restore --run-id {deleted}")):
        with pytest.raises(RunNotFound) as caught:
            resume_run(uri, run_id)
        assert run_id in str(caught.value)
        assert said in str(caught.value)
        with pytest.raises(RunNotFound):
            start_run(uri, parent_run_id=run_id)


# -- what is logged ----------------------------------------------------------------------------------------------------


def test_more_than_one_batch_holds(uri: str, client: Any) -> None:
    run = start_run(uri)
    run.log_params({f"p{i}": i for i in range(250)})
    run.log_metrics({f"m{i}": i for i in range(2100)}, step=7)
    data = client.get_run(run.run_id).data
    assert data.params == {f"p{i}": str(i) for i in range(250)}
    assert data.metrics == {f"m{i}": i for i in range(2100)}
    assert client.get_metric_history(run.run_id, "m2099")[0].step == 7


def test_values_of_all_kinds(uri: str, client: Any) -> None:
    numpy = pytest.importorskip("numpy")
    run = start_run(uri)
    run.log_params({"long": "é" * 7000, "empty": "", "none": None, "list": [1, 2], "number": numpy.float32(0.5)})
    run.log_metrics({"scalar": numpy.float32(1.5), "flag": True, "nan": math.nan, "infinite": -math.inf})
    data = client.get_run(run.run_id).data
    assert data.params.pop("long") == "é" * 5999 + "…"
    assert data.params == {"empty": "", "none": "None", "list": "[1, 2]", "number": "0.5"}
    assert math.isnan(data.metrics.pop("nan"))
    assert data.metrics == {"scalar": 1.5, "flag": 1.0, "infinite": -sys.float_info.max}


def test_what_is_no_number_is_named_and_the_rest_is_logged(uri: str, client: Any) -> None:
    run = start_run(uri)
    with pytest.raises(ConfigError, match=r"no numbers: text \(str\), nothing \(NoneType\), many \(list\)\."):
        run.log_metrics({"text": "x", "one": 1, "nothing": None, "many": [1], "two": 2})
    assert client.get_run(run.run_id).data.metrics == {"one": 1, "two": 2}


def test_a_parameter_keeps_its_first_value(uri: str, client: Any) -> None:
    run = start_run(uri)
    run.log_params({"rate": 1})
    run.log_params({"rate": 1})
    with pytest.raises(SinkError, match=r"400 \(INVALID_PARAMETER_VALUE\)\. A parameter keeps its first value"):
        run.log_params({"rate": 2})
    assert client.get_run(run.run_id).data.params == {"rate": "1"}


def test_tags_are_set_over_others(uri: str, client: Any) -> None:
    run = start_run(uri, tags={"a": "1"})
    run.set_tags({"a": "2", "b": "3"})
    tags = client.get_run(run.run_id).data.tags
    assert (tags["a"], tags["b"]) == ("2", "3")


# -- mlflow's own functions --------------------------------------------------------------------------------------------


def test_mlflows_own_functions_reach_the_run_while_it_is_open(
    uri: str, client: Any, as_own: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    run = start_run(uri)
    as_own.log_metric("theirs", 1)
    run.end("KILLED")
    assert as_own.active_run() is None
    found = client.get_run(run.run_id)
    assert found.data.metrics == {"theirs": 1}
    assert found.info.status == "KILLED"
    assert capfd.readouterr().out == ""  # where data goes, and mlflow would print a password there


def test_inside_an_active_run_a_new_one_is_active_meanwhile(uri: str, client: Any, as_own: Any) -> None:
    with as_own.start_run() as outer:
        run = start_run(uri)
        as_own.log_param("which", "inner")
        run.end("FINISHED")
        as_own.log_param("which", "outer")
        assert client.get_run(outer.info.run_id).info.status == "RUNNING"
    assert client.get_run(run.run_id).data.params == {"which": "inner"}
    assert client.get_run(outer.info.run_id).data.params == {"which": "outer"}


def test_a_run_that_is_active_already_stays_so(uri: str, client: Any, as_own: Any) -> None:
    with as_own.start_run() as active:
        resume_run(uri, active.info.run_id).end("FAILED")
        assert as_own.active_run().info.run_id == active.info.run_id
        info = client.get_run(active.info.run_id).info
        assert info.status == "RUNNING"
        assert not info.end_time
    assert client.get_run(active.info.run_id).info.status == "FINISHED"


def test_a_run_that_was_ended_by_mlflows_own_function_does_not_end_another(uri: str, client: Any, as_own: Any) -> None:
    with as_own.start_run() as outer:
        run = start_run(uri)
        as_own.end_run()
        run.end("FAILED")
        assert as_own.active_run().info.run_id == outer.info.run_id
    assert client.get_run(run.run_id).info.status == "FAILED"


def test_another_server_than_mlflows_own_changes_nothing_of_it(
    uri: str, client: Any, mlflow: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    run = start_run(uri)
    assert mlflow.active_run() is None
    assert mlflow.get_tracking_uri() == "http://127.0.0.1:1"
    run.end("FINISHED")
    assert caplog.records == []  # nor was it tried
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_the_same_server_is_known_by_another_spelling(uri: str, mlflow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.replace("://", "://me:secret@") + "/")
    run = start_run(uri)
    assert mlflow.active_run().info.run_id == run.run_id
    run.end("FINISHED")
    assert mlflow.active_run() is None


def test_the_variable_survives_the_end_of_a_run(uri: str, as_own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "mine")
    before = dict(os.environ)
    start_run(uri).end("FINISHED")
    assert dict(os.environ) == before


@pytest.mark.once
def test_another_experiment_than_the_one_that_was_set_leaves_mlflows_functions_out(
    uri: str, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    program = f"""
        import logging, mlflow
        from stagesink.runs.tracked import start_run
        logging.basicConfig(format="%(message)s")
        mlflow.set_experiment("set {uuid4()}")
        follows = start_run({uri!r})
        assert mlflow.active_run().info.run_id == follows.run_id
        follows.end("FINISHED")
        other = start_run({uri!r}, experiment="other")
        assert mlflow.active_run() is None
        other.end("FINISHED")
        print(follows.run_id, other.run_id)
    """
    done = python(program, MLFLOW_TRACKING_URI=uri)
    follows, other = (client.get_run(run_id) for run_id in done.stdout.split())
    assert client.get_experiment(follows.info.experiment_id).name.startswith("set ")
    assert other.info.status == "FINISHED"
    assert "pass the same one as experiment=" in done.stderr


def test_runs_in_threads_do_not_end_each_other(uri: str, client: Any, as_own: Any) -> None:
    opened = threading.Barrier(2)
    ended = threading.Event()

    def first() -> str:
        run = start_run(uri)
        opened.wait()
        run.end("FAILED")
        ended.set()
        return run.run_id

    def second() -> str:
        run = start_run(uri)
        opened.wait()
        ended.wait()
        assert client.get_run(run.run_id).info.status == "RUNNING"
        run.end("FINISHED")
        assert as_own.active_run() is None
        return run.run_id

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(first), pool.submit(second)]
        statuses = [client.get_run(run.result()).info.status for run in runs]
    assert statuses == ["FAILED", "FINISHED"]


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(mlflow_server: Any, uri: str) -> Iterator[FaultProxy]:
    with FaultProxy(int(uri.rpartition(":")[2])) as proxy:
        yield proxy


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Answer(401), SinkAuthError),
        (Answer(403), SinkAuthError),
        (Answer(404), SinkError),
        (Answer(429), TransientSinkError),
        (Answer(500), TransientSinkError),
        (Answer(503), TransientSinkError),
        (Reset(), TransientSinkError),
        (DropReply(), TransientSinkError),
    ],
    ids=repr,
)
def test_each_failure_is_of_its_kind_and_shows_no_password(
    mlflow: Any, proxy: FaultProxy, fault: Any, kind: type[StagesinkError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token-in-the-variable")
    there = f"http://me:password-in-the-url@127.0.0.1:{proxy.port}"
    run = start_run(there)
    proxy.plan(fault, times=100)
    for call in (
        lambda: start_run(there),
        lambda: start_run(there, experiment="some"),
        lambda: run.log_metrics({"a": 1}),
        lambda: run.end("FINISHED"),
    ):
        with pytest.raises(SinkError) as caught:
            call()
        expected = RunNotFound if isinstance(caught.value, RunNotFound) and kind is SinkError else kind
        assert type(caught.value) is expected
        assert caught.value.hint
        shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
        assert "password-in-the-url" not in shown
        assert "token-in-the-variable" not in shown


def test_a_server_that_is_not_there_is_a_failure_that_may_pass(uri: str, mlflow: Any) -> None:
    with pytest.raises(TransientSinkError, match=r"mlflow\+http://127\.0\.0\.1:1 .*that the server runs"):
        start_run("http://127.0.0.1:1")


def test_without_mlflow_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingExtra, match=r"pip install 'stagesink\[mlflow\]'"):
        start_run("sqlite:///none.db")


def test_an_end_that_fails_leaves_no_run_active(
    mlflow: Any, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    there = f"http://127.0.0.1:{proxy.port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", there)
    run = start_run(there)
    assert mlflow.active_run() is not None
    proxy.plan(Reset(), times=100)
    with caplog.at_level(logging.CRITICAL), pytest.raises(TransientSinkError):
        run.end("FINISHED")
    assert mlflow.active_run() is None


def test_a_run_of_another_is_not_left_active_either(
    mlflow: Any, client: Any, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = f"http://127.0.0.1:{proxy.port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", there)
    run = resume_run(there, client.create_run("0").info.run_id)
    assert mlflow.active_run() is not None
    proxy.plan(Reset(), times=100)
    with pytest.raises(TransientSinkError):
        run.end("FINISHED")
    assert mlflow.active_run() is None


def test_a_server_that_is_gone_is_waited_for_once(
    mlflow: Any, client: Any, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    run = start_run(f"http://127.0.0.1:{proxy.port}")

    def paths_asked(call: Callable[[], None]) -> list[str]:
        before = len(proxy.requests)
        with pytest.raises(TransientSinkError):
            call()
        return [target.rpartition("/")[2] for _, target in proxy.requests[before:]]

    proxy.plan(DropReply(), times=100)
    assert paths_asked(lambda: run.log_metrics({"a": 1})) == ["log-batch"] * 3
    assert paths_asked(lambda: run.log_metrics({"a": 1})) == ["health"]
    assert paths_asked(lambda: run.end("FINISHED")) == ["update"]
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2"
    proxy.forget()
    run.log_metrics({"b": 1})
    run.end("FINISHED")
    assert client.get_run(run.run_id).info.status == "FINISHED"
