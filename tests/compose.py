"""docker/ as data, and its services as processes of this machine: the same commands, with ports and folders of ours."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docker"
HOST = "127.0.0.1"

_PORT_OPTIONS = ("--port", "--blobPort")


@dataclass(frozen=True)
class Service:
    """One service of compose.yaml."""

    name: str
    settings: dict[str, Any]

    @property
    def command(self) -> list[str]:
        return shlex.split(self.settings["command"])

    @property
    def environment(self) -> dict[str, str]:
        return dict(self.settings.get("environment", {}))

    @property
    def port(self) -> int | None:
        """Where its command says that it listens."""
        words = iter(self.command)
        return next((int(next(words)) for word in words if word in _PORT_OPTIONS), None)

    def command_here(self, port: int | None = None, folder: Path | None = None) -> list[str]:
        """Return the command with a port and a folder of this machine."""
        places = {"0.0.0.0": HOST, str(self.port): str(port), "/opt/make_stores.py": str(FOLDER / "make_stores.py")}
        return [places.get(word, word).replace("/data", str(folder)) for word in self.command]

    def environment_here(self, ports: dict[str, int]) -> dict[str, str]:
        """Return the environment with the other services where they listen on this machine."""
        here = {}
        for name, value in self.environment.items():
            for service, port in ports.items():
                value = value.replace(f"http://{service}:{services()[service].port}", f"http://{HOST}:{port}")
            here[name] = value
        return here


@cache
def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    return content


@cache
def services() -> dict[str, Service]:
    return {name: Service(name, settings) for name, settings in compose()["services"].items()}


@cache
def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, each on one line."""
    text = re.sub(r"^#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines) if word]


@dataclass(frozen=True)
class Stage:
    """One stage of the Dockerfile.

    Attributes
    ----------
    name, base : str
        The base is another stage's name, or an image.
    instructions : list of tuple of str
    """

    name: str
    base: str
    instructions: list[tuple[str, str]]

    def named(self, instruction: str) -> list[str]:
        return [arguments for word, arguments in self.instructions if word == instruction]


@cache
def stages() -> dict[str, Stage]:
    found: dict[str, Stage] = {}
    for word, arguments in instructions():
        if word == "FROM":
            base, _as, name = arguments.split()
            stage = found[name] = Stage(name, base, [])
        elif found:
            stage.instructions.append((word, arguments))
    return found


def azurite_version() -> str:
    """Version of the Azurite that the tests talk to."""
    version: str = json.loads((ROOT / "tests/node/package.json").read_text())["dependencies"]["azurite"]
    return version
