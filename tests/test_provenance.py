from __future__ import annotations

import json
import os
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path

from outside import python

import stagesink
from stagesink.provenance import provenance

PROGRAM = """
    import json
    from stagesink.provenance import provenance
    print(json.dumps(provenance("training")))
"""


def provenance_in(folder: Path, **environ: str) -> dict[str, str]:
    """Ask in a process of its own: the commit is found once per process."""
    program = f"import os; os.chdir({str(folder)!r})\n" + "\n".join(line.strip() for line in PROGRAM.splitlines())
    answer: dict[str, str] = json.loads(python(program, **environ).stdout)
    return answer


def commit_in(folder: Path) -> str:
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    return subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()


def test_it_names_stage_version_and_time() -> None:
    told = provenance("training")
    assert (told["stage"], told["stagesink_version"]) == ("training", stagesink.__version__)
    age = datetime.now(timezone.utc) - datetime.fromisoformat(told["created_at"])
    assert timedelta(seconds=-1) <= age < timedelta(minutes=5)


def test_without_a_stage_it_names_none() -> None:
    assert "stage" not in provenance(None)
    assert "stage" not in provenance("")


def test_in_a_git_checkout_it_names_the_commit(tmp_path: Path) -> None:
    commit = commit_in(tmp_path)
    (tmp_path / "sub").mkdir()
    assert provenance_in(tmp_path / "sub")["git_commit"] == commit


def test_outside_of_one_it_names_none_and_says_nothing(tmp_path: Path) -> None:
    assert "git_commit" not in provenance_in(tmp_path, GIT_CEILING_DIRECTORIES=str(tmp_path.parent))


def test_in_a_checkout_without_a_commit_it_names_none(tmp_path: Path) -> None:
    subprocess.run(["git", "-C", str(tmp_path), "init", "-q"], check=True)
    assert "git_commit" not in provenance_in(tmp_path)


def test_without_git_it_names_none(tmp_path: Path) -> None:
    commit_in(tmp_path)
    assert "git_commit" not in provenance_in(tmp_path, PATH=str(tmp_path))


def test_a_git_that_hangs_does_not_hold_up_the_training(tmp_path: Path) -> None:
    fake = tmp_path / "git"
    fake.write_text("#!/bin/sh\nexec sleep 60\n")
    fake.chmod(0o755)
    assert "git_commit" not in provenance_in(tmp_path, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
