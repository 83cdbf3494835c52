from __future__ import annotations

import platform
from pathlib import Path

import pytest

from stagesink.cli.doctor import _probe
from stagesink.errors import SinkAuthError, SinkError
from stagesink.sinks.memory import MemorySink
from stagesink.testing import FaultySink
from stagesink.testing.faults import corrupts, fails, loses_object, short_list

STEPS = ["write", "read back", "stat", "list", "delete"]


def test_a_healthy_sink_passes_every_step_and_keeps_no_object(run):
    document = run("doctor", "--json").json
    assert document["ok"] is True
    assert [step["step"] for step in document["probe"]] == ["configuration", "open", *STEPS]
    assert all(step["ok"] and step["ms"] >= 0 for step in document["probe"])
    assert document["sink"]["uri"] == "file:./artifacts"
    assert list(Path("artifacts").iterdir()) == []


def test_what_is_installed_is_told(run):
    document = run("doctor", "--json").json
    assert document["python"] == platform.python_version()
    assert set(document["extras"]) >= {"s3", "az", "gs", "sftp", "fast", "demo"}
    assert "s3fs" in document["extras"]["s3"]
    table = run("doctor").out
    assert "extra s3" in table
    assert "read back" in table


def test_an_unknown_scheme_is_told_with_the_rest(run):
    answer = run("doctor", "-s", "fille:x")
    assert answer.code == 2
    assert "Did you mean 'file'?" in answer.out
    assert "python" in answer.out


def test_a_store_that_does_not_let_us(run):
    answer = run("doctor", "-s", "file:/sys/stagesink", "--json")
    assert answer.code == 4
    assert answer.json["probe"][-1]["error"]["type"] == "SinkAuthError"


def test_a_broken_configuration_ends_it(run):
    Path("config").mkdir()
    Path("config/mlflow.yaml").write_text("artifacts: {worker: 3}")
    answer = run("doctor", "--json")
    assert answer.code == 2
    assert answer.json["ok"] is False
    assert answer.json["probe"][0]["step"] == "configuration"
    assert "workers" in answer.json["probe"][0]["error"]["message"]


def test_no_secret_is_shown(run):
    answer = run("doctor", "-s", "sftp://me:hunter2@localhost:1/x")
    assert answer.code != 0
    assert "hunter2" not in answer.out + answer.err


@pytest.mark.parametrize(
    ("fault", "failing"),
    [
        (fails("put", SinkAuthError("no")), "write"),
        (loses_object(), "read back"),
        (corrupts(), "read back"),
        (fails("stat", SinkError("no")), "stat"),
        (short_list(), "list"),
        (fails("delete", SinkError("no"), nth=1), "delete"),
    ],
)
def test_the_step_that_fails_is_named_and_the_probe_removed(fault, failing):
    sink = MemorySink("doctor")
    steps = _probe(FaultySink(sink, fault), "probe-run")
    assert [step.name for step in steps] == STEPS[: STEPS.index(failing) + 1]
    assert [step.error is None for step in steps] == [True] * STEPS.index(failing) + [False]
    assert sink._store.objects == {}


def test_a_sink_with_nothing_to_sweep(run):
    answer = run("doctor", "--sweep", "--json")
    assert answer.json["swept"] == []
    assert answer.json["ok"] is True
    assert "Not swept" in run("doctor", "--sweep").out
