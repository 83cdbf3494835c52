"""What ranks agree on without talking: the same for all of one checkpoint, and never for two."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from stagesink.errors import ConfigError
from stagesink.runs.session import life_of_job, next_session

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "my-job",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "MASTER_ADDR": "node-1",
    "MASTER_PORT": "40111",
}
SLURM = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize("environ", [TORCHRUN, SLURM, {**TORCHRUN, **SLURM}], ids=["torchrun", "slurm", "both"])
def test_all_ranks_of_one_start_agree(environ: dict[str, str]) -> None:
    ranks = [{**environ, "RANK": str(n), "LOCAL_RANK": str(n), "SLURM_PROCID": str(n)} for n in range(3)]
    assert len({life_of_job(rank) for rank in ranks}) == 1
    assert life_of_job(environ) is not None


@pytest.mark.parametrize(
    ("environ", "change"),
    [
        (TORCHRUN, {"TORCHELASTIC_RESTART_COUNT": "1"}),  # one rank failed, and torchrun started all anew
        (TORCHRUN, {"MASTER_PORT": "40222"}),  # somebody started torchrun anew under the same id
        (TORCHRUN, {"TORCHELASTIC_RUN_ID": "other"}),
        (SLURM, {"SLURM_RESTART_COUNT": "1"}),  # preempted and queued again
        (SLURM, {"SLURM_JOB_ID": "78"}),
        (SLURM, {"SLURM_STEP_ID": "1"}),  # a second srun in the same job
        ({**TORCHRUN, **SLURM}, {"SLURM_RESTART_COUNT": "1"}),
    ],
)
def test_another_start_has_another_session(environ: dict[str, str], change: dict[str, str]) -> None:
    assert life_of_job(environ) != life_of_job({**environ, **change})


def test_with_torchrun_each_node_may_be_a_step_of_its_own() -> None:
    steps = [{**TORCHRUN, **SLURM, "SLURM_STEP_ID": step} for step in "01"]
    assert life_of_job(steps[0]) == life_of_job(steps[1])


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {
            "TORCHELASTIC_RUN_ID": "none",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "MASTER_PORT": "29500",
        },  # torchrun by itself
        {"AZUREML_RUN_ID": "run", "MLFLOW_RUN_ID": "run"},  # a job that is preempted keeps them
    ],
)
def test_where_two_starts_look_alike_the_caller_has_to_say_it(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="session="):
        next_session("run", uuid.uuid4().hex, environ)


def test_each_upload_to_a_place_has_a_session_of_its_own() -> None:
    run: Any = uuid.uuid4().hex
    sessions = [next_session(run, path, SLURM) for path in ("a", "a", "b", "a")]
    assert [session.rpartition(" ")[2] for session in sessions] == ["1", "2", "1", "3"]
    assert len(set(sessions)) == 3
