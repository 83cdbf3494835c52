from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import textwrap
import types

import pytest

from stagesink.errors import RunNotFound, SinkError
from stagesink.runs import FoundRun, find_run, get_mlflow_run_id

LOCAL_ID = re.compile(r"\d{8}-\d{6}-[0-9a-z]{7}")


def fresh_process(program: str, **environ: str) -> tuple[list[str], str]:
    """Run a program in a process of its own; return its lines and what it said on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, **environ},
    )
    return done.stdout.splitlines(), done.stderr


@pytest.fixture
def mlflow(monkeypatch):
    """Stand in for an imported mlflow with this ``active_run``; no import of the real one can be broken at will."""

    def mlflow(active_run=None, *, exception=None):
        module = types.ModuleType("mlflow")
        if active_run is not None:
            module.active_run = active_run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "mlflow", module)
        if exception is not None:
            errors = types.ModuleType("mlflow.exceptions")
            errors.MlflowException = exception  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, "mlflow.exceptions", errors)

    return mlflow


def run_called(run_id: object) -> object:
    return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))


class Broken(Exception):
    pass


def raising(error: Exception):
    def active_run():
        raise error

    return active_run


# -- get_mlflow_run_id -------------------------------------------------------------------------------------------------


def test_without_mlflow_the_variable_counts(monkeypatch):
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    assert get_mlflow_run_id() is None
    monkeypatch.setenv("MLFLOW_RUN_ID", "")
    assert get_mlflow_run_id() is None
    monkeypatch.setenv("MLFLOW_RUN_ID", "from-variable")
    assert get_mlflow_run_id() == "from-variable"


def test_the_active_run_is_above_the_variable(monkeypatch, mlflow):
    monkeypatch.setenv("MLFLOW_RUN_ID", "from-variable")
    mlflow(lambda: run_called("active"))
    assert get_mlflow_run_id() == "active"


@pytest.mark.parametrize(
    "active_run",
    [
        None,
        lambda: None,
        lambda: object(),
        lambda: run_called(None),
        lambda: run_called(""),
        lambda: run_called(7),
        lambda needed: None,
        raising(ImportError("half")),
        raising(RuntimeError("broken")),
        raising(LookupError()),
        raising(OSError()),
        raising(Broken("mlflow's own")),
    ],
)
def test_a_half_imported_or_broken_mlflow_never_raises(monkeypatch, mlflow, active_run):
    mlflow(active_run, exception=Broken)
    assert get_mlflow_run_id() is None
    monkeypatch.setenv("MLFLOW_RUN_ID", "from-variable")
    assert get_mlflow_run_id() == "from-variable"


def test_a_blocked_import_of_mlflow_is_no_mlflow(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert get_mlflow_run_id() is None


def test_asking_does_not_import_mlflow():
    program = """
        import sys
        from stagesink.runs import find_run, get_mlflow_run_id
        get_mlflow_run_id(), find_run(needs_server=False)
        print("mlflow" in sys.modules)
    """
    assert fresh_process(program)[0] == ["False"]


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_the_real_mlflows_active_run_is_found(tmp_path):
    program = """
        import mlflow
        from stagesink.runs import get_mlflow_run_id
        print(get_mlflow_run_id())
        with mlflow.start_run() as run:
            print(get_mlflow_run_id() == run.info.run_id)
        print(get_mlflow_run_id())
    """
    environ = {"MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}
    assert fresh_process(program, **environ)[0] == ["None", "True", "None"]


# -- find_run ----------------------------------------------------------------------------------------------------------

EVERYTHING = {"STAGESINK_RUN_ID": "ours", "MLFLOW_RUN_ID": "mlflow", "AZUREML_RUN_ID": "azure"}


@pytest.mark.parametrize(
    ("argument", "active", "environ", "found"),
    [
        ("given", "active", EVERYTHING, FoundRun("given", "argument")),
        (None, "active", EVERYTHING, FoundRun("ours", "STAGESINK_RUN_ID")),
        (None, "active", {**EVERYTHING, "STAGESINK_RUN_ID": ""}, FoundRun("active", "active MLflow run")),
        (None, None, {**EVERYTHING, "STAGESINK_RUN_ID": ""}, FoundRun("mlflow", "MLFLOW_RUN_ID")),
        (None, None, {"MLFLOW_RUN_ID": "", "AZUREML_RUN_ID": "azure"}, FoundRun("azure", "AZUREML_RUN_ID")),
    ],
)
@pytest.mark.parametrize("needs_server", [True, False])
def test_precedence(mlflow, argument, active, environ, found, needs_server):
    mlflow(lambda: run_called(active) if active else None)
    assert find_run(argument, needs_server=needs_server, environ=environ) == found


@pytest.mark.parametrize("environ", [{}, dict.fromkeys(EVERYTHING, "")])
def test_a_sink_that_needs_a_server_gets_no_run_made_up(environ):
    with pytest.raises(RunNotFound) as caught:
        find_run(needs_server=True, environ=environ)
    assert isinstance(caught.value, SinkError)
    assert str(caught.value) == (
        "There is no run to upload to. Pass run_id=, set STAGESINK_RUN_ID or MLFLOW_RUN_ID, "
        "or call it inside `with mlflow.start_run():`."
    )


def test_a_local_run_is_made_once_shared_by_all_threads_and_said_once():
    program = """
        from concurrent.futures import ThreadPoolExecutor
        from threading import Barrier
        from stagesink.runs import find_run
        barrier = Barrier(8)
        def find(_):
            barrier.wait()
            return find_run(needs_server=False)
        with ThreadPoolExecutor(8) as pool:
            found = set(pool.map(find, range(8)))
        print(len(found), *{run.run_id for run in found}, *{run.source for run in found}, sep="|")
    """
    lines, said = fresh_process(program)
    count, run_id, source = lines[0].split("|")
    assert count == "1"
    assert LOCAL_ID.fullmatch(run_id)
    assert source == "made for this process"
    assert said == f"No run was named: this process uploads to run {run_id}. Set STAGESINK_RUN_ID to name it.\n"


def test_each_new_process_makes_its_own_and_they_sort_by_time():
    program = "from stagesink.runs import find_run; print(find_run(needs_server=False).run_id)"
    ids = [fresh_process(program)[0][0] for _ in range(2)]
    assert ids[0] != ids[1]
    assert ids[0][:15] <= ids[1][:15]


def test_the_time_in_it_is_utc():
    program = """
        import time
        from stagesink.runs import find_run
        before = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        made = find_run(needs_server=False).run_id[:15]
        print(before <= made <= time.strftime("%Y%m%d-%H%M%S", time.gmtime()))
    """
    assert fresh_process(program, TZ="Asia/Tokyo")[0] == ["True"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_keeps_its_parents_run_and_a_held_lock_does_not_stop_it():
    program = """
        import os
        from stagesink.runs import named as runs
        mine = runs.find_run(needs_server=False).run_id
        runs._lock.acquire()  # as another thread might at the moment of the fork
        read, write = os.pipe()
        if os.fork() == 0:
            os.write(write, runs.find_run(needs_server=False).run_id.encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as child:
            print(child.read() == mine)
    """
    assert fresh_process(program)[0] == ["True"]


def test_naming_the_run_makes_none_up_and_says_nothing():
    program = "from stagesink.runs import find_run; print(find_run(needs_server=False).run_id)"
    assert fresh_process(program, STAGESINK_RUN_ID="mine") == (["mine"], "")
