from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="needs the extra demo")
pytest.importorskip("optuna", reason="needs the extra demo")

import optuna

from stagesink.pipeline import sweep
from stagesink.pipeline.training import Settings
from stagesink.trackers import MLflowSweepTracker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def found(folder: Path) -> sweep.Sweep:
    return sweep.search(2, folder / "sweep", MLflowSweepTracker("run", sink=f"file:{folder / 'store'}"))


def test_the_best_trial_is_the_one_with_the_highest_accuracy(found: sweep.Sweep) -> None:
    assert len(found.accuracies) == 2
    assert found.accuracies[found.best_trial] == max(found.accuracies)


def test_only_the_best_trial_goes_up_and_no_trial_uploads_by_itself(found: sweep.Sweep, folder: Path) -> None:
    assert found.landed is True
    assert sorted(path.name for path in (folder / "store").rglob("*") if path.is_file()) == [
        "best_trial_checkpoint.tar.gz",
        "best_trial_checkpoint_manifest.json",
    ]


def test_the_archive_holds_the_best_trials_checkpoint(found: sweep.Sweep, folder: Path) -> None:
    best = folder / "sweep" / f"trial-{found.best_trial}" / "checkpoint"
    assert Settings(**json.loads((best / "config.json").read_text())) == found.best
    with tarfile.open(folder / "store" / "run" / "best_trial_checkpoint.tar.gz") as archive:
        packed = {Path(member.name).name: member for member in archive if member.isfile()}
        assert packed.keys() == {path.name for path in best.iterdir()}
        model = archive.extractfile(packed["model.joblib"])
        assert model is not None
        assert model.read() == (best / "model.joblib").read_bytes()
    manifest = json.loads((folder / "store" / "run" / "best_trial_checkpoint_manifest.json").read_text())
    assert manifest["trial_number"] == found.best_trial


def test_each_trial_says_in_its_log_that_it_skipped_its_upload(found: sweep.Sweep, folder: Path) -> None:
    for number in range(2):
        assert "MLFLOW_SKIP_ARTIFACT_LOGGING" in (folder / "sweep" / f"trial-{number}" / "trial.log").read_text()


def test_a_trial_that_fails_is_an_error_that_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sweep.SPACE, "learning_rate", optuna.distributions.FloatDistribution(-1.0, -0.5))
    with pytest.raises(sweep.TrialFailed, match=r"trial-0 ended with exit code 1.*trial\.log"):
        sweep.search(1, tmp_path / "sweep", MLflowSweepTracker("run", sink=f"file:{tmp_path / 'store'}"))
    assert "learning_rate" in (tmp_path / "sweep" / "trial-0" / "trial.log").read_text()
    assert not (tmp_path / "store").exists()
