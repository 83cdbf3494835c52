"""What trackers log to a run whose server is not there."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from stagesink.errors import ConfigError
from stagesink.outbox.settings import OutboxSettings
from stagesink.outbox.store import Outbox
from stagesink.runs.kept import KeptRun, KeptRuns

SINK = "mlflow+http://host:5000"


@pytest.fixture
def kept(tmp_path: Path) -> KeptRuns:
    path = str(tmp_path / "outbox")
    return KeptRuns(path, SINK, lambda: Outbox(OutboxSettings(path=path)))


def logged(kept: KeptRuns, run: KeptRun, kind: str) -> list[dict[str, Any]]:
    found = kept._runs.get(run.run_id)
    assert found is not None
    return [event for _, event in found.events() if event["event"] == kind]


def test_to_look_for_a_run_makes_no_outbox(kept: KeptRuns) -> None:
    assert kept.on_server("any") == "any"
    assert not kept.path.exists()


def test_a_parameter_keeps_its_first_value(kept: KeptRuns) -> None:
    run = kept.start()
    run.log_params({"lr": 0.1, "long": "x" * 7000})
    run.log_params({"lr": 0.1})
    with pytest.raises(ConfigError, match="lr has another value already"):
        kept.join(run.run_id).log_params({"lr": 0.2, "other": 1})
    (event,) = logged(kept, run, "params")
    assert event["params"] == {"lr": "0.1", "long": "x" * 5999 + "…"}


def test_metrics_are_numbers_of_any_kind(kept: KeptRuns) -> None:
    run = kept.start()
    with pytest.raises(ConfigError, match=r"text \(str\)"):
        run.log_metrics({"loss": 1, "text": "a", "gone": math.nan, "huge": math.inf}, 3, time=17)
    (event,) = logged(kept, run, "metrics")
    assert (event["step"], event["time"]) == (3, 17)
    assert str(event["metrics"]) == str({"loss": 1.0, "gone": math.nan, "huge": math.inf})


@pytest.mark.parametrize("name", ["", "x" * 251])
def test_a_name_that_no_server_takes_is_said_at_once(kept: KeptRuns, name: str) -> None:
    run = kept.start()
    for log in (run.log_params, run.log_metrics, run.set_tags):
        with pytest.raises(ConfigError, match="is no name"):
            log({"good": 1, name: 1})  # type: ignore[operator]
    assert not any(logged(kept, run, kind) for kind in ("params", "metrics", "tags"))


def test_one_that_is_joined_has_no_end_here(kept: KeptRuns) -> None:
    run = kept.start()
    kept.join(run.run_id).end("FAILED")
    assert logged(kept, run, "end") == []
    run.end("FINISHED")
    assert [event["status"] for event in logged(kept, run, "end")] == ["FINISHED"]


def test_an_experiments_id_is_kept_where_it_has_no_name(kept: KeptRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("urllib3", reason="comes with the extra mlflow")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "7")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", kept._sink_uri.partition("+")[2])

    def kept_id(**how: str) -> str | None:
        found = kept._runs.get(kept.start(**how).run_id)
        assert found is not None
        return found.start.experiment_id

    assert (kept_id(), kept_id(experiment="a"), kept_id(parent_run_id="above")) == ("7", None, None)
    for uri in ("http://another:1", ""):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert kept_id() is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", kept._sink_uri.partition("+")[2])
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "b")
    assert kept_id() is None


def test_where_it_comes_from_is_kept(kept: KeptRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "by variable")
    monkeypatch.setattr("sys.argv", ["train.py"])
    monkeypatch.setattr("getpass.getuser", lambda: "somebody")
    found = kept._runs.get(kept.start(run_name="a name", tags={"long": "x" * 9000}).run_id)
    assert found is not None
    assert (found.start.experiment, found.start.name) == ("by variable", "a name")
    assert found.start.tags["mlflow.source.name"] == "train.py"
    assert found.start.tags["mlflow.user"] == "somebody"
    assert len(found.start.tags["long"]) == 5000
    nested = kept._runs.get(kept.start(parent_run_id="above").run_id)
    assert nested is not None
    assert (nested.start.experiment, nested.start.parent_run_id) == (None, "above")  # it goes where its parent is
