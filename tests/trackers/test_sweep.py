"""A search, its trials and its best checkpoint."""

from __future__ import annotations

import io
import logging
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from mlflow_servers import MlflowServer
from outside import python

from stagesink.trackers import MLflowSweepTracker
from stagesink.trackers.sweep import best_checkpoint_dir


@dataclass
class Trial:
    number: int


@dataclass
class Study:
    """What is asked of Optuna's; the real one is in the tests that need it."""

    best_trial: Trial


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(path.parent.as_posix())


# -- trials ------------------------------------------------------------------------------------------------------------


def test_trials_side_by_side_are_runs_under_the_sweeps(server: MlflowServer, client: Any, tmp_path: Path) -> None:
    barrier = threading.Barrier(4)

    def attempt(number: int) -> str:
        with sweep.trial(number) as trial:
            barrier.wait()  # all are open at once
            assert trial.log_params({"number": number}) is True
            assert trial.log_metrics({"accuracy": number / 10}) is True
        return str(trial.run_id)

    with MLflowSweepTracker(sink=server.sink_uri, experiment=str(tmp_path)) as sweep, ThreadPoolExecutor(4) as pool:
        trials = list(pool.map(attempt, range(4)))
    parent = client.get_run(sweep.run_id)
    for number, run in enumerate(map(client.get_run, trials)):
        assert run.info.status == "FINISHED"
        assert run.info.run_name == f"trial-{number}"
        assert run.info.experiment_id == parent.info.experiment_id
        assert run.data.tags["mlflow.parentRunId"] == sweep.run_id
        assert run.data.tags["stagesink.trial_number"] == str(number)
        assert run.data.params == {"number": str(number)}
        assert run.data.metrics == {"accuracy": number / 10}
    assert parent.data.metrics == {}


def test_a_trial_that_fails_is_failed_and_one_that_is_pruned_killed(server: MlflowServer, client: Any) -> None:
    optuna = pytest.importorskip("optuna", reason="comes with the extra demo")
    ended = {}
    with MLflowSweepTracker(sink=server.sink_uri) as sweep:
        for error in (ValueError, optuna.TrialPruned):
            trial = sweep.trial(len(ended))
            with pytest.raises(error), trial:
                raise error
            ended[error] = client.get_run(trial.run_id).info.status
    assert ended == {ValueError: "FAILED", optuna.TrialPruned: "KILLED"}
    assert client.get_run(sweep.run_id).info.status == "FINISHED"


@pytest.mark.once
@pytest.mark.parametrize("parents_variable", ["STAGESINK_RUN_ID", "MLFLOW_RUN_ID", None])
def test_a_trials_own_process_joins_its_run_and_uploads_nothing(
    server: MlflowServer, client: Any, out: Path, monkeypatch: pytest.MonkeyPatch, parents_variable: str | None
) -> None:
    if parents_variable:
        monkeypatch.setenv(parents_variable, server.run())
    program = """
        import sys
        from stagesink.trackers import MLflowTrainingTracker
        with MLflowTrainingTracker(sink=sys.argv[1]) as tracker:
            assert tracker.log_metrics({"loss": 0.5}, step=3)
            assert tracker.log_training_artifacts("out/checkpoint", "out/metrics.json") == {
                "checkpoint": False, "metrics_json": False
            }
    """
    with MLflowSweepTracker(sink=server.sink_uri) as sweep, sweep.trial(0) as trial:
        python(program, server.sink_uri, **trial.environment)
        assert client.get_run(trial.run_id).info.status == "RUNNING"
    assert client.get_run(trial.run_id).data.metrics == {"loss": 0.5}
    assert server.listed(str(trial.run_id)) == {}
    assert client.get_run(sweep.run_id).data.metrics == {}


def test_without_a_sweeps_run_there_are_no_runs_of_trials(
    server: MlflowServer, client: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"stays empty {uuid4()}"
    experiment_id = client.create_experiment(name)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    with MLflowSweepTracker("0" * 32, sink=server.sink_uri) as sweep, sweep.trial(0) as trial:
        assert trial.log_metrics({"a": 1}) is False
    assert client.search_runs([experiment_id]) == []
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


def test_with_a_sink_that_tracks_no_runs_a_trial_has_the_sweeps(tmp_path: Path) -> None:
    with MLflowSweepTracker("mine", sink=f"file:{tmp_path}") as sweep, sweep.trial(3) as trial:
        assert trial.run_id == "mine"
        assert trial.environment == {
            "MLFLOW_SKIP_ARTIFACT_LOGGING": "true",
            "STAGESINK_RUN_ID": "mine",
            "MLFLOW_RUN_ID": "mine",
        }


# -- the best checkpoint -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "best"),
    [
        (["trial_7/checkpoint/m", "trial_7/fold0/m", "trial_7/refit/checkpoint/m"], "trial_7/refit/checkpoint"),
        (["trial_7/refit/m", "trial_7/fold9/m"], "trial_7/refit"),
        (["trial_7/fold2/checkpoint/m", "trial_7/fold10/checkpoint/m"], "trial_7/fold10/checkpoint"),
        (["trial_7/cv/fold_1/m", "trial_7/cv/fold_0/m", "trial_7/checkpoint/m"], "trial_7/cv/fold_1"),
        (["trial_7_fold0/m", "trial_7_fold1/m", "trial_7/m"], "trial_7_fold1"),
        (["trial-7-fold-0/m", "trial-7-fold-1/checkpoint/m"], "trial-7-fold-1/checkpoint"),
        (["trial-7/checkpoint/m"], "trial-7/checkpoint"),
        (["trial_7/m"], "trial_7"),
        (["trial_7/refit/", "trial_7/fold1/", "trial_7/fold0/m"], "trial_7/fold0"),
        (["trial_7/checkpoint/", "trial_7/m"], "trial_7"),
        (["trial_7/refit", "trial_7/checkpoint/m"], "trial_7/checkpoint"),
        (["trial_71/m", "trial_17/m", "trial_7x/m", "xtrial_7/m", "trial_7_foldx/m"], "trial_7"),
        ([], "trial_7"),
    ],
    ids=" ".join,
)
def test_the_refit_counts_before_the_last_fold_and_that_before_the_trial(
    tmp_path: Path, there: list[str], best: str
) -> None:
    for path in there:
        if path.endswith("/"):
            (tmp_path / path).mkdir(parents=True)
        else:
            write(tmp_path / path)
    assert best_checkpoint_dir(tmp_path, 7) == tmp_path / best


def test_the_best_trials_checkpoint_lands_packed(server: MlflowServer, tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna", reason="comes with the extra demo")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for number, accuracy in enumerate([0.1, 0.9, 0.5]):
        write(tmp_path / "sweep" / f"trial_{number}" / "refit" / "model.bin")
        study.tell(study.ask(), accuracy)
    with MLflowSweepTracker(sink=server.sink_uri) as sweep:
        assert sweep.log_best_checkpoint(study, tmp_path / "sweep") is True
    (tmp_path / "down").mkdir()
    there = server.downloaded(str(sweep.run_id), tmp_path / "down")
    assert there.keys() == {"best_trial_checkpoint.tar.gz", "best_trial_checkpoint_manifest.json"}
    with tarfile.open(fileobj=io.BytesIO(there["best_trial_checkpoint.tar.gz"])) as archive:
        (member,) = archive.getmembers()
        stream = archive.extractfile(member)
        assert stream is not None
        assert stream.read().decode() == (tmp_path / "sweep/trial_1/refit").as_posix()


def test_a_best_trial_without_a_folder_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = MLflowSweepTracker("run", sink=f"file:{tmp_path / 'store'}")
    assert tracker.log_best_checkpoint(Study(Trial(7)), tmp_path) is False
    assert "trial_7" in caplog.text
    assert not (tmp_path / "store").exists()


def test_a_study_without_a_best_trial_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    optuna = pytest.importorskip("optuna", reason="comes with the extra demo")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    tracker = MLflowSweepTracker("run", sink=f"file:{tmp_path}")
    several = optuna.create_study(directions=["maximize", "minimize"])
    several.tell(several.ask(), [1, 2])
    for study in (optuna.create_study(), several):
        caplog.clear()
        assert tracker.log_best_checkpoint(study, tmp_path) is False
        assert "The study has no best trial. It needs a finished trial and a single objective." in caplog.text


def test_a_switched_off_checkpoint_is_skipped_wherever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("STAGESINK_TRACKING_HPO_LOG_CHECKPOINT", "false")
    tracker = MLflowSweepTracker("run", sink=f"file:{tmp_path / 'store'}")
    assert tracker.log_best_checkpoint(Study(Trial(7)), tmp_path) is False
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
