from __future__ import annotations

import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from outbox_store import Store

from stagesink.artifacts import StoredArtifact
from stagesink.errors import TransientSinkError
from stagesink.manifest import ManifestEntry
from stagesink.outbox.settings import OutboxSettings
from stagesink.outbox.store import Outbox
from stagesink.outbox.sync import Outcome, Sync
from stagesink.sinks import ArtifactSink, open_sink
from stagesink.sinks.memory import MemorySink
from stagesink.testing import FaultySink, fails
from stagesink.transfer import Transfer, TransferOptions, plan_file, plan_packed_tree, plan_tree
from stagesink.transfer.plan import Plan

OPTIONS = TransferOptions(attempts=1)


def synced(outbox: Outbox, opener: Callable[[str], ArtifactSink] = open_sink) -> list[Outcome]:
    with Sync(outbox, opener, OPTIONS) as sync:
        return list(sync.run())


def statuses(outcomes: list[Outcome]) -> list[tuple[str, str]]:
    return [(outcome.row.path, outcome.status) for outcome in outcomes]


def file_plan(tmp_path: Path, path: str, text: str, *, adds: bool = False) -> Plan:
    source = tmp_path / f"{path}.source"
    source.write_text(text)
    return replace(plan_file("run", path, source), adds=adds)


def test_what_was_kept_lands_and_nothing_is_left(outbox: Outbox, store: Store, checkpoint: Path) -> None:
    outbox.keep(plan_tree("run", "checkpoint", checkpoint), store.uri)
    (outcome,) = synced(outbox)
    assert outcome.status == "landed"
    assert {receipt.key.path: receipt.status for receipt in outcome.receipts} == dict.fromkeys(
        ("checkpoint/empty", "checkpoint/model.bin", "checkpoint/sub/ünï code #1.json"), "uploaded"
    )
    assert store.files() == {
        f"checkpoint/{each.relative_to(checkpoint)}": each.read_bytes()
        for each in checkpoint.rglob("*")
        if each.is_file()
    }
    assert (store.folder / "run" / "checkpoint.manifest.json").is_file()
    assert outbox.rows() == []
    assert not any((outbox.path / "entries").iterdir())
    assert synced(outbox) == []


def test_an_archive_is_packed_when_it_lands(outbox: Outbox, store: Store, checkpoint: Path) -> None:
    plan = plan_packed_tree("run", "best.tar.gz", checkpoint, archive_format="tar.gz")
    outbox.keep(plan, store.uri)
    assert statuses(synced(outbox)) == [("best.tar.gz", "landed")]
    with tarfile.open(store.folder / "run" / "best.tar.gz") as archive:
        assert sorted(archive.getnames()) == sorted(
            f"{plan.details['extracted_path']}/{each.relative_to(checkpoint)}"
            for each in checkpoint.rglob("*")
            if each.is_file()
        )


def test_what_cannot_land_waits_on_and_says_why(outbox: Outbox, store: Store, checkpoint: Path) -> None:
    outbox.keep(plan_tree("run", "checkpoint", checkpoint), store.uri)
    store.take_away()
    for attempt in (1, 2):
        (outcome,) = synced(outbox)
        assert outcome.status == "failed"
        assert outcome.error is not None
        (row,) = outbox.rows()
        assert row.attempts == attempt
        assert row.error is not None
        assert "Not a directory" in row.error
    store.bring_back()
    assert statuses(synced(outbox)) == [("checkpoint", "landed")]


def test_one_that_fails_does_not_stop_the_others(outbox: Outbox, store: Store, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.txt"):
        outbox.keep(file_plan(tmp_path, name, name), store.uri)
    (store.folder / "run" / "b.txt").mkdir(parents=True)
    assert sorted(statuses(synced(outbox))) == [("a.txt", "landed"), ("b.txt", "failed"), ("c.txt", "landed")]
    assert [row.path for row in outbox.rows()] == ["b.txt"]
    assert store.files() == {"a.txt": b"a.txt", "c.txt": b"c.txt"}


def test_a_store_that_is_gone_is_asked_once(outbox: Outbox, store: Store, checkpoint: Path) -> None:
    for path in ("a", "b", "c"):
        outbox.keep(plan_tree("run", path, checkpoint), store.uri)
    sinks: list[FaultySink] = []

    def gone(uri: str) -> ArtifactSink:
        error = TransientSinkError("It is gone.")
        sinks.append(FaultySink(open_sink(uri), fails("open", error), fails("put", error), fails("stat", error)))
        return sinks[-1]

    assert [outcome.status for outcome in synced(outbox, gone)] == ["failed"] * 3
    assert len(sinks) == 1
    assert sum(sinks[0].calls.values()) <= 2
    assert [row.error for row in outbox.rows()] == ["a: It is gone.", "It is gone.", "It is gone."]


def test_of_several_for_one_place_only_the_newest_is_sent(outbox: Outbox, store: Store, tmp_path: Path) -> None:
    for text in ("first", "second", "third"):
        outbox.keep(file_plan(tmp_path, "metrics.json", text), store.uri)
    sinks: list[FaultySink] = []

    def counting(uri: str) -> ArtifactSink:
        sinks.append(FaultySink(open_sink(uri)))
        return sinks[-1]

    outcomes = synced(outbox, counting)
    assert sorted(outcome.status for outcome in outcomes) == ["landed", "superseded", "superseded"]
    assert store.files() == {"metrics.json": b"third"}
    assert sinks[0].calls["put"] == 2  # the file and its manifest
    assert outbox.rows() == []


def test_the_older_ones_wait_until_the_newest_has_landed(outbox: Outbox, store: Store, tmp_path: Path) -> None:
    for text in ("first", "second"):
        outbox.keep(file_plan(tmp_path, "metrics.json", text), store.uri)
    store.take_away()
    assert statuses(synced(outbox)) == [("metrics.json", "failed")]
    assert len(outbox.rows()) == 2


def test_what_adds_to_a_folder_goes_in_order_and_replaces_nothing(outbox: Outbox, store: Store, tmp_path: Path) -> None:
    outbox.keep(plan_tree("run", "logs", _folder(tmp_path / "a", "a.txt")), store.uri)
    for name in ("b", "c"):
        plan = plan_tree("run", "logs", _folder(tmp_path / name, f"{name}.txt"))
        outbox.keep(replace(plan, adds=True), store.uri)
    assert [outcome.status for outcome in synced(outbox)] == ["landed"] * 3
    assert store.files() == {f"logs/{name}.txt": name.encode() for name in "abc"}


def test_what_adds_to_a_folder_waits_for_what_lies_there_before_it(
    outbox: Outbox, store: Store, tmp_path: Path
) -> None:
    outbox.keep(plan_tree("run", "logs", _folder(tmp_path / "a", "a.txt")), store.uri)
    outbox.keep(replace(plan_tree("run", "logs", _folder(tmp_path / "b", "b.txt")), adds=True), store.uri)
    store.take_away()
    assert statuses(synced(outbox)) == [("logs", "failed")]
    store.bring_back()
    assert statuses(synced(outbox)) == [("logs", "landed"), ("logs", "landed")]


def test_what_lies_in_a_folder_waits_for_the_folder_that_is_older(outbox: Outbox, store: Store, tmp_path: Path) -> None:
    outbox.keep(plan_tree("run", "logs", _folder(tmp_path / "a", "a.txt")), store.uri)
    outbox.keep(file_plan(_folder(tmp_path / "logs", "unused").parent, "logs/own.txt", "own"), store.uri)
    failing = FaultySink(open_sink(store.uri), fails("put", TransientSinkError("busy"), first=2))
    assert statuses(synced(outbox, lambda uri: failing)) == [("logs", "failed")]
    assert statuses(synced(outbox)) == [("logs", "landed"), ("logs/own.txt", "landed")]
    assert store.files() == {"logs/a.txt": b"a", "logs/own.txt": b"own"}


def test_in_a_hurry_too_what_touches_the_same_objects_goes_in_its_order(
    outbox: Outbox, store: Store, tmp_path: Path
) -> None:
    outbox.keep(plan_tree("run", "logs", _folder(tmp_path / "a", "a.txt")), store.uri, priority=9)
    outbox.keep(file_plan(_folder(tmp_path / "logs", "unused").parent, "logs/own.txt", "own"), store.uri, priority=1)
    outbox.keep(file_plan(tmp_path, "b.txt", "b"), store.uri, priority=1)
    with Sync(outbox, open_sink, OPTIONS) as sync:
        landed = [outcome.row.path for outcome in sync.run(urgent=True)]
    assert landed == ["b.txt", "logs", "logs/own.txt"]


def test_the_newest_is_not_overtaken_by_an_older_one_that_another_process_lands(
    outbox: Outbox, reopened: Outbox, store: Store, tmp_path: Path
) -> None:
    older = outbox.keep(file_plan(tmp_path, "a.txt", "older"), store.uri)
    outbox.keep(file_plan(tmp_path, "a.txt", "newest"), store.uri)
    with reopened.claim(older.id):
        assert statuses(synced(outbox)) == [("a.txt", "held")]
    assert sorted(statuses(synced(outbox))) == [("a.txt", "landed"), ("a.txt", "superseded")]
    assert store.files() == {"a.txt": b"newest"}


def test_the_newest_lands_whatever_the_clock_says(
    outbox: Outbox, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox.keep(file_plan(tmp_path, "a.txt", "older"), store.uri)
    before = time.time() - 3600
    monkeypatch.setattr(time, "time", lambda: before)
    outbox.keep(file_plan(tmp_path, "a.txt", "newest"), store.uri)
    synced(outbox)
    assert store.files() == {"a.txt": b"newest"}


def test_what_was_written_through_a_link_does_away_with_nothing_that_landed_before(
    outbox: Outbox, store: Store, checkpoint: Path
) -> None:
    outbox.keep(plan_tree("run", "checkpoint", checkpoint), store.uri)
    synced(outbox)
    before = store.files()
    (checkpoint / "empty").write_text("not any more")
    entry = outbox.keep(plan_tree("run", "checkpoint", checkpoint), store.uri, quick=True)
    (checkpoint / "model.bin").write_bytes(b"the next one, half of it")
    if "link" not in {file.how for file in entry.files}:
        pytest.skip("this disk has reflinks, and so no links")
    assert statuses(synced(outbox)) == [("checkpoint", "failed")]
    assert store.files() == before
    assert (store.folder / "run" / "checkpoint.manifest.json").is_file()


def test_one_that_is_lost_stops_nobody_before_it(outbox: Outbox, store: Store, tmp_path: Path) -> None:
    for text in ("first", "second"):
        outbox.keep(file_plan(tmp_path, "metrics.json", text), store.uri)
    lost = [outbox.keep(file_plan(tmp_path, "metrics.json", text), store.uri) for text in ("third", "fourth")]
    (lost[0].folder / "plan.json").write_bytes(b"{")
    Path(lost[1].place(lost[1].files[0])).write_bytes(b"FOURTH")
    assert statuses(synced(outbox)) == [
        *[("metrics.json", "failed")] * 2,
        ("metrics.json", "landed"),
        ("metrics.json", "superseded"),
    ]
    assert store.files() == {"metrics.json": b"second"}
    assert [row.id for row in outbox.rows()] == [entry.id for entry in lost]
    assert statuses(synced(outbox)) == [("metrics.json", "failed")] * 2
    assert store.files() == {"metrics.json": b"second"}


def test_a_defect_of_a_sink_stops_nobody_else(outbox: Outbox, store: Store, tmp_path: Path) -> None:
    outbox.keep(plan_tree("run", "a", _folder(tmp_path / "a", "a.txt")), "broken://store")
    outbox.keep(file_plan(tmp_path, "b.txt", "b"), store.uri)

    def opened(uri: str) -> ArtifactSink:
        error = ZeroDivisionError("a defect")
        return FaultySink(MemorySink("broken"), fails("put", error)) if uri.startswith("broken") else open_sink(uri)

    assert statuses(synced(outbox, opened)) == [("a", "failed"), ("b.txt", "landed")]
    assert [(row.path, row.attempts) for row in outbox.rows()] == [("a", 1)]


def test_an_index_that_lies_sends_nothing_to_another_place(
    outbox: Outbox, settings: OutboxSettings, store: Store, tmp_path: Path
) -> None:
    outbox.keep(file_plan(tmp_path, "a.txt", "a"), store.uri)
    outbox.close()
    index = outbox.path / "index.db"
    index.write_bytes(index.read_bytes().replace(b"a.txt", b"b.txt"))
    assert statuses(synced(Outbox(settings))) == [("b.txt", "failed")]
    assert not store.folder.exists()
    index.unlink()
    assert statuses(synced(Outbox(settings))) == [("a.txt", "landed")]


def test_one_that_is_damaged_says_so_and_stops_nobody(outbox: Outbox, store: Store, tmp_path: Path) -> None:
    entry = outbox.keep(file_plan(tmp_path, "a.txt", "a"), store.uri)
    outbox.keep(file_plan(tmp_path, "b.txt", "b"), store.uri)
    (entry.folder / "plan.json").write_bytes(b"{")
    assert sorted(statuses(synced(outbox))) == [("a.txt", "failed"), ("b.txt", "landed")]
    (row,) = outbox.rows()
    assert "is damaged" in (row.error or "")


def test_what_another_process_holds_is_left_to_it(
    outbox: Outbox, reopened: Outbox, store: Store, tmp_path: Path
) -> None:
    entry = outbox.keep(file_plan(tmp_path, "a.txt", "a"), store.uri)
    outbox.keep(file_plan(tmp_path, "b.txt", "b"), store.uri)
    with reopened.claim(entry.id):
        assert sorted(statuses(synced(outbox))) == [("a.txt", "held"), ("b.txt", "landed")]
    assert [row.path for row in outbox.rows()] == ["a.txt"]


def test_a_commit_whose_end_was_killed_sends_nothing_again(outbox: Outbox, store: Store, checkpoint: Path) -> None:
    entry = outbox.keep(plan_tree("run", "checkpoint", checkpoint), store.uri)
    Transfer(open_sink(store.uri), OPTIONS).run(entry.plan())  # landed, and killed before it was taken out
    (outcome,) = synced(outbox)
    assert {receipt.status for receipt in outcome.receipts} == {"unchanged"}
    assert outbox.rows() == []


def test_two_syncs_at_once_land_each_upload_once(
    outbox: Outbox, settings: OutboxSettings, store: Store, tmp_path: Path
) -> None:
    for number in range(40):
        outbox.keep(file_plan(tmp_path, f"{number}.txt", str(number)), store.uri)
    code = (
        "import sys\n"
        "from stagesink import TransferOptions, open_sink\n"
        "from stagesink.outbox.settings import OutboxSettings\n"
        "from stagesink.outbox.store import Outbox\n"
        "from stagesink.outbox.sync import Sync\n"
        "with Sync(Outbox(OutboxSettings(path=sys.argv[1])), open_sink, TransferOptions()) as sync:\n"
        "    for outcome in sync.run():\n"
        "        print(outcome.row.path, outcome.status)\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, settings.path], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    landed = sorted(line.split()[0] for lines in said for line in lines if line.endswith("landed"))
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert landed == sorted(f"{number}.txt" for number in range(40))
    assert store.files() == {f"{number}.txt": str(number).encode() for number in range(40)}
    assert outbox.rows() == []


def test_what_is_kept_during_a_sync_is_not_lost(outbox: Outbox, reopened: Outbox, store: Store, tmp_path: Path) -> None:
    done = threading.Event()

    def keep() -> None:
        for number in range(20):
            reopened.keep(file_plan(tmp_path, f"{number}.txt", str(number)), store.uri)
        done.set()

    thread = threading.Thread(target=keep)
    thread.start()
    while not done.is_set():
        synced(outbox)
    thread.join()
    synced(outbox)
    assert store.files() == {f"{number}.txt": str(number).encode() for number in range(20)}
    assert outbox.rows() == []


def _folder(path: Path, name: str) -> Path:
    path.mkdir()
    (path / name).write_text(path.name)
    return path


@pytest.mark.parametrize("count", [1, 3])
def test_many_small_ones_land_with_their_own_receipts(outbox: Outbox, store: Store, tmp_path: Path, count: int) -> None:
    for number in range(count):
        outbox.keep(file_plan(tmp_path, f"{number}.txt", str(number)), store.uri)
    for outcome in synced(outbox):
        assert [receipt.key.path for receipt in outcome.receipts] == [outcome.row.path]


def test_what_an_interrupted_sync_brought_over_is_not_sent_again(
    outbox: Outbox, store: Store, checkpoint: Path
) -> None:
    outbox.keep(plan_tree("run", "checkpoint", checkpoint), store.uri)
    sinks: list[FaultySink] = []

    def at_first(uri: str) -> ArtifactSink:
        sinks.append(FaultySink(open_sink(uri), fails("put", TransientSinkError("It is gone."), nth=3)))
        return sinks[-1]

    options = TransferOptions(attempts=1, workers=1)
    with Sync(outbox, at_first, options) as sync:
        assert statuses(list(sync.run())) == [("checkpoint", "failed")]
    landed = outbox.landed(outbox.rows()[0].id)
    assert 0 < len(landed) < 3
    with Sync(outbox, open_sink, options) as sync:
        (outcome,) = sync.run()
    again = {receipt.key.path for receipt in outcome.receipts if receipt.status == "uploaded"}
    assert again == {receipt.key.path for receipt in outcome.receipts} - {entry.path for entry in landed}


def test_a_note_about_other_bytes_spares_nothing(outbox: Outbox, store: Store, checkpoint: Path) -> None:
    entry = outbox.keep(plan_tree("run", "checkpoint", checkpoint), store.uri)
    outbox.note_landed(entry.id, [ManifestEntry("checkpoint/model.bin", 2 << 20, "0" * 64)])
    (store.folder / "run" / "checkpoint").mkdir(parents=True)
    (store.folder / "run" / "checkpoint" / "model.bin").write_bytes(b"x" * (2 << 20))
    assert statuses(synced(outbox)) == [("checkpoint", "landed")]
    assert store.files()["checkpoint/model.bin"] == b"m" * (2 << 20)


@pytest.mark.parametrize("packed", [False, True])
def test_bytes_that_a_disk_has_changed_are_not_sent(
    outbox: Outbox, store: Store, checkpoint: Path, packed: bool
) -> None:
    plan = plan_packed_tree("run", "best.tar.gz", checkpoint, archive_format="tar.gz")
    entry = outbox.keep(plan if packed else plan_tree("run", "checkpoint", checkpoint), store.uri)
    (large,) = (file for file in entry.files if file.size > 1 << 20)
    assert large.sha256 is not None or large.how == "reflink"
    with open(entry.place(large), "r+b") as file:
        file.write(b"x")
    (outcome,) = synced(outbox)
    if large.sha256 is not None:
        assert "does not hold the bytes any more that were kept" in str(outcome.error)
        assert not any(path.endswith(("model.bin", "tar.gz")) for path in store.files())
        assert outbox.is_there(entry.id)


def test_what_another_process_left_as_links_becomes_copies_once_it_has_to_wait(
    outbox: Outbox, reopened: Outbox, store: Store, checkpoint: Path
) -> None:
    for path in ("first", "first/second"):  # the second waits for the first, and is not tried
        outbox.keep(plan_tree("run", path, checkpoint), store.uri, quick=True)
    store.take_away()
    assert statuses(synced(reopened)) == [("first", "failed")]
    assert {file.how for entry in reopened.entries() for file in entry.files} <= {"copy", "reflink"}
    (checkpoint / "model.bin").write_bytes(b"the next checkpoint, half of it")  # by the job that was started again
    store.bring_back()
    assert statuses(synced(reopened)) == [("first", "landed"), ("first/second", "landed")]
    assert store.files()["first/second/model.bin"] == b"m" * (2 << 20)


def test_one_that_is_damaged_before_the_index_knew_it_is_said_and_can_be_removed(
    outbox: Outbox, settings: OutboxSettings, store: Store, tmp_path: Path
) -> None:
    damaged = outbox.keep(file_plan(tmp_path, "a.txt", "a"), store.uri)
    outbox.keep(file_plan(tmp_path, "b.txt", "b"), store.uri)
    outbox.close()
    (damaged.folder / "plan.json").write_bytes(b"")  # as a power cut leaves it
    (outbox.path / "index.db").unlink()
    again = Outbox(settings)
    assert [row.id == damaged.id for row in again.rows()] == [False, True]
    outcomes = synced(again)
    assert statuses(outcomes) == [("b.txt", "landed"), (damaged.id, "failed")]
    assert "is damaged" in str(outcomes[1].error)
    (row,) = again.rows()
    assert (row.id, row.error) == (damaged.id, str(outcomes[1].error and outcomes[1].error.message))
    assert abs(row.created - time.time()) < 100
    again.remove(row.id)
    assert again.rows() == []
    again.close()


def test_a_url_that_an_error_quotes_is_written_down_without_its_secret(
    outbox: Outbox, store: Store, tmp_path: Path
) -> None:
    outbox.keep(file_plan(tmp_path, "a.txt", "a"), store.uri)

    class Quoting(FaultySink):
        def put(self, *arguments: object, **named: object) -> StoredArtifact:
            raise TransientSinkError("PUT https://me:word@host/x?sig=SECRET failed")

    (outcome,) = synced(outbox, lambda uri: Quoting(open_sink(uri)))
    assert outcome.status == "failed"
    (row,) = outbox.rows()
    assert row.error is not None
    assert "PUT https://***@host/x?*** failed" in row.error


class At(FaultySink):
    """One of several stores in which a bucket of that name lies."""

    def __init__(self, sink: ArtifactSink, host: str) -> None:
        super().__init__(sink)
        self.host = host


def test_stores_of_one_name_at_other_addresses_are_not_taken_for_each_other(
    outbox: Outbox, store: Store, tmp_path: Path
) -> None:
    first = outbox.keep(file_plan(tmp_path, "a.txt", "first"), store.uri, host="http://a:9000")
    outbox.keep(file_plan(tmp_path, "a.txt", "second"), store.uri, host="http://b:9000")
    outcomes = synced(outbox, lambda uri: At(open_sink(uri), "http://b:9000"))
    assert statuses(outcomes) == [("a.txt", "failed"), ("a.txt", "landed")]
    assert "kept for" in str(outcomes[0].error)
    assert "at http://a:9000, and here that is at http://b:9000" in str(outcomes[0].error)
    assert [entry.id for entry in outbox.entries()] == [first.id]
    assert store.files() == {"a.txt": b"second"}
    with Sync(outbox, lambda uri: At(open_sink(uri), "http://b:9000"), OPTIONS, moved=True) as sync:
        assert statuses(list(sync.run())) == [("a.txt", "landed")]


def test_a_store_that_does_not_tell_its_address_is_taken_for_its_own(
    outbox: Outbox, store: Store, tmp_path: Path
) -> None:
    outbox.keep(file_plan(tmp_path, "a.txt", "first"), store.uri, host="http://a:9000")
    assert statuses(synced(outbox)) == [("a.txt", "landed")]
