"""The stage table: what each stage of a pipeline hands over, which switch governs it, and where it lands.

A stage is data, not code. The helpers, the trackers, the command and the configuration all read :data:`STAGES`;
``artifacts.stages`` in ``mlflow.yaml`` adds to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from stagesink.archive import ARCHIVE_SUFFIXES
from stagesink.artifacts import ArtifactKey
from stagesink.errors import ConfigError

SlotKind = Literal["file", "tree", "archive"]
OnFailure = Literal["keep", "warn", "raise"]

DEFAULT_PRIORITY = 5

OWN_NAME = "{name}"
"""Stands in a destination for the uploaded file's own name."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def _check_name(what: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{what} {name!r} is not a name.", hint="Use letters, digits, '_' and '-', a letter first.")


@dataclass(frozen=True, slots=True)
class Slot:
    """One thing a stage hands over.

    Parameters
    ----------
    name : str
        What the helpers call it, for example ``checkpoint``.
    switch : str
        Key under ``tracking.<stage>`` that switches it off; true by default.
    destination : str
        Path inside the run; ``{name}`` stands for the file's own name.
    kind : {"file", "tree", "archive"}
    priority : int
        When time is short the smaller number goes first: what is small and valuable.
    on_failure : {"keep", "warn", "raise"} or None
        What a failed upload means here; None for as the stage or ``artifacts.on_failure`` says.

    Raises
    ------
    ConfigError
        A name that is not one, the reserved switch ``enabled``, an unknown placeholder, an archive that does not end in
        ``.tar.gz`` or ``.tar.zst``.
    InvalidKey
        A destination that leaves the run or that no backend should see.
    """

    name: str
    switch: str
    destination: str
    kind: SlotKind
    priority: int = DEFAULT_PRIORITY
    on_failure: OnFailure | None = None

    def __post_init__(self) -> None:
        _check_name("Slot", self.name)
        _check_name("Switch", self.switch)
        if self.switch == "enabled":
            raise ConfigError("The switch 'enabled' belongs to the whole stage.", hint="Use another name.")
        bare = self.destination.replace(OWN_NAME, "name", 1)
        if "{" in bare or "}" in bare:
            raise ConfigError(
                f"Destination {self.destination!r} holds a placeholder that is not {OWN_NAME}.",
                hint=f"{OWN_NAME} may stand in it once, for the file's own name.",
            )
        ArtifactKey("run", bare)
        if self.kind == "archive" and not bare.endswith(tuple(ARCHIVE_SUFFIXES)):
            raise ConfigError(
                f"Destination {self.destination!r} of an archive ends in none of {', '.join(ARCHIVE_SUFFIXES)}.",
                hint="The ending says how it is packed.",
            )

    def destination_of(self, file_name: str) -> str:
        """Return where a file called ``file_name`` lands."""
        return self.destination.replace(OWN_NAME, file_name)

    def lands_at(self, destination: str) -> bool:
        """Tell whether this slot's own upload lands exactly there; a tree may also land as one archive."""
        endings = ("", *ARCHIVE_SUFFIXES) if self.kind == "tree" else ("",)
        pattern = re.escape(self.destination).replace(re.escape(OWN_NAME), "[^/]+")
        return any(re.fullmatch(pattern + re.escape(ending), destination) for ending in endings)

    def holds(self, destination: str) -> bool:
        """Tell whether the destination lies inside this slot's tree."""
        folder = re.escape(self.destination).replace(re.escape(OWN_NAME), "[^/]+")
        return self.kind == "tree" and re.fullmatch(folder + "/.+", destination) is not None


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage and its slots.

    Parameters
    ----------
    name : str
    slots : tuple of Slot
    on_failure : {"keep", "warn", "raise"} or None
        As :class:`Slot` has it, for all of them.

    Raises
    ------
    ConfigError
        A name that is not one, or two slots with one name or one destination.
    """

    name: str
    slots: tuple[Slot, ...]
    on_failure: OnFailure | None = None

    def __post_init__(self) -> None:
        _check_name("Stage", self.name)
        for index, slot in enumerate(self.slots):
            for earlier in self.slots[:index]:
                if slot.name == earlier.name:
                    raise ConfigError(f"Slot {slot.name!r} is there twice.", hint="Give each slot its own name.")
                if slot.destination == earlier.destination:
                    raise ConfigError(
                        f"Destination {slot.destination!r} is taken by the slot {earlier.name!r}.",
                        hint="One would overwrite the other; give each its own destination.",
                    )

    def slot(self, name: str) -> Slot | None:
        """Return the slot of that name."""
        return next((slot for slot in self.slots if slot.name == name), None)

    def with_slot(self, slot: Slot) -> Stage:
        """Return a stage with this slot, in the place of the one of the same name if there is one."""
        if self.slot(slot.name) is None:
            return replace(self, slots=(*self.slots, slot))
        return replace(self, slots=tuple(slot if each.name == slot.name else each for each in self.slots))

    @property
    def switches(self) -> tuple[str, ...]:
        """The keys under ``tracking.<stage>``, ``enabled`` first."""
        return tuple(dict.fromkeys(("enabled", *(slot.switch for slot in self.slots))))


@dataclass(frozen=True)
class StageTable(Mapping[str, Stage]):
    """Stages by name; immutable."""

    stages: tuple[Stage, ...]

    def __getitem__(self, name: str) -> Stage:
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (stage.name for stage in self.stages)

    def __len__(self) -> int:
        return len(self.stages)

    def with_stage(self, stage: Stage) -> StageTable:
        """Return a table with this stage, in the place of the one of the same name if there is one."""
        if stage.name not in self:
            return StageTable((*self.stages, stage))
        return StageTable(tuple(stage if each.name == stage.name else each for each in self.stages))

    def slot_for(self, stage: str | None, destination: str) -> Slot | None:
        """Return the slot of ``stage`` whose switch governs an upload to exactly this destination.

        Parameters
        ----------
        stage : str or None
            None and unknown stages have no slots.
        destination : str
            Path inside the run, as it will be stored.

        Returns
        -------
        Slot or None
            The slot that lands there, or else the tree it would lie in; None when no slot governs it.
        """
        found = self.get(stage) if stage is not None else None
        slots = found.slots if found is not None else ()
        # A plain destination before one with a placeholder: `report.html` beats `{name}`.
        slots = tuple(sorted(slots, key=lambda slot: OWN_NAME in slot.destination))
        landing = next((slot for slot in slots if slot.lands_at(destination)), None)
        return landing or next((slot for slot in slots if slot.holds(destination)), None)


STAGES = StageTable(
    (
        Stage(
            "training",
            (
                Slot("checkpoint", "log_checkpoint", "checkpoint", "tree", priority=9),
                Slot("metrics_json", "log_metrics_json", "metrics.json", "file", priority=1),
            ),
        ),
        Stage(
            "conversion",
            (
                Slot("onnx_model", "log_onnx_model", "onnx_model/{name}", "file"),
                Slot("conversion_log", "log_conversion_log", "conversion_log.txt", "file", priority=1),
            ),
        ),
        Stage("benchmark", (Slot("benchmark_json", "log_artifacts", "benchmark_results.json", "file", priority=1),)),
        Stage("hpo", (Slot("checkpoint", "log_checkpoint", "best_trial_checkpoint.tar.gz", "archive", priority=9),)),
    )
)
"""The stages every installation knows."""
