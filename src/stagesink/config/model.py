"""What is configured. These dataclasses are the schema too: the YAML's keys and the variables are read off them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from stagesink.outbox.settings import OutboxSettings
from stagesink.redaction import without_secrets
from stagesink.stages import STAGES, OnFailure, Slot, SlotKind, StageTable
from stagesink.transfer.options import TransferOptions, Verify
from stagesink.transfer.progress import ProgressStyle

Mode = Literal["online", "offline"]
Pack = Literal["none", "tar.gz", "tar.zst"]
Engine = Literal["stagesink", "mlflow"]

FILE_NAME = "mlflow.yaml"

T = TypeVar("T")


def _setting(default: T, **facts: Any) -> T:
    """Declare a default with its bounds (``ge``, ``le``), ``unit`` and ``variable``."""
    value: T = field(default=default, metadata=facts)
    return value


@dataclass(frozen=True, slots=True)
class Retries:
    """How long to go on when a backend fails in a way that may pass.

    Parameters
    ----------
    attempts : int
        Times an object is tried.
    initial, max_wait : float
        Seconds: bound of the first wait, and longest wait.
    budget : float
        Seconds a transfer goes on retrying.
    """

    attempts: int = _setting(5, ge=1, variable="STAGESINK_RETRIES")
    initial: float = _setting(0.5, ge=0, unit="seconds")
    max_wait: float = _setting(30.0, ge=0, unit="seconds")
    budget: float = _setting(300.0, ge=0, unit="seconds")


@dataclass(frozen=True, slots=True)
class Compression:
    """How hard archives are compressed.

    Parameters
    ----------
    level : int or None
        1 is fast; up to 9 for tar.gz, 19 for tar.zst. None is the fast one.
    """

    level: int | None = _setting(None, ge=1, le=19)


@dataclass(frozen=True, slots=True)
class Artifacts:
    """The section ``artifacts:`` of ``mlflow.yaml``; its stages are in :attr:`Config.stages`.

    Parameters
    ----------
    sink : str
        URI of the sink, or ``auto``. May hold a password, so it is not in the repr.
    on_failure : {"keep", "warn", "raise"}
        What the facade does when an upload fails: keep it in the outbox, log a line and return False; only log; or
        raise.
    mode : {"online", "offline"}
        ``offline`` asks no server: everything is kept for ``stagesink sync``.
    background : bool
        Return once the bytes are kept, and upload them in a thread.
    outbox : OutboxSettings
    drain : float or None
        Seconds: when a signal ends the process, the first upload has made it land or keep what is under way until then,
        as :func:`stagesink.install_drain` does. None leaves signals alone.
    workers : int
        Large objects in flight at once; of small ones as many as get most done, up to 72. 1 means one.
    retries : Retries
    verify : {"auto", "full", "size", "none"}
    pack : {"none", "tar.gz", "tar.zst"}
        Send the training checkpoint as one archive instead of a tree.
    compression : Compression
    storage_options : dict
        Handed to the sink's driver. May hold secrets, so it is not in the repr.
    progress : {"auto", "bar", "lines", "none"}
    engine : {"stagesink", "mlflow"}
        Whose code moves the bytes to an ``mlflow:`` sink: ours, or mlflow's own client.
    """

    sink: str = field(default="auto", repr=False, metadata={"min_length": 1})
    on_failure: OnFailure = "keep"
    workers: int = _setting(8, ge=1, le=64)
    retries: Retries = field(default_factory=Retries)
    verify: Verify = "auto"
    pack: Pack = "none"
    compression: Compression = field(default_factory=Compression)
    storage_options: dict[str, Any] = field(default_factory=dict, repr=False)
    progress: ProgressStyle = "auto"
    engine: Engine = "stagesink"
    mode: Mode = "online"
    background: bool = False
    outbox: OutboxSettings = field(default_factory=OutboxSettings)
    drain: float | None = _setting(None, ge=1, le=86400, unit="seconds")

    @property
    def transfer_options(self) -> TransferOptions:
        """The same, for the engine."""
        return TransferOptions(
            workers=self.workers,
            verify=self.verify,
            attempts=self.retries.attempts,
            initial=self.retries.initial,
            max_wait=self.retries.max_wait,
            budget=self.retries.budget,
        )


@dataclass(frozen=True, slots=True)
class SlotChange:
    """One slot under ``artifacts.stages.<stage>``; what is None stays as it is, or takes its default."""

    destination: str | None = None
    kind: SlotKind | None = None
    switch: str | None = None
    on_failure: OnFailure | None = None
    priority: int | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of :meth:`Config.explain`: a key, its value free of secrets, and where the value came from."""

    key: str
    value: Any
    origin: str


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that is configured.

    Parameters
    ----------
    artifacts : Artifacts
    tracking : mapping of str to mapping of str to bool
        By stage and switch (``enabled`` among them). A switch that is not in it is on.
    stages : StageTable
        The built-in stages with what ``artifacts.stages`` adds.
    file : Path
        Where ``mlflow.yaml`` was looked for.
    file_found : bool
        False when there is none, and defaults hold.
    origins : mapping of str to str
        For each key that is not a default: ``<file>:<line>``, the variable's name, or ``argument``.
    """

    artifacts: Artifacts = field(default_factory=Artifacts)
    tracking: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)
    stages: StageTable = STAGES
    file: Path = Path("config", FILE_NAME)
    file_found: bool = False
    origins: Mapping[str, str] = field(default_factory=dict)

    def origin(self, key: str) -> str:
        """Return where the value of ``key`` (``artifacts.sink``) came from."""
        return self.origins.get(key, "default")

    def is_enabled(self, stage: str | None, slot: Slot | str | None = None) -> bool:
        """Tell whether uploads of this stage, and of this slot in it, are switched on."""
        return self.switched_off_by(stage, slot) is None

    def switched_off_by(self, stage: str | None, slot: Slot | str | None = None) -> str | None:
        """Name the setting that switches this slot, or its whole stage, off.

        Parameters
        ----------
        stage : str or None
            None and stages that the table does not know have no switch.
        slot : Slot, str or None
            None asks for the stage alone; so does a name that the stage does not have.

        Returns
        -------
        str or None
            ``tracking.training.log_checkpoint (config/mlflow.yaml:4)``, or None when it is switched on.
        """
        if stage is None or stage not in self.stages:
            return None
        known = self.stages[stage].slot(slot) if isinstance(slot, str) else slot
        for switch in ("enabled",) if known is None else ("enabled", known.switch):
            if not self._is_on(stage, switch):
                key = f"tracking.{stage}.{switch}"
                return f"{key} ({self.origin(key)})"
        return None

    def on_failure(self, stage: str | None, slot: Slot | None = None) -> OnFailure:
        """Return what a failed upload means: as the slot says, else its stage, else ``artifacts.on_failure``.

        An argument of the caller's stands above all of them.
        """
        if self.origin("artifacts.on_failure") != "argument":
            known = self.stages.get(stage) if stage is not None else None
            own = (slot and slot.on_failure) or (known and known.on_failure)
            if own:
                return own
        return self.artifacts.on_failure

    def _is_on(self, stage: str, switch: str) -> bool:
        return self.tracking.get(stage, {}).get(switch, True)

    def explain(self) -> tuple[Setting, ...]:
        """Return every setting with its value and where that came from; of ``storage_options`` the keys alone."""
        values: dict[str, Any] = {}
        for key, value in _flat("artifacts", self.artifacts):
            values[key] = _printable(key, value)
        for stage in self.stages.stages:
            for slot in stage.slots:
                if (key := f"artifacts.stages.{stage.name}.{slot.name}") in self.origins:
                    values[key] = {"destination": slot.destination, "kind": slot.kind, "switch": slot.switch}
        for stage in self.stages.stages:
            for switch in stage.switches:
                values[f"tracking.{stage.name}.{switch}"] = self._is_on(stage.name, switch)
        return tuple(Setting(key, value, self.origin(key)) for key, value in values.items())


def _flat(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if is_dataclass(value):
        for each in fields(value):
            yield from _flat(f"{key}.{each.name}", getattr(value, each.name))
    else:
        yield key, value


def _printable(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return dict.fromkeys(value, "***")
    return without_secrets(value) if key == "artifacts.sink" else value
