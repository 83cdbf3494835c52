"""Runs: which one artifacts belong to, and how runs are made, followed and, without a server, kept for later.

:mod:`.named` finds the run, :mod:`.session` tells one life of a distributed job from the next. :mod:`.tracked` starts
and ends runs on a tracking server; :mod:`.kept` stands for one whose server is not there, and :mod:`.sync` makes it on
the server later, by :mod:`.server`.
"""

from __future__ import annotations

from stagesink.runs.named import (
    MADE_HERE,
    FoundRun,
    active_tracking_uri,
    find_run,
    get_mlflow_run_id,
    named_run,
    new_run_id,
)

__all__ = ["MADE_HERE", "FoundRun", "active_tracking_uri", "find_run", "get_mlflow_run_id", "named_run", "new_run_id"]
