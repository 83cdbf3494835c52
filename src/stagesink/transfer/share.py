"""What one rank of a distributed job says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stagesink.errors import ConfigError
from stagesink.transfer.notes import group_of

_MAX_SESSION = 500  # characters
_MAX_RANKS = 1_000_000


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's share of an upload that all ranks of a job make together.

    Parameters
    ----------
    rank : int
        From 0 on.
    world_size : int
        How many ranks there are.
    session : str
        The same on all ranks for one checkpoint, and another for each checkpoint and each start of the job: only what
        agrees on it becomes one upload.

    Raises
    ------
    ConfigError
        One of them cannot be.
    """

    rank: int
    world_size: int
    session: str

    def __post_init__(self) -> None:
        if not _is_int(self.world_size) or not 1 <= self.world_size <= _MAX_RANKS:
            raise ConfigError(
                f"world_size is {_shown(self.world_size)}; it is the number of ranks, from 1 on.",
                hint="Correct the call.",
            )
        if not _is_int(self.rank) or not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"rank is {_shown(self.rank)}; of {self.world_size} ranks it is one from 0 to {self.world_size - 1}.",
                hint="Correct the call.",
            )
        if not _is_text(self.session) or not 0 < len(self.session) <= _MAX_SESSION:
            raise ConfigError(
                f"session is {_shown(self.session)}; it is a text of 1 to {_MAX_SESSION} characters.",
                hint="Pass the same text on every rank, another for each checkpoint and each start of the job.",
            )

    def group(self, path: str) -> str:
        """Return a name for all who upload this together."""
        return group_of(path, self.session, self.world_size)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _shown(value: object) -> str:
    return ascii(value)[:80]
