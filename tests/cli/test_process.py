"""The command as a process of its own: what only that can show."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stagesink.manifest import Manifest, ManifestEntry

COMMAND = [sys.executable, "-c", "from stagesink.cli import main; main()"]
HUGE = 1 << 40  # bytes of holes: no test waits until they are read


def _run(*args: str, code: str | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code] if code is not None else COMMAND
    environment = {**os.environ, **environ}
    return subprocess.run([*command, *args], capture_output=True, text=True, timeout=60, env=environment, check=False)


def _huge_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.truncate(HUGE)


def test_success_and_errors_reach_the_shell(checkpoint):
    done = _run("upload", str(checkpoint), "-r", "r1", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["run_id"] == "r1"
    assert done.stderr == ""
    missing = _run("upload", "nope", "--json")
    assert missing.returncode == 3
    assert json.loads(missing.stdout)["error"]["type"] == "SourceNotFound"
    assert missing.stderr == ""


def test_no_colours_where_no_terminal_is(checkpoint):
    for args in (["upload", str(checkpoint), "-r", "r1"], ["ls", "-r", "r1"], ["ls", "-r", "r9"], ["config"]):
        done = _run(*args, TERM="xterm-256color")
        assert "\x1b" not in done.stdout + done.stderr


def test_the_version_is_told():
    from stagesink import __version__

    assert _run("--version").stdout == f"stagesink {__version__}\n"


def test_help_shows_every_command_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom stagesink.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'fsspec', 'pydantic', 'yaml', 'tenacity', 'sqlite3', 'stagesink.transfer'} & set(sys.modules)))"
    )
    shown = _run("--help", code=code).stdout
    for name in ("upload", "ls", "verify", "restore", "config", "doctor", "migrate", "demo", "--install-completion"):
        assert name in shown
    assert shown.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", ["upload", "ls", "verify", "restore", "config", "doctor", "migrate", "demo"])
def test_each_command_has_help_with_examples(run, name):
    answer = run(name, "--help")
    assert answer.code == 0
    assert f"stagesink {name}" in answer.out.split("Examples")[1]
    assert "--json" in answer.out


def test_a_missing_extra_says_how_to_install_it(checkpoint):
    code = "import sys; sys.modules['s3fs'] = None\nfrom stagesink.cli import main; main()"
    done = _run("upload", str(checkpoint), "-s", "s3://bucket/x", "-r", "r1", code=code)
    assert done.returncode == 2
    assert "pip install 'stagesink[s3]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_demo_without_its_extra_says_how_to_install_it():
    code = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'onnxruntime' else find(name, *rest)\n"
        "from stagesink.cli import main; main()"
    )
    done = _run("demo", code=code)
    assert done.returncode == 2
    assert "pip install 'stagesink[demo]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_enough_is_no_error(tmp_path):
    for i in range(3000):
        path = tmp_path / "artifacts" / "r1" / f"{i:04}-{'x' * 60}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for extra in ([], ["--json"]):
        process = subprocess.Popen(
            [*COMMAND, "ls", "-r", "r1", "--objects", *extra], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        told = process.stderr.read().decode()
        process.stderr.close()
        process.wait(60)
        assert told == ""


# -- Ctrl-C ----------------------------------------------------------------------------------------------------------


def _interrupt(args: list[str], is_under_way) -> tuple[int, str]:
    process = subprocess.Popen([*COMMAND, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not is_under_way(process.pid):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    return process.returncode, told


def test_ctrl_c_during_an_upload_leaves_nothing_visible(run, tmp_path):
    _huge_file(tmp_path / "ckpt" / "model.bin")
    artifacts = tmp_path / "artifacts"
    code, told = _interrupt(
        ["upload", "ckpt", "--pack", "tar.gz", "-r", "r1"], lambda pid: any(artifacts.rglob(".stagesink-*"))
    )
    assert (code, told) == (130, "error: Stopped. Nothing half-written is visible; run it again to go on.\n")
    # The signal may come just before the temporary file is in safe hands: then it stays, hidden, until the next upload.
    assert run("ls", "-r", "r1", "--objects").code == 3


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="sees in /proc that reading has begun")
def test_ctrl_c_during_a_verify_with_many_workers(tmp_path):
    run_folder = tmp_path / "artifacts" / "r1"
    names = [f"part{i}.bin" for i in range(4)]
    for name in names:
        _huge_file(run_folder / "big" / name)
    entries = tuple(ManifestEntry(name, HUGE, hashlib.sha256().hexdigest()) for name in names)
    manifest = Manifest("r1", "big", "tree", entries)
    (run_folder / "big.manifest.json").write_bytes(manifest.to_bytes())

    def reading(pid: int) -> bool:
        try:
            opened = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
        except FileNotFoundError:  # one was closed meanwhile
            return False
        return any(path.endswith(".bin") for path in opened)

    code, told = _interrupt(["verify", "-r", "r1"], reading)
    assert (code, told) == (130, "error: Stopped. Nothing half-written is visible; run it again to go on.\n")
