"""Find the Pythons of this machine that can run stagesink. Run it to see them: one ``VERSION PATH`` a line.

Each is proven by running it: a version manager's shim may stand on PATH and still start nothing, and a Python built
without zlib or ssl cannot install a package.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

OLDEST = (3, 10)
NEWEST = (3, 13)
"""What the package is tested on. A newer Python is used only where there is no other."""

_NAME = re.compile(r"python3(?:\.(\d+))?$")
_PROBE = """
import ctypes, sqlite3, ssl, sys, sysconfig, zlib
usable = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")
if usable: print(sys.version_info[0], sys.version_info[1], getattr(sys, "_base_executable", sys.executable), sep="\\t")
"""


@functools.cache
def find() -> dict[tuple[int, int], Path]:
    """Return the interpreters that work, by version, oldest first; the first found of each version."""
    found: dict[tuple[int, int], Path] = {}
    for candidate in _candidates():
        named = _NAME.match(candidate.resolve().name)  # python3 is most often a link to python3.N
        minor = named and named.group(1)
        if minor and ((3, int(minor)) < OLDEST or (3, int(minor)) in found):
            continue
        if (answer := _probe(candidate)) is not None:
            version, path = answer
            if version >= OLDEST:
                found.setdefault(version, path)
    tested = {version: path for version, path in found.items() if version <= NEWEST}
    return dict(sorted((tested or found).items()))


def _candidates() -> Iterator[Path]:
    yield Path(sys.executable)
    home = Path.home()
    folders = [Path(entry) for entry in os.environ.get("PATH", "").split(os.pathsep) if entry]
    for versions in (
        Path(os.environ.get("PYENV_ROOT", home / ".pyenv")) / "versions",
        home / ".local/share/uv/python",
        home / ".local/share/mise/installs/python",
        home / ".asdf/installs/python",
    ):
        folders += sorted(versions.glob("*/bin"))
    for folder in folders:
        yield from (path for path in sorted(folder.glob("python3*")) if _NAME.match(path.name))


def _probe(path: Path) -> tuple[tuple[int, int], Path] | None:
    try:
        answer = subprocess.run([path, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode != 0 or not answer.stdout:
        return None
    major, minor, executable = answer.stdout.rstrip("\n").split("\t")
    return (int(major), int(minor)), Path(executable)


if __name__ == "__main__":
    for (major, minor), path in find().items():
        print(f"{major}.{minor} {path}")
