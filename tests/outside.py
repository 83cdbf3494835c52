"""A look from outside: folders as plain Python sees them, small disks, other processes, other users."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = """
import os
if os.getuid() == 0:  # root may read and write everything
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
"""
"""Lines of a program that make it an ordinary user. Import everything before: it may not read our folders then."""


THREADS_AT_THE_END = sys.version_info[:3] not in ((3, 12, 0), (3, 12, 1))
threads_at_the_end = pytest.mark.skipif(
    not THREADS_AT_THE_END, reason="this Python starts no thread once a process ends (python/cpython#113964)"
)
"""For tests of what a process uploads as it ends; there it waits for `stagesink sync` instead, which has its own."""


def files_in(root: Path) -> dict[str, bytes]:
    """Read every file under ``root``, hidden and temporary ones included."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            found[path.relative_to(root).as_posix()] = path.read_bytes()
    return found


@contextmanager
def small_disk(folder: Path, size: str = "1m") -> Iterator[Path]:
    """Mount a disk that is soon full."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def read_only_disk(folder: Path, **files: bytes) -> Iterator[Path]:
    """Mount a disk with some files in a folder ``run``, read-only."""
    with small_disk(folder):
        (folder / "run").mkdir()
        for name, data in files.items():
            (folder / "run" / name).write_bytes(data)
        _mount("-o", "remount,ro", str(folder))
        yield folder


def _mount(*arguments: str) -> None:
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode != 0:
        pytest.skip("mounting a disk needs root")


def python(program: str, *arguments: object, timeout: float = 60, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, to its end; it must end well."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**_environ(), **environ},
    )
    assert done.returncode == 0, done.stderr
    return done


@contextmanager
def running(program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run a program beside the test, with pipes to talk to it."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        env=_environ(),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    """Wait for the next line of a running program."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str], line: str = "") -> None:
    """Send a running program a line."""
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _environ() -> dict[str, str]:
    # Started processes are no part of what coverage measures: it would start in each of them.
    return {name: value for name, value in os.environ.items() if not name.startswith("COV")}
