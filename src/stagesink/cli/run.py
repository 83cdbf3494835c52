"""``stagesink run``: a command that knows nothing of machines that are taken away, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated

import typer

from stagesink.cli import options
from stagesink.cli.options import examples
from stagesink.cli.outbox import Opened, OutboxPath, sentence
from stagesink.cli.output import Output, count, print_error
from stagesink.errors import StagesinkError

EPILOG = examples("stagesink run -- python train.py --epochs 3", "stagesink run --deadline 100 -- ./pipeline.sh")

_PASSED_ON = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
_FROM_TERMINAL = {signal.SIGINT, signal.SIGQUIT, signal.SIGHUP}
_SAME_NOTICE = 1.0  # seconds: a batch system may tell every process of a job, and its leader passes it on
_LOOK_SECONDS = 0.05
_NOT_FOUND, _NOT_RUN, _SIGNALLED = 127, 126, 128  # exit codes, as shells have them


def run(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", show_default=False)],
    deadline: Annotated[
        float,
        typer.Option(
            "--deadline",
            envvar="STAGESINK_DRAIN",
            min=1,
            max=86400,
            metavar="SECONDS",
            help="From a signal to the end, for uploads; the rest is kept.",
        ),
    ] = 25.0,
    outbox: OutboxPath = None,
    config_dir: options.ConfigDir = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Run a command, unchanged, on a machine that may be taken away, and upload what it leaves in the outbox.

    Signals are passed on, and the uploads of a Python program are drained as stagesink.install_drain does it. Once the
    command has ended, what waits in the outbox is uploaded, for as long as the deadline lets it. The exit code is the
    command's; 128 and the signal's number when it died of one.
    """
    out = Output(quiet=quiet, verbose=verbose)
    opened = Opened(outbox, config_dir)
    environ = {**os.environ, "STAGESINK_DRAIN": f"{deadline:g}", "STAGESINK_OUTBOX_PATH": str(opened.path)}
    try:
        child = _Child(command, environ)
    except OSError as error:
        print_error(f"{command[0]}: {error.strerror}. Check the command after `--`.")
        raise typer.Exit(_NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_RUN) from error
    code = child.wait()
    until = (time.monotonic() if child.signalled_at is None else child.signalled_at) + deadline
    try:
        _upload_rest(Opened(outbox, config_dir), child, until, out)
    except StagesinkError as error:  # the command's own end is what counts
        print_error(str(error))
    sys.stdout.flush()
    os._exit(code)  # not in order: an upload that hangs must not hold it up


class _Child:
    """The command, and the signals that come for it. They are blocked here, and waited for."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self.signalled_at: float | None = None
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, nobody learns how a child ended
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {*_PASSED_ON, signal.SIGCHLD})
        ignored_by_python = [signal.SIGPIPE, signal.SIGXFSZ]
        self.pid = os.posix_spawnp(command[0], list(command), environ, setsigmask=before, setsigdef=ignored_by_python)

    def wait(self) -> int:
        """Pass signals on until it has ended, and return its exit code as shells have it."""
        while True:
            signum, came_to_all = _next_signal()
            if signum == signal.SIGCHLD:
                ended, status = os.waitpid(self.pid, os.WNOHANG)
                if ended:
                    code = os.waitstatus_to_exitcode(status)
                    return code if code >= 0 else _SIGNALLED - code
                continue
            if self.signalled_at is None:
                self.signalled_at = time.monotonic()
            if not came_to_all:
                os.kill(self.pid, signum)

    def is_told_again(self) -> bool:
        """Tell whether a signal has come since it ended, other than the one that ended it."""
        while _PASSED_ON & signal.sigpending():
            signal.sigwait(_PASSED_ON)
            if self.signalled_at is None or time.monotonic() - self.signalled_at > _SAME_NOTICE:
                return True
        return False


def _next_signal() -> tuple[int, bool]:
    """Wait for a signal, and tell whether it came from the terminal, which tells the whole group, the child too."""
    told = {*_PASSED_ON, signal.SIGCHLD}
    if sys.platform == "darwin":
        signum = int(signal.sigwait(told))
        return signum, signum in _FROM_TERMINAL and _is_in_the_foreground()
    info = signal.sigwaitinfo(told)
    return info.si_signo, info.si_signo in _FROM_TERMINAL and info.si_code > 0  # by the kernel, not by a process


def _is_in_the_foreground() -> bool:
    with suppress(OSError), open("/dev/tty") as terminal:
        return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    return False


def _upload_rest(opened: Opened, child: _Child, until: float, out: Output) -> None:
    """Upload what waits, until then or until a signal comes, and say what is left."""
    outbox = opened.outbox
    if outbox is None:
        return
    before = len(outbox.rows())
    # In a thread: whatever hangs in it ends with this process, and what is half-done is seen by nobody.
    work = threading.Thread(target=_upload, args=[opened, out], daemon=True)
    work.start()
    while work.is_alive() and time.monotonic() < until and not child.is_told_again():
        work.join(_LOOK_SECONDS)
    left = len(outbox.rows())
    if before > left:
        out.note(f"Landed: {count(before - left, 'upload')}")
    if left:
        out.note(f"Still waiting in {opened.path}: {count(left, 'upload')}. `stagesink sync` uploads it.")


def _upload(opened: Opened, out: Output) -> None:
    assert opened.outbox is not None
    try:
        runs = opened.runs()
        with opened.outbox.one_sync(wait=True, notice=out.note), opened.sync(runs, quiet=True) as sync:
            for outcome in runs.everything(sync, urgent=True):
                if outcome.error is not None:
                    out.note(sentence(outcome))
    except StagesinkError as error:
        out.note(str(error))
