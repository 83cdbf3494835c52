"""What is handed over, as the engine's plans: a tree, an archive or a file, where it goes, and who says so."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from stagesink.archive import archive_format_of
from stagesink.config import Config
from stagesink.errors import ConfigError, SourceNotFound
from stagesink.provenance import provenance
from stagesink.runs.session import next_session
from stagesink.transfer import Plan, plan_archive, plan_file, plan_packed_tree, plan_tree
from stagesink.transfer.share import Share
from stagesink.tree import scan_tree

StrPath = str | os.PathLike[str]
Ranks = tuple[int | None, int | None, str | None]
"""Rank, number of ranks, and session; see :meth:`.ArtifactUploader.upload_checkpoint`."""

NO_RANKS: Ranks = (None, None, None)


@dataclass(frozen=True, slots=True)
class Planner:
    """Plans uploads of one stage into one run.

    Parameters
    ----------
    config : Config
    stage : str or None
    run_id : callable
        Returns the run; asked once all else is known to be right, since it may begin one.
    is_named : bool
        Whether somebody named the run, so that other processes mean the same one.
    """

    config: Config
    stage: str | None
    run_id: Callable[[], str]
    is_named: bool

    def checkpoint(self, folder: str, destination: str, ranks: Ranks = NO_RANKS) -> Plan:
        """Plan a folder: as a tree, or as one archive when ``artifacts.pack`` says so.

        Raises
        ------
        ConfigError
            What is said of the ranks does not fit together, or does not fit the configuration.
        SourceError, ArchiveError
            The folder cannot be uploaded as it is.
        """
        share = self._share(destination, *ranks)
        pack = self.config.artifacts.pack
        if pack != "none":
            if share is not None and share.world_size > 1:
                raise ConfigError(
                    f"artifacts.pack is {pack}, and several ranks cannot make one archive.",
                    hint="Set artifacts.pack (STAGESINK_PACK) to none for this job.",
                )
            return self.packed(folder, f"{destination}.{pack}")
        return plan_tree(self.run_id(), destination, folder, provenance=provenance(self.stage), share=share)

    def packed(self, folder: str, destination: str, trial_number: int | None = None) -> Plan:
        """Plan a folder as one archive, whose format its name says."""
        return plan_packed_tree(
            self.run_id(),
            destination,
            folder,
            archive_format=archive_format_of(destination),
            level=self.config.artifacts.compression.level,
            details={} if trial_number is None else {"trial_number": trial_number},
            provenance=provenance(self.stage),
        )

    def file(self, file: str, destination: str) -> Plan:
        """Plan one file."""
        return plan_file(self.run_id(), destination, file, provenance=provenance(self.stage))

    def archive(self, archive: str, manifest: Mapping[str, Any] | None, destination: str) -> Plan:
        """Plan an archive that is there already, with what was returned when it was made."""
        return plan_archive(self.run_id(), destination, archive, manifest=manifest, provenance=provenance(self.stage))

    def addition(self, local: str, destination: str) -> Plan:
        """Plan a file or a folder that is put beside what lies at its destination."""
        plan = plan_tree if os.path.isdir(local) else plan_file
        return replace(plan(self.run_id(), destination, local, provenance=provenance(self.stage)), adds=True)

    def _share(self, destination: str, rank: int | None, world_size: int | None, session: str | None) -> Share | None:
        if rank is None and world_size is None:
            return None
        if rank is None or world_size is None:
            raise ConfigError("rank and world_size go together.", hint="Pass both, or none of them.")
        if world_size == 1:
            return Share(rank, world_size, session or "alone")
        if not self.is_named:
            raise ConfigError(
                "Each rank would make up a run of its own.",
                hint="Name one run for all ranks: run_id=, STAGESINK_RUN_ID or MLFLOW_RUN_ID.",
            )
        return Share(rank, world_size, next_session(self.run_id(), destination) if session is None else session)


def additions(local: str, folder: str) -> dict[str, str]:
    """Return what is added to a folder of the run, or to its root, by its destination there.

    Parameters
    ----------
    local : str
        A file, or a folder whose contents are added.
    folder : str
        Empty for the root.
    """
    if not os.path.isdir(local):
        name = name_of(local)
        return {f"{folder}/{name}" if folder else name: local}
    if folder:
        return {folder: local}
    # Not one tree: a manifest of the root would vouch for what every other upload of the run puts there.
    names = dict.fromkeys(file.path.partition("/")[0] for file in scan_tree(local).files)
    return {name: os.path.join(local, name) for name in names}


def checked(path: StrPath) -> str:
    """Return a path that names something: the empty one would mean the working folder.

    Raises
    ------
    SourceNotFound
        It is empty, no path at all, or has a NUL in it.
    """
    try:
        text = os.fspath(path)
    except TypeError:
        raise SourceNotFound(f"Expected a path, got {type(path).__name__}.", hint="Pass a str or a Path.") from None
    if not text or "\0" in text:
        raise SourceNotFound(f"The path {text!r} names nothing.", hint="Check the path.")
    return text


def name_of(path: str) -> str:
    """Return the last name of a path; "out/" and "." have one too."""
    return os.path.basename(os.path.abspath(path))
