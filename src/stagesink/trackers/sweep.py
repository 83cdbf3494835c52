"""The run of a search, with a nested one for each of its trials."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from stagesink.config.load import SKIP_VARIABLE
from stagesink.errors import SourceNotFound
from stagesink.planning import StrPath
from stagesink.runs.kept import KeptRun
from stagesink.runs.tracked import EndStatus, TrackedRun
from stagesink.stage_helpers import upload_hpo_artifacts
from stagesink.trackers.base import StageTracker


class MLflowSweepTracker(StageTracker):
    """The run of a search; takes what :class:`.StageTracker` takes.

    Examples
    --------
    >>> with MLflowSweepTracker(run_name="search") as sweep:
    ...     for number in range(20):
    ...         with sweep.trial(number) as trial:
    ...             trial.log_metrics({"accuracy": train(number)})
    ...     sweep.log_best_checkpoint(study, "out/sweep")
    True
    """

    stage = "hpo"

    def trial(self, number: int) -> TrialTracker:
        """Return a tracker for one trial: its run is started nested under the sweep's, at ``with``.

        Trials may run side by side, each in its own thread. Give a trial's own process its
        :attr:`~.TrialTracker.environment`.
        """
        return TrialTracker(self, number)

    def log_best_checkpoint(self, study: Study, output_dir: StrPath) -> bool:
        """Find the best trial's checkpoint and upload it, packed, as :func:`stagesink.upload_hpo_artifacts` does.

        Parameters
        ----------
        study : optuna.Study
            Or anything else with a ``best_trial`` that has a ``number``.
        output_dir : path
            Holds one folder per trial; :func:`best_checkpoint_dir` says which names are looked for.

        Returns
        -------
        bool
            True when it landed.
        """
        landed = False
        with self._facade.guard("The best trial's checkpoint was not uploaded"):
            number = _best_trial(study)
            landed = upload_hpo_artifacts(best_checkpoint_dir(output_dir, number), number, **self._uploads)
        return landed


class TrialTracker(StageTracker):
    """One trial's run, nested under its sweep's. :meth:`MLflowSweepTracker.trial` makes it."""

    stage = "hpo"

    def __init__(self, sweep: MLflowSweepTracker, number: int) -> None:
        super().__init__(
            sweep.run_id,
            sink=sweep._sink,
            run_name=f"trial-{number}",
            tags={"stagesink.trial_number": str(number)},
            parent_run_id=sweep.run_id,
            **sweep._options,
        )
        self._sweep = sweep

    @property
    def environment(self) -> dict[str, str]:
        """Variables for the trial's own process: it joins this run, and uploads nothing."""
        run = {} if self.run_id is None else {"STAGESINK_RUN_ID": self.run_id, "MLFLOW_RUN_ID": self.run_id}
        return {SKIP_VARIABLE: "true", **run}

    def _joined_or_started(self, server: str) -> TrackedRun | KeptRun | None:
        # No sweep's run, no trial's: it would stand alone among the experiment's runs.
        return None if self._sweep._run is None else super()._joined_or_started(server)

    def _end_status(self, error: BaseException | None) -> EndStatus:
        pruned = getattr(sys.modules.get("optuna"), "TrialPruned", ())
        return "KILLED" if isinstance(error, pruned) else super()._end_status(error)


class Study(Protocol):
    """What is asked of a study of Optuna."""

    @property
    def best_trial(self) -> Any: ...


def best_checkpoint_dir(output_dir: StrPath, trial_number: int) -> Path:
    """Return the folder of a trial's checkpoint: of its refit, else of its last fold, else of the trial itself.

    For the trial 7 these are, the first that exists and is not empty:

    1. ``trial_7/refit``
    2. ``trial_7/fold<k>``, ``trial_7/cv/fold<k>`` and ``trial_7_fold<k>``, the highest k
    3. ``trial_7``

    Each ``_`` may be a ``-``, and ``fold_<k>`` does as well. Where the folder holds a folder ``checkpoint``, that is
    taken.

    Parameters
    ----------
    output_dir : path
    trial_number : int

    Returns
    -------
    Path
        ``trial_7`` when there is none, which whoever uploads it will say.
    """
    folder = Path(output_dir)
    name = rf"trial[_-]{trial_number}"
    trials = list(_matching(folder, name))
    refits = [refit for trial in trials for refit in _matching(trial, "refit")]
    folds = [fold for trial in trials for parent in (trial, trial / "cv") for fold in _matching(parent, _FOLD)]
    folds += _matching(folder, rf"{name}[_-]{_FOLD}")
    folds.sort(key=lambda fold: int(re.findall(r"\d+$", fold.name)[0]), reverse=True)
    for found in (*refits, *folds, *trials):
        for candidate in (found / "checkpoint", found):
            if candidate.is_dir() and any(candidate.iterdir()):
                return candidate
    return folder / f"trial_{trial_number}"


_FOLD = r"fold[_-]?\d+"


def _matching(folder: Path, pattern: str) -> Iterator[Path]:
    if folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if re.fullmatch(pattern, path.name) and path.is_dir())


def _best_trial(study: Study) -> int:
    try:
        return int(study.best_trial.number)
    except (ValueError, RuntimeError) as error:  # as Optuna says it
        raise SourceNotFound(
            "The study has no best trial.", hint="It needs a finished trial and a single objective."
        ) from error
