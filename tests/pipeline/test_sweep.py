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


def test_only_the_best_trial_goes_up_and_trials_upload_nothing(tmp_path: Path) -> None:
    found = sweep.search(2, tmp_path / "sweep", run_id="run", sink=f"file:{tmp_path / 'store'}")

    assert found.landed is True
    assert found.accuracies[found.best_trial] == max(found.accuracies)
    assert sorted(path.name for path in (tmp_path / "store").rglob("*") if path.is_file()) == [
        "best_trial_checkpoint.tar.gz",
        "best_trial_checkpoint_manifest.json",
    ]
    best = tmp_path / "sweep" / f"trial-{found.best_trial}" / "checkpoint"
    assert Settings(**json.loads((best / "config.json").read_text())) == found.best
    with tarfile.open(tmp_path / "store" / "run" / "best_trial_checkpoint.tar.gz") as archive:
        assert {Path(name).name for name in archive.getnames()} >= {path.name for path in best.iterdir()}


def test_each_trial_says_in_its_log_that_it_skipped_its_upload(tmp_path: Path) -> None:
    sweep.search(1, tmp_path / "sweep", run_id="run", sink=f"file:{tmp_path / 'store'}")
    assert "MLFLOW_SKIP_ARTIFACT_LOGGING" in (tmp_path / "sweep" / "trial-0" / "trial.log").read_text()


def test_a_trial_that_fails_is_an_error_that_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sweep.SPACE, "learning_rate", optuna.distributions.FloatDistribution(-1.0, -0.5))
    with pytest.raises(sweep.TrialFailed, match=r"trial-0 ended with exit code 1.*trial\.log"):
        sweep.search(1, tmp_path / "sweep", run_id="run", sink=f"file:{tmp_path / 'store'}")
    assert "learning_rate" in (tmp_path / "sweep" / "trial-0" / "trial.log").read_text()
    assert not (tmp_path / "store").exists()
