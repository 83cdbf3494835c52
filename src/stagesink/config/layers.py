"""Where values come together: later layers over earlier ones, with their origins, and all problems on the way."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from stagesink.config.model import Artifacts, Config
from stagesink.config.schema import KeyPath
from stagesink.errors import ConfigError
from stagesink.stages import STAGES

T = TypeVar("T")

_log = logging.getLogger("stagesink")


class Layers:
    """Gathers, and then makes a :class:`Config`, or raises all problems as one :class:`ConfigError`."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.table = STAGES
        self.values: dict[KeyPath, Any] = {}
        self.origins: dict[str, str] = {}
        self.problems: list[str] = []

    def set(self, path: KeyPath, value: object, origin: str) -> None:
        """Lay a value over what is there."""
        self.values[path] = value
        self.origins[".".join(path)] = origin

    def config(self, *, file_found: bool) -> Config:
        """Return what has come together."""
        if self.problems:
            raise ConfigError("\n".join(self.problems))
        tracking = {
            stage: {switch: self.values.get(("tracking", stage, switch), True) for switch in self.table[stage].switches}
            for stage in self.table
        }
        artifacts = build(Artifacts, ("artifacts",), self.values)
        return Config(artifacts, tracking, self.table, self.file, file_found, self.origins)


def build(cls: type[T], path: KeyPath, values: Mapping[KeyPath, Any]) -> T:
    """Make the dataclass from the values under ``path``; what is not there takes its default."""
    arguments: dict[str, Any] = {}
    for name, inner in get_type_hints(cls).items():
        here = (*path, name)
        if isinstance(inner, type) and is_dataclass(inner):
            arguments[name] = build(inner, here, values)
        elif here in values:
            arguments[name] = values[here]
    return cls(**arguments)


@functools.cache
def warn_once(text: str) -> None:
    """Say it the first time; the configuration is read again and again."""
    _log.warning("%s", text)
