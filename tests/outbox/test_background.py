"""Uploads in the background: order, outcomes, and how a process ends that has some under way."""

from __future__ import annotations

import errno
import gc
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
from outbox_store import Store
from outside import THREADS_AT_THE_END, python, threads_at_the_end
from trainers import LOADED, bytes_of, ended, heard, kept, landed, synced, trainer

import stagesink
from stagesink import ArtifactUploader
from stagesink.artifacts import MemorySource
from stagesink.errors import OutboxError, StagesinkError, TransferError
from stagesink.outbox.background import BackgroundUploader, background_uploader
from stagesink.outbox.entry import Entry
from stagesink.outbox.settings import OutboxSettings
from stagesink.outbox.store import Outbox
from stagesink.outbox.sync import Sync
from stagesink.sinks import ArtifactSink
from stagesink.sinks.memory import MemorySink
from stagesink.transfer import TransferOptions, plan_file
from stagesink.transfer.plan import Plan, PlannedObject

ONCE = TransferOptions(attempts=1)


class Gate(MemorySink):
    """Notes the order of uploads, and lets none through while it is shut."""

    def __init__(self) -> None:
        super().__init__(uuid.uuid4().hex)
        self.order: list[str] = []
        self.open_ = threading.Event()
        self.reached = threading.Event()
        self.closed = 0

    def put(self, key, source, *, on_bytes=None):  # type: ignore[no-untyped-def]
        if "manifest" not in key.path and key.path.startswith("f"):
            self.order.append(key.path)
            self.reached.set()
            assert self.open_.wait(60)
        return super().put(key, source, on_bytes=on_bytes)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open_.set()


@pytest.fixture
def background(outbox: Outbox) -> BackgroundUploader:
    return background_uploader(outbox)  # so that it ends with its test


def plan(path: str, data: bytes = b"data", *, adds: bool = False) -> Plan:
    key = stagesink.ArtifactKey("run", path)
    return Plan("run", path, "file", (PlannedObject(key, MemorySource(data), len(data)),), adds=adds)


Submit = Callable[..., "Future[tuple[stagesink.Receipt, ...]]"]


@pytest.fixture
def submit(outbox: Outbox, background: BackgroundUploader, gate: Gate) -> Submit:
    def call(path: str, data: bytes = b"data", *, priority: int = 5, adds: bool = False, closes: bool = False):
        entry = outbox.keep(plan(path, data, adds=adds), gate.uri, priority=priority, quick=True)
        return background.submit(entry, lambda: gate, ONCE, closes=closes)

    return call


def test_what_is_more_valuable_goes_first_and_then_what_is_older(
    submit: Submit, gate: Gate, background: BackgroundUploader
) -> None:
    submit("first")
    assert gate.reached.wait(60)
    for path, priority in (("f5", 5), ("f9", 9), ("f1", 1), ("f5-later", 5)):
        submit(path, priority=priority)
    gate.open_.set()
    assert background.flush(60)
    assert gate.order == ["first", "f1", "f5", "f5-later", "f9"]


def test_a_newer_upload_to_the_same_place_goes_instead(
    submit: Submit, gate: Gate, background: BackgroundUploader, outbox: Outbox
) -> None:
    under_way = submit("f", b"1")
    assert gate.reached.wait(60)
    handles = [submit("f", b"2"), submit("f", b"3")]
    with pytest.raises(OutboxError, match="a newer one goes instead"):
        handles[0].result(60)
    gate.open_.set()
    assert background.flush(60)
    assert [under_way.result(60)[0].status, handles[1].result(60)[0].status] == ["uploaded", "uploaded"]
    assert gate.order == ["f", "f"]
    with gate.open(stagesink.ArtifactKey("run", "f")) as stream:
        assert stream.read() == b"3"
    assert outbox.rows() == []


def test_what_another_process_has_landed_meanwhile_is_an_answer_and_what_it_removed_an_error(
    submit: Submit, gate: Gate, background: BackgroundUploader, reopened: Outbox
) -> None:
    submit("f")
    assert gate.reached.wait(60)
    landed, removed = submit("landed"), submit("removed")
    with Sync(reopened, lambda uri: gate, ONCE) as sync:
        assert [outcome.status for outcome in sync.run(lambda row: row.path == "landed")] == ["landed"]
    reopened.remove(next(row.id for row in reopened.rows() if row.path == "removed"))
    gate.open_.set()
    assert background.flush(60)
    (receipt,) = landed.result(60)
    assert (receipt.key.path, receipt.size, receipt.status, receipt.verified_by) == ("landed", 4, "unchanged", "none")
    with pytest.raises(OutboxError, match="was removed from the outbox"):
        removed.result(60)


def test_a_store_that_is_gone_is_an_answer_and_the_upload_waits(
    outbox: Outbox, background: BackgroundUploader, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"bytes")
    store.take_away()
    entry = outbox.keep(plan_file("run", "f", tmp_path / "f"), store.uri, quick=True)
    handle = background.submit(entry, lambda: stagesink.open_sink(store.uri), ONCE)
    with pytest.raises(TransferError):
        handle.result(60)
    assert not background.flush(60)
    assert [row.path for row in outbox.rows()] == ["f"]
    store.bring_back()
    assert background.flush(60)
    assert store.files() == {"f": b"bytes"}
    assert outbox.rows() == []


def test_what_adds_to_a_folder_waits_for_what_is_to_lie_there(
    outbox: Outbox, background: BackgroundUploader, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"bytes")
    store.take_away()
    tree = outbox.keep(plan_file("run", "tree", tmp_path / "f"), store.uri, quick=True, priority=9)
    more = outbox.keep(
        replace(plan_file("run", "tree/more", tmp_path / "f"), adds=True), store.uri, quick=True, priority=1
    )
    handles = [background.submit(each, lambda: stagesink.open_sink(store.uri), ONCE) for each in (tree, more)]
    for handle in handles:
        with pytest.raises(StagesinkError):
            handle.result(60)
    assert [row.attempts > 0 for row in outbox.rows()] == [True, False]


def test_a_defect_of_a_sink_ends_no_thread(submit: Submit, gate: Gate, outbox: Outbox, background) -> None:  # type: ignore[no-untyped-def]
    def broken() -> ArtifactSink:
        raise ZeroDivisionError

    handle = background.submit(outbox.keep(plan("x"), "memory:x", quick=True), broken, ONCE)
    with pytest.raises(StagesinkError, match="ZeroDivisionError"):
        handle.result(60)
    gate.open_.set()
    assert submit("f").result(60)[0].status == "uploaded"


def test_a_disk_that_fails_ends_no_thread(
    submit: Submit, gate: Gate, background: BackgroundUploader, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = threading.Event()
    really = Entry.read

    def read(folder: Path) -> Entry:
        if broken.is_set():
            raise OutboxError(f"{folder} cannot be read.") from OSError(errno.EIO, "Input/output error")
        return really(folder)

    def exists(path: Path) -> bool:
        if broken.is_set() and path.parent.name == "entries":
            raise OSError(errno.EIO, "Input/output error")
        return really_exists(path)

    really_exists = Path.exists
    monkeypatch.setattr(Entry, "read", read)
    monkeypatch.setattr(Path, "exists", exists)
    broken.set()
    handle = submit("f")
    gate.open_.set()
    with pytest.raises(OutboxError, match="cannot be read"):
        handle.result(60)
    broken.clear()
    assert background.flush(60)
    assert gate.order == ["f"]
    assert submit("f2").result(60)[0].status == "uploaded"


def test_what_another_process_made_copies_of_meanwhile_lands(
    submit: Submit, gate: Gate, background: BackgroundUploader, outbox: Outbox, reopened: Outbox, checkpoint: Path
) -> None:
    submit("first")
    assert gate.reached.wait(60)
    entry = outbox.keep(plan_file("run", "f", checkpoint / "model.bin"), gate.uri, quick=True)
    handle = background.submit(entry, lambda: gate, ONCE, closes=False)
    owned = reopened.secure(entry.id)
    assert owned is not None
    assert {file.how for file in owned.files} <= {"copy", "reflink"}
    gate.open_.set()
    assert handle.result(60)[0].status == "uploaded"


def test_what_waits_behind_others_is_safe_from_a_power_cut_meanwhile(
    submit: Submit, gate: Gate, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled, settle = [], Outbox.settle
    waits = threading.Event()

    def noted(self: Outbox, entry: Entry) -> None:
        settle(self, entry)
        settled.append(entry.path)
        if len(set(settled)) == 3:
            waits.set()

    monkeypatch.setattr(Outbox, "settle", noted)
    submit("first")
    assert gate.reached.wait(60)
    submit("f2")
    submit("f3")
    assert waits.wait(60)
    assert gate.order == ["first"]
    assert settled == ["first", "f2", "f3"]


def test_one_sink_serves_many_uploads_and_is_closed_at_the_end(
    outbox: Outbox, background: BackgroundUploader, gate: Gate
) -> None:
    opened = []
    gate.open_.set()

    def open_gate() -> ArtifactSink:
        opened.append(gate)
        return gate

    for number in range(5):
        entry = outbox.keep(plan(f"f{number}"), gate.uri, quick=True)
        assert background.submit(entry, open_gate, ONCE).result(60)
    assert background.flush(60)
    assert (len(opened), gate.closed) == (1, 0)
    background.finish()
    assert gate.closed == 1


def test_uploaders_of_one_configuration_share_their_sinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    real = stagesink.uploader.open_sink

    def counted(*arguments, **options):  # type: ignore[no-untyped-def]
        opened.append(threading.current_thread().name)
        return real(*arguments, **options)

    monkeypatch.setattr(stagesink.uploader, "open_sink", counted)
    for number in range(3):
        (tmp_path / "f").write_bytes(bytes([number]))
        up = ArtifactUploader(
            "run", sink=f"file:{tmp_path / 'store'}", background=True, storage_options={"fsync": False}
        )
        assert up.upload_file(tmp_path / "f")
        assert stagesink.flush(60)
    assert opened.count("stagesink-outbox") == 1


def test_flush_waits_for_what_another_process_is_at(
    gate: Gate, background: BackgroundUploader, outbox: Outbox, settings: OutboxSettings
) -> None:
    gate.open_.set()
    other = Outbox(settings)
    entry = outbox.keep(plan("f"), gate.uri, quick=True)
    with other.claim(entry.id) as theirs:
        assert theirs == entry
        handle = background.submit(entry, lambda: gate, ONCE, closes=False)
        assert not background.flush(0.5)
        assert not handle.done()
        flushed: list[bool] = []
        thread = threading.Thread(target=lambda: flushed.append(background.flush(60)))
        thread.start()
        thread.join(1.5)
        assert flushed == []
    thread.join()
    assert flushed == [True]
    assert handle.result(60)[0].status == "uploaded"
    other.close()


def test_flush_of_one_uploader_tells_what_has_landed_since(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.take_away()
    uploader = ArtifactUploader("run", sink=store.uri, background=True, attempts=1)
    assert uploader.upload_file(__file__, "file")
    assert not uploader.flush(60)
    store.bring_back()
    assert uploader.flush(60)
    assert uploader.handles[0].exception() is not None  # it tells of the first attempt
    assert store.files() == {"file": Path(__file__).read_bytes()}


def test_a_failure_after_another_process_was_at_it_is_the_first_one(
    gate: Gate,
    background: BackgroundUploader,
    outbox: Outbox,
    settings: OutboxSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stagesink.outbox.background._HELD_WAIT", 0.01)
    other = Outbox(settings)
    entry, adds = outbox.keep(plan("f"), gate.uri, quick=True), outbox.keep(plan("f", adds=True), gate.uri, quick=True)
    with other.claim(entry.id):
        background.submit(entry, lambda: gate, ONCE, closes=False)
        background.submit(adds, lambda: gate, ONCE, closes=False)
        assert not background.flush(0.5)
        (job,) = [job for job in background._all() if job.entry.id == entry.id]
        assert job.attempts > 3
        assert job.failures == 0
    gate.open_.set()
    assert background.flush(60)  # what goes behind it is waited for, too
    other.close()


def test_nothing_stays_of_uploads_that_are_done(submit: Submit, gate: Gate, background: BackgroundUploader) -> None:
    """Not their jobs, and so not their entries, plans and futures: a training may hand over thousands."""
    gate.open_.set()
    handles = [weakref.ref(submit("f", bytes([number]) * 1000)) for number in range(150)]
    assert background.flush(60)
    gc.collect()
    assert sum(handle() is not None for handle in handles) <= 1  # the thread's last one


def test_the_first_upload_finds_all_loaded(tmp_path: Path) -> None:
    assert python(LOADED, f"file:{tmp_path}", STAGESINK_OUTBOX_PATH=str(tmp_path / "outbox")).stdout.split() == []


def test_where_no_thread_can_be_started_it_is_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "stagesink-outbox":
            raise RuntimeError("can't start new thread")
        start(thread)

    uploader = ArtifactUploader("run", "training", sink=f"file:{tmp_path}", background=True)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert uploader.upload_file(__file__, "first")
        assert not uploader.flush(60)
    assert "`stagesink sync` uploads it" in str(uploader.handles[0].exception())
    assert uploader.upload_file(__file__, "second")
    assert stagesink.flush(60)
    assert (tmp_path / "run" / "first").read_bytes() == Path(__file__).read_bytes()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_does_not_wait_for_its_parents_uploads(tmp_path: Path) -> None:
    program = """
        up = uploader(background=True)
        assert up.upload_file(made("parents"), "parents")
        child = os.fork()
        if child == 0:
            assert up.upload_file(made("childs", 10), "childs")
            os._exit(not up.flush(60))
        assert os.waitpid(child, 0)[1] == 0
        (base / "open").touch()
        assert up.flush(60)
    """
    with trainer(tmp_path, program) as process:
        status, told = ended(process)
    assert status == 0, told
    assert landed(tmp_path) == {"parents": bytes_of("parents"), "childs": b"childschilds"}


def test_what_the_first_upload_will_say_is_not_said_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    uploader = ArtifactUploader("run", "training", sink="nowhere://at/all", background=True)
    assert (uploader.errors, caplog.text) == ([], "")
    assert not uploader.upload_file(__file__)
    uploader = ArtifactUploader("run", "training", background=True)
    monkeypatch.setenv("STAGESINK_SINK", f"file:{tmp_path}")  # the surroundings count as they are at the first upload
    assert uploader.upload_file(__file__)
    assert uploader.sink.uri == f"file:{tmp_path}"
    assert uploader.flush(60)


def test_flush_without_uploads_is_true() -> None:
    assert stagesink.flush(0) is True


# -- the end of a process ----------------------------------------------------------------------------------------------

ENDINGS = {
    "": 0,
    "sys.exit(3)": 3,
    "raise SystemExit(4)": 4,
    "raise ValueError('of the trainer')": 1,
    "threading.Thread(target=time.sleep, args=[1000], daemon=True).start(); sys.exit(5)": 5,
}


@threads_at_the_end
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_process_that_ends_waits_for_its_uploads_and_keeps_its_status(tmp_path: Path, ending: str) -> None:
    program = f"""
up = uploader(background=True, sink=f"file:{{base / 'store'}}")
for number in range(5):
    assert up.upload_file(made(f"f{{number}}", 300_000), f"f{{number}}")
{ending}
"""
    with trainer(tmp_path, program) as process:
        status, told = ended(process)
    assert status == ENDINGS[ending]
    assert "stagesink" not in told.replace("ValueError: of the trainer", "")
    assert landed(tmp_path) == {f"f{number}": bytes_of(f"f{number}", 300_000) for number in range(5)}
    assert kept(tmp_path) == {}


@pytest.mark.skipif(THREADS_AT_THE_END, reason="of Python 3.12.0 and 3.12.1")
def test_where_no_thread_starts_at_the_end_the_rest_waits(tmp_path: Path) -> None:
    program = """
        up = uploader(background=True, sink=f"file:{base / 'store'}")
        for number in range(5):
            assert up.upload_file(made(f"f{number}", 300_000), f"f{number}")
    """
    with trainer(tmp_path, program) as process:
        status, told = ended(process)
    assert status == 0
    assert "call flush() before" in told
    assert "Traceback" not in told
    expected = {f"f{number}": bytes_of(f"f{number}", 300_000) for number in range(5)}
    assert {**landed(tmp_path), **kept(tmp_path)} == expected
    assert synced(tmp_path) == expected


@pytest.mark.parametrize("ending", ["os._exit(6)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_process_that_ends_at_once_has_kept_everything(tmp_path: Path, ending: str) -> None:
    program = f"""
up = uploader(background=True)
for name in "ab":
    assert up.upload_file(made(name), name)
{ending}
"""
    with trainer(tmp_path, program) as process:
        assert ended(process)[0] in (6, -9)
    assert kept(tmp_path) == {"a": bytes_of("a"), "b": bytes_of("b")}
    assert synced(tmp_path) == {"a": bytes_of("a"), "b": bytes_of("b")}


def test_a_process_that_ends_does_not_wait_for_a_store_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("not a folder")
    program = """
        up = uploader(background=True, attempts=1)
        for step in range(3):
            assert up.upload_file(made("a"), "a")
    """
    with trainer(tmp_path, program) as process:
        status, told = ended(process)
    assert status == 0
    assert "`stagesink sync` uploads them" in told
    assert "Traceback" not in told
    (tmp_path / "store").unlink()
    assert synced(tmp_path) == {"a": bytes_of("a")}


@threads_at_the_end
def test_ctrl_c_at_the_end_leaves_the_rest_in_the_outbox(tmp_path: Path) -> None:
    program = """
        assert uploader(background=True).upload_file(made("a"), "a")
        sys.stdout.flush()
        def main_thread_is_in():
            frame = sys._current_frames().get(threading.main_thread().ident)
            while frame is not None:
                yield frame.f_code.co_name
                frame = frame.f_back
        def interrupt():
            while "finish" not in main_thread_is_in():
                time.sleep(0.01)
            signal.raise_signal(signal.SIGINT)
        threading.Thread(target=interrupt, daemon=True).start()
    """
    with trainer(tmp_path, program) as process:
        status, told = ended(process)
    assert status == 0
    assert told.startswith("Stopped.")
    assert "Traceback" not in told
    assert kept(tmp_path) == {"a": bytes_of("a")}


def test_an_upload_that_comes_too_late_waits_and_says_so(tmp_path: Path) -> None:
    program = """
        import atexit
        atexit.register(lambda: uploader(background=True).upload_file(made("a"), "a"))
    """
    with trainer(tmp_path, program) as process:
        status, told = ended(process)
    assert status == 0
    assert "`stagesink sync` uploads it" in told
    assert "Traceback" not in told
    assert kept(tmp_path) == {"a": bytes_of("a")}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_that_is_forked_while_the_thread_works(tmp_path: Path) -> None:
    program = """
        up = uploader(background=True)
        assert up.upload_file(made("parents"), "parents")
        assert up.upload_file(made("second"), "second")
        sys.stdin.readline()
        child = os.fork()
        if child == 0:
            (base / "open").touch()
            assert uploader(background=True).upload_file(made("childs"), "childs")
            assert stagesink.flush(60)
            sys.exit(9)
        print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    """
    with trainer(tmp_path, program, PYTHONWARNINGS="ignore") as process:
        heard(process, "putting parents")
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        heard(process, "child 9")
        assert ended(process) == (0, "")
    assert landed(tmp_path) == {name: bytes_of(name) for name in ("parents", "second", "childs")}
    assert kept(tmp_path) == {}
