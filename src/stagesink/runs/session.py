"""What ranks that upload one checkpoint together agree on, without talking to each other.

A session must be the same on all ranks, and another for each checkpoint and each life of the job: what one life left
unfinished must never be completed by the next. So it is made of two things.

**The life of the job**, from what its launcher tells every rank:

- Slurm: ``SLURM_JOB_ID`` and ``SLURM_RESTART_COUNT``; with ranks that ``srun`` started itself, ``SLURM_STEP_ID`` too.
- torchrun: ``TORCHELASTIC_RUN_ID`` and ``TORCHELASTIC_RESTART_COUNT``, and where the ranks meet, ``MASTER_ADDR`` and
  ``MASTER_PORT``: the id is often a word that somebody chose once, while the port is new each time in most set-ups. An
  id of "none", torchrun's own for one that was not given, says nothing; then Slurm has to.

The run of MLflow or Azure ML is not in this list: a job that is preempted and started again has the same.

**The checkpoint**: how many times this process has uploaded to the same place as a rank. All ranks run the same
program, so they count alike, and a launcher that starts one rank anew starts all.

Where neither is told, or where ranks do not count alike, the caller has to say it: ``session=``.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Mapping

from stagesink.errors import ConfigError

_SLURM = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT")
_TORCHRUN = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
_UNSAID = ("", "none")  # torchrun's run id when none was given

_lock = threading.Lock()
_uploads: Counter[tuple[str, str]] = Counter()


def next_session(run_id: str, path: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return the session of this process's next upload to a place, as a rank.

    Raises
    ------
    ConfigError
        Nothing here tells one life of the job from another.
    """
    life = life_of_job(environ)
    with _lock:
        _uploads[run_id, path] += 1
        number = _uploads[run_id, path]
    if life is None:
        raise ConfigError(
            "Nothing in the environment tells this start of the job from the one before it.",
            hint="Pass session=: the same text on every rank, and another for each checkpoint and each start.",
        )
    return f"{life} upload {number}"


def life_of_job(environ: Mapping[str, str]) -> str | None:
    """Return a name that all ranks of one start of a job share, and no other start has; None when it is not told."""
    slurm, torchrun = environ.get("SLURM_JOB_ID", ""), environ.get("TORCHELASTIC_RUN_ID", "")
    names: tuple[str, ...] = ()
    if torchrun:
        names += _TORCHRUN
    if slurm:
        names += _SLURM if torchrun else (*_SLURM, "SLURM_STEP_ID")
    if not slurm and torchrun in _UNSAID:
        return None
    return " ".join(f"{name}={environ[name]}" for name in names if environ.get(name))
