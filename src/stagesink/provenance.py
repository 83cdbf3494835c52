"""Where an upload came from: what a manifest says besides its files."""

from __future__ import annotations

import functools
import subprocess
from datetime import datetime, timezone

from stagesink._version import __version__


def provenance(stage: str | None) -> dict[str, str]:
    """Return stage, stagesink version, UTC time and, when the working folder is in a git checkout, its commit."""
    commit = git_commit()
    return {
        **({"stage": stage} if stage else {}),
        "stagesink_version": __version__,
        **({"git_commit": commit} if commit else {}),
        "created_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


@functools.cache
def git_commit() -> str | None:
    """Return the commit that the working folder is at, None outside of a checkout."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "--verify", "HEAD"], capture_output=True, text=True, timeout=2, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None  # no git on this machine: provenance is a courtesy
    return answer.stdout.strip() if answer.returncode == 0 else None
