"""Signals that end a training: real processes, real signals."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest
from outside import said, threads_at_the_end
from trainers import bytes_of, ended, heard, kept, landed, synced, told_until_it_ends, trainer

import stagesink
from stagesink.errors import ConfigError, DrainError
from stagesink.outbox.settings import OutboxSettings
from stagesink.outbox.store import Outbox

BACKGROUND = """
    stagesink.install_drain(deadline={deadline})
    up = uploader(background=True)
    assert up.upload_file(made("large.bin"), "large.bin")
    assert up.upload_file(made("notes.txt", 900), "notes.txt")
    assert up.upload_file(made("metrics.json", 500), "metrics.json")
    print("ready", flush=True)
    while True:
        signal.pause()
"""
FOREGROUND = """
    stagesink.install_drain(deadline={deadline})
    try:
        uploader().upload_file(made("model.bin"), "model.bin")
    finally:
        shutil.rmtree(base / "work")
"""


@threads_at_the_end
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, -15), (signal.SIGINT, -2)])
def test_the_small_lands_and_the_large_waits_for_sync(tmp_path: Path, signum: signal.Signals, status: int) -> None:
    with trainer(tmp_path, BACKGROUND.format(deadline=4)) as process:
        heard(process, "putting large.bin", "ready")
        process.send_signal(signum)
        assert ended(process)[0] == status
    assert landed(tmp_path) == {"notes.txt": bytes_of("notes.txt", 900), "metrics.json": bytes_of("metrics.json", 500)}
    assert kept(tmp_path) == {"large.bin": bytes_of("large.bin")}
    assert synced(tmp_path)["large.bin"] == bytes_of("large.bin")


def test_a_large_file_is_no_link_any_more_when_the_process_has_gone(tmp_path: Path) -> None:
    program = """
        stagesink.install_drain(deadline=4)
        uploader().upload_file(made("model.bin", 3_000_000), "model.bin")
    """
    with trainer(tmp_path, program) as process:
        heard(process, "putting model.bin")
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == -15
    (tmp_path / "work/model.bin").write_bytes(b"the job that was started again writes its next one over it")
    assert synced(tmp_path) == {"model.bin": bytes_of("model.bin", 3_000_000)}


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, -15), (signal.SIGINT, -2)])
def test_an_upload_in_the_foreground_is_kept_before_its_files_go(
    tmp_path: Path, signum: signal.Signals, status: int
) -> None:
    with trainer(tmp_path, FOREGROUND.format(deadline=4)) as process:
        heard(process, "putting model.bin")
        process.send_signal(signum)
        assert ended(process)[0] == status
    assert landed(tmp_path) == {}
    assert kept(tmp_path) == {"model.bin": bytes_of("model.bin")}
    assert synced(tmp_path) == kept_once("model.bin")


def kept_once(name: str) -> dict[str, bytes]:
    return {name: bytes_of(name)}


def test_an_upload_in_the_foreground_that_lands_meanwhile_leaves_nothing_behind(tmp_path: Path) -> None:
    with trainer(tmp_path, FOREGROUND.format(deadline=60)) as process:
        heard(process, "putting model.bin")
        process.send_signal(signal.SIGTERM)
        while not kept(tmp_path):
            assert process.poll() is None
            time.sleep(0.02)
        (tmp_path / "open").touch()
        assert ended(process)[0] == -15
    assert landed(tmp_path) == kept_once("model.bin")
    assert kept(tmp_path) == {}


def test_an_upload_that_fails_after_the_signal_is_kept_once(tmp_path: Path) -> None:
    program = """
        signal.signal(signal.SIGTERM, lambda *_: None)
        stagesink.install_drain(deadline=60)
        up = uploader(attempts=1)
        assert not up.upload_file(made("model.bin"), "model.bin")
        print("given up:", *(receipt.status for receipt in up.receipts))
        signal.pause()
    """
    with trainer(tmp_path, program) as process:
        heard(process, "putting model.bin")
        process.send_signal(signal.SIGTERM)
        while not kept(tmp_path):
            assert process.poll() is None
            time.sleep(0.02)
        (tmp_path / "store").rename(tmp_path / "aside")
        (tmp_path / "store").write_text("no folder any more")
        (tmp_path / "open").touch()
        heard(process, "given up: kept")
    (entry,) = (tmp_path / "outbox" / "entries").glob("[!.]*")
    outbox = Outbox(OutboxSettings(path=str(tmp_path / "outbox"), keep_free=0))
    (row,) = outbox.rows()
    assert (row.id, row.attempts) == (entry.name, 1)
    assert row.error
    outbox.close()
    (tmp_path / "store").unlink()
    assert synced(tmp_path) == kept_once("model.bin")


@threads_at_the_end
def test_a_process_that_outlives_its_notice_waits_at_its_end_as_any_other(tmp_path: Path) -> None:
    program = """
        from stagesink.outbox import background
        background._OUTLIVED_SECONDS = 0.2
        told = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: told.set())
        stagesink.install_drain(deadline=0.5)
        up = uploader(background=True)
        print("ready")
        while not told.is_set():
            time.sleep(0.01)
        time.sleep(1.5)
        assert up.upload_file(made("model.bin"), "model.bin")
        threading.Thread(target=lambda: (time.sleep(1), (base / "open").touch())).start()
    """
    with trainer(tmp_path, program) as process:
        heard(process, "ready")
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 0
    assert landed(tmp_path) == kept_once("model.bin")
    assert kept(tmp_path) == {}


def test_nothing_under_way_ends_at_once(tmp_path: Path) -> None:
    program = "stagesink.install_drain(deadline=1000)\nprint('ready', flush=True)\nsignal.pause(), signal.pause()"
    with trainer(tmp_path, program) as process:
        heard(process, "ready")
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (-15, "")


@threads_at_the_end
def test_a_trainers_own_handler_goes_on_to_its_last_checkpoint(tmp_path: Path) -> None:
    program = """
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        stagesink.install_drain(deadline=60)
        (base / "open").touch()
        print("ready", flush=True)
        while not stop.is_set():
            time.sleep(0.01)
        assert uploader().upload_file(made("last.bin"), "last.bin")
        assert uploader(background=True).upload_file(made("metrics.json", 10), "metrics.json")
        sys.exit(7)
    """
    with trainer(tmp_path, program) as process:
        heard(process, "ready")
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 7
    assert landed(tmp_path) == {"last.bin": bytes_of("last.bin"), "metrics.json": bytes_of("metrics.json", 10)}
    assert kept(tmp_path) == {}


def test_what_is_handed_over_after_the_signal_is_kept_first(tmp_path: Path) -> None:
    program = """
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        stagesink.install_drain(deadline=60)
        print("ready", flush=True)
        while not stop.is_set():
            time.sleep(0.01)
        uploader().upload_file(made("last.bin"), "last.bin")
    """
    with trainer(tmp_path, program) as process:
        heard(process, "ready")
        process.send_signal(signal.SIGTERM)
        heard(process, "putting last.bin")
        process.kill()  # the machine is gone
        assert ended(process)[0] == -9
    assert kept(tmp_path) == {"last.bin": bytes_of("last.bin")}


def test_a_handler_that_was_installed_later_keeps_its_say(tmp_path: Path) -> None:
    program = """
        stagesink.install_drain(deadline=60)
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        print("ready", flush=True)
        while not stop.is_set():
            time.sleep(0.01)
        print("goes on", flush=True)
        sys.stdin.readline()
        sys.exit(3)
    """
    with trainer(tmp_path, program) as process:
        heard(process, "ready")
        process.send_signal(signal.SIGTERM)
        heard(process, "goes on")
        assert process.communicate("\n", timeout=60)[1] == ""
        assert process.returncode == 3


def test_installed_twice_around_another_handler_each_is_called_once(tmp_path: Path) -> None:
    program = """
        signal.signal(signal.SIGTERM, lambda *_: print("first", flush=True))
        stagesink.install_drain(deadline=60)
        between = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda *rest: (print("second", flush=True), between(*rest)))
        stagesink.install_drain(deadline=50)
        stagesink.install_drain(deadline=40)
        print("ready", flush=True)
        sys.stdin.readline()
        print("end", flush=True)
    """
    with trainer(tmp_path, program) as process:
        heard(process, "ready")
        process.send_signal(signal.SIGTERM)
        assert [said(process), said(process)] == ["second", "first"]
        out, told = process.communicate("\n", timeout=60)
        assert (out, told, process.returncode) == ("end\n", "", 0)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, -15), (signal.SIGINT, -2)])
@pytest.mark.parametrize("program", [BACKGROUND, FOREGROUND], ids=["background", "foreground"])
def test_a_second_signal_ends_it_at_once(tmp_path: Path, program: str, signum: signal.Signals, status: int) -> None:
    with trainer(tmp_path, program.format(deadline=80_000)) as process:
        heard(process, *(["ready", "putting large.bin"] if program is BACKGROUND else ["putting model.bin"]))
        code, told = told_until_it_ends(process, signum)
        assert code == status
        assert "Exception ignored" not in told
    everything = {**kept(tmp_path), **landed(tmp_path)}
    if program is BACKGROUND:  # their calls have returned
        small = {"notes.txt": bytes_of("notes.txt", 900), "metrics.json": bytes_of("metrics.json", 500)}
        assert everything == {"large.bin": bytes_of("large.bin"), **small}
    else:
        assert everything in ({}, kept_once("model.bin"))
    assert synced(tmp_path) == everything


def test_a_main_thread_that_is_stuck_outside_of_python_holds_nothing_up(tmp_path: Path) -> None:
    program = """
        import ctypes
        stagesink.install_drain(deadline=4)
        up = uploader(background=True)
        assert up.upload_file(made("large.bin"), "large.bin")
        assert up.upload_file(made("metrics.json", 500), "metrics.json")
        threading.Thread(target=lambda: (time.sleep(0.2), print("ready", flush=True))).start()
        libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
        libc.pthread_mutex_init(mutex, None), libc.pthread_mutex_lock(mutex)
        libc.pthread_mutex_lock(mutex)  # for ever, and no signal interrupts it
    """
    with trainer(tmp_path, program) as process:
        heard(process, "ready")
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == -15
    assert landed(tmp_path) == {"metrics.json": bytes_of("metrics.json", 500)}
    assert kept(tmp_path) == {"large.bin": bytes_of("large.bin")}


def test_a_forked_child_does_not_drain(tmp_path: Path) -> None:
    program = """
        stagesink.install_drain(deadline=1000)
        up = uploader(background=True)
        assert up.upload_file(made("large.bin"), "large.bin")
        child = os.fork()
        if child == 0:
            print("child", flush=True)
            while True:
                signal.pause()
        sys.stdin.readline()
        os.kill(child, signal.SIGTERM)
        print("child ended by", os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)
        (base / "open").touch()
        assert stagesink.flush(60)
    """
    with trainer(tmp_path, program, PYTHONWARNINGS="ignore") as process:
        heard(process, "child")
        out, told = process.communicate("\n", timeout=60)
        assert "child ended by 15" in out
        assert (process.returncode, told) == (0, "")
    assert landed(tmp_path) == kept_once("large.bin")


def test_what_is_ignored_stays_ignored(tmp_path: Path) -> None:
    program = """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stagesink.install_drain()
        os.kill(os.getpid(), signal.SIGTERM)
        print("lives", flush=True)
    """
    with trainer(tmp_path, program) as process:
        heard(process, "lives")
        assert ended(process) == (0, "")


def test_another_signal_can_be_the_notice(tmp_path: Path) -> None:
    program = """
        stagesink.install_drain(60, signals=[signal.SIGUSR1])
        print("ready", signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, flush=True)
        while True:
            signal.pause()
    """
    with trainer(tmp_path, program) as process:
        heard(process, "ready True")
        process.send_signal(signal.SIGUSR1)
        assert ended(process)[0] == -signal.SIGUSR1


def test_the_environment_installs_it_with_the_first_upload(tmp_path: Path) -> None:
    program = """
        print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, flush=True)
        threading.Thread(target=uploader().upload_file, args=[made("a", 10), "a"]).run()
        print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, flush=True)
    """
    with trainer(tmp_path, program, STAGESINK_DRAIN="20") as process:
        assert [said(process), said(process)] == ["True", "False"]
        assert ended(process) == (0, "")


@threads_at_the_end
def test_in_another_thread_it_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    program = """
        def install():
            try:
                stagesink.install_drain()
            except stagesink.StagesinkError as error:
                print(type(error).__name__, error, flush=True)
        thread = threading.Thread(target=install)
        thread.start()
        thread.join()
        threading.Thread(target=uploader().upload_file, args=[made("a", 10), "a"]).start()  # no error, and no drain
    """
    with trainer(tmp_path, program, STAGESINK_DRAIN="20") as process:
        line = said(process)
        assert line.startswith("DrainError ")
        assert "`stagesink run`" in line
        assert ended(process) == (0, "")


@pytest.mark.parametrize("deadline", [0, -1, float("nan"), float("inf")])
def test_a_deadline_that_is_none_is_refused(deadline: float) -> None:
    with pytest.raises(ConfigError, match="seconds"):
        stagesink.install_drain(deadline)


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signal")
def test_a_signal_that_nobody_can_handle_is_refused(tmp_path: Path) -> None:
    program = """
        try:
            stagesink.install_drain(signals=[signal.SIGKILL])
        except stagesink.StagesinkError as error:
            print(type(error).__name__, flush=True)
    """
    with trainer(tmp_path, program) as process:
        assert said(process) == DrainError.__name__
        assert ended(process) == (0, "")
