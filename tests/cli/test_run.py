"""``stagesink run`` and ``stagesink sync --watch``, as processes among real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from outside import said
from trainers import START, bytes_of, ended, environment, heard, kept, landed

STAGESINK = [sys.executable, "-c", "from stagesink.cli import main; main()"]


@contextmanager
def stagesink(base: Path, *arguments: str, session: bool = False, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command; in a session of its own when a whole group is to be told."""
    with subprocess.Popen(
        [*STAGESINK, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(base, **environ),
        start_new_session=session,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def python(base: Path, program: str) -> list[str]:
    return [sys.executable, "-c", START + textwrap.dedent(program), str(base)]


@pytest.mark.parametrize(
    ("program", "code"), [("", 0), ("sys.exit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", 137), ("1 / 0", 1)]
)
def test_the_exit_code_is_the_commands(tmp_path: Path, program: str, code: int) -> None:
    with stagesink(tmp_path, "run", "--", *python(tmp_path, program)) as process:
        status, told = ended(process)
    assert status == code
    assert ("ZeroDivisionError" in told) == (code == 1)


@pytest.mark.parametrize("broken", ["config", "outbox"])
def test_the_exit_code_is_the_commands_also_where_the_rest_cannot_be_uploaded(tmp_path: Path, broken: str) -> None:
    break_it = {
        "config": "mkdir -p config && echo 'artifacts: {nope: 1}' > config/mlflow.yaml",
        "outbox": "mkdir elsewhere && ln -s elsewhere box",
    }
    (tmp_path / "work").mkdir()
    command = ["run", "--outbox", str(tmp_path / "work" / "box"), "--"]
    with stagesink(tmp_path, *command, "sh", "-c", f"cd {tmp_path}/work && {break_it[broken]}; exit 7") as process:
        status, told = ended(process)
    assert status == 7
    assert broken == "config" or "is a link" in told


@pytest.mark.parametrize(("name", "code"), [("no-such-command", 127), ("README.md", 126)])
def test_a_command_that_cannot_be_run_ends_as_in_a_shell(tmp_path: Path, name: str, code: int) -> None:
    (tmp_path / "README.md").write_text("no program")
    with stagesink(tmp_path, "run", name if code == 127 else str(tmp_path / name), "--epochs", "3") as process:
        status, told = ended(process)
    assert status == code
    assert "Check the command after `--`." in told


def test_what_the_command_leaves_is_uploaded(tmp_path: Path) -> None:
    program = """
        (base / "store").write_text("no folder")
        up = ArtifactUploader("run", "training", sink=f"file:{base / 'store'}", attempts=1)
        assert not up.upload_file(made("a"), "a")
        (base / "store").unlink()
        print("out of the command", flush=True)
        os.chdir("/")
        sys.exit(4)
    """
    with stagesink(tmp_path, "run", *python(tmp_path, program)) as process:
        heard(process, "out of the command")
        status, told = ended(process)
    assert status == 4
    assert "Landed: 1 upload" in told
    assert landed(tmp_path) == {"a": bytes_of("a")}


def test_what_cannot_be_uploaded_by_the_deadline_is_said(tmp_path: Path) -> None:
    program = """
        (base / "store").write_text("no folder")
        up = ArtifactUploader("run", "training", sink=f"file:{base / 'store'}", attempts=1)
        assert not up.upload_file(made("a"), "a")
    """
    with stagesink(tmp_path, "run", *python(tmp_path, program), STAGESINK_RETRIES="1") as process:
        status, told = ended(process)
    assert status == 0
    assert "Still waiting in" in told
    assert "`stagesink sync`" in told
    assert kept(tmp_path) == {"a": bytes_of("a")}


UPLOADS = """
    try:
        uploader().upload_file(made("model.bin"), "model.bin")
    finally:
        shutil.rmtree(base / "work")
"""


@pytest.mark.once
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("whole_group", [False, True], ids=["the wrapper", "the whole group"])
def test_a_signal_reaches_the_command_once_and_its_uploads_are_kept(
    tmp_path: Path, signum: signal.Signals, code: int, whole_group: bool
) -> None:
    with stagesink(tmp_path, "run", "--deadline", "4", *python(tmp_path, UPLOADS), session=True) as process:
        heard(process, "putting model.bin")
        if whole_group:
            os.killpg(process.pid, signum)
        else:
            process.send_signal(signum)
        status, told = ended(process)
    assert status == code
    # The wrapper's own sink is a plain folder, so it lands what the command could not.
    assert {**kept(tmp_path), **landed(tmp_path)} == {"model.bin": bytes_of("model.bin")}
    assert told.count("Traceback") == (1 if signum == signal.SIGINT else 0)


def test_ctrl_c_of_a_terminal_is_not_passed_on_a_second_time(tmp_path: Path) -> None:
    program = """
        import pty
        pid, terminal = pty.fork()
        if pid == 0:
            os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
        said = b""
        while b"ready" not in said:
            said += os.read(terminal, 1000)
        os.write(terminal, b"\\x03")
        said = b""
        while b"signals: " not in said:
            said += os.read(terminal, 1000)
        os.write(terminal, b"\\x04")
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(said.decode().split("signals: ")[1].split()[0], ended, flush=True)
    """
    inner = """
        got = []
        signal.signal(signal.SIGINT, lambda *_: got.append(1))
        print("ready", flush=True)
        while not got:
            time.sleep(0.01)
        for _ in range(50):  # as long as a wrapper might take that passes it on
            time.sleep(0.01)
        print("signals:", len(got), flush=True)
        sys.stdin.readline()
        sys.exit(6)
    """
    command = [*python(tmp_path, program), *STAGESINK[1:], "run", "--", *python(tmp_path, inner)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
    ) as process:
        out, told = process.communicate(timeout=60)
    assert (out, process.returncode) == ("1 6\n", 0), told


def test_a_wrapper_that_is_killed_leaves_the_command_running(tmp_path: Path) -> None:
    program = """
        up = uploader()
        print(os.getpid(), flush=True)
        while not (base / "go on").exists():
            time.sleep(0.01)
        (base / "open").touch()
        assert up.upload_file(made("a"), "a")
        (base / "done").touch()
    """
    with stagesink(tmp_path, "run", "--", *python(tmp_path, program)) as process:
        command = int(said(process))
        process.kill()
        process.wait(60)
        os.kill(command, 0)
        (tmp_path / "go on").touch()
        while not (tmp_path / "done").exists():
            time.sleep(0.01)
    assert landed(tmp_path) == {"a": bytes_of("a")}


def test_the_help_says_how(run) -> None:  # type: ignore[no-untyped-def]
    answer = run("run", "--help")
    assert answer.code == 0
    assert "stagesink run -- python" in answer.out.split("Examples")[1]


# -- sync --watch ------------------------------------------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_watch_uploads_what_comes_until_it_is_stopped(tmp_path: Path, signum: signal.Signals) -> None:
    keeps = """
        assert not ArtifactUploader("run", sink=f"file:{base / 'store'}").upload_file(made(sys.argv[2]), sys.argv[2])
    """
    with stagesink(tmp_path, "sync", "--watch") as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("Watching")
        for name in ("a", "b"):
            subprocess.run(
                [*python(tmp_path, keeps), name],
                env=environment(tmp_path, STAGESINK_MODE="offline"),
                check=True,
                timeout=60,
            )
            while name not in landed(tmp_path) or kept(tmp_path):
                assert process.poll() is None
                time.sleep(0.02)
        process.send_signal(signum)
        status, told = ended(process)
    assert status == 0
    assert told.endswith("Stopped. What has not landed waits on.\n")
    assert landed(tmp_path) == {"a": bytes_of("a"), "b": bytes_of("b")}


def test_a_watch_has_no_json(run) -> None:  # type: ignore[no-untyped-def]
    assert run("sync", "--watch", "--json").code == 2
