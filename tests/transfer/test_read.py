"""What is whole in a store, and what only looks like it."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from parts import QUICK, RUN, Recording, everything, plan

from stagesink.artifacts import ArtifactKey, MemorySource
from stagesink.errors import ManifestError, SinkAuthError, TransferCancelled, TransientSinkError
from stagesink.manifest import MAX_MANIFEST_BYTES
from stagesink.sinks.local import LocalSink
from stagesink.sinks.memory import MemorySink
from stagesink.testing import FaultySink, GeneratedSource, fails
from stagesink.transfer import Transfer, list_committed, read
from stagesink.transfer.read import hash_object, list_objects, read_manifest

FILES = {"a.bin": b"aaa", "b.bin": b"bb"}
BUSY = TransientSinkError("503")


def put(sink: MemorySink, path: str, data: bytes) -> None:
    sink.put(ArtifactKey(RUN, path), MemorySource(data))


def test_everything_whole_is_listed_by_path(memory: MemorySink) -> None:
    for path in ("z", "a", "m/n"):
        Transfer(memory).run(plan(FILES, path))
    assert [manifest.path for manifest in list_committed(memory, RUN)] == ["a", "m/n", "z"]


def test_a_run_that_holds_nothing_has_nothing_whole(memory: MemorySink, tmp_path: Path) -> None:
    assert list_committed(memory, RUN) == ()
    assert list_committed(LocalSink(tmp_path / "none"), RUN) == ()


def test_other_runs_are_not_listed(memory: MemorySink) -> None:
    Transfer(memory).run(plan(FILES, run_id="another"))
    assert list_committed(memory, RUN) == ()


def test_a_tree_without_its_manifest_is_not_there(memory: MemorySink) -> None:
    Transfer(memory).run(plan(FILES))
    memory.delete(ArtifactKey(RUN, "tree.manifest.json"))
    assert list_committed(memory, RUN) == ()


@pytest.mark.parametrize("name", ["app.manifest.json", "tree/app.manifest.json", "web_manifest.json", ".manifest.json"])
@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"manifest_version": 3}', b"[" * 100_000])
def test_files_that_only_look_like_manifests_are_passed_over(memory: MemorySink, name: str, data: bytes) -> None:
    Transfer(memory).run(plan(FILES))
    put(memory, name, data)
    assert [manifest.path for manifest in list_committed(memory, RUN)] == ["tree"]


@pytest.mark.parametrize("changes", [{"path": ".."}, {"path": "x" * 250}, {"run_id": "a/b"}, {"run_id": ""}])
def test_one_manifest_made_to_do_harm_does_not_hide_the_others(memory: MemorySink, changes: dict[str, str]) -> None:
    Transfer(memory).run(plan(FILES))
    good = json.loads(everything(memory)["tree.manifest.json"])
    harm = {**good, "files": [], "file_count": 0, "total_size": 0, **changes}
    put(memory, "harm.manifest.json", json.dumps(harm).encode())
    assert [manifest.path for manifest in list_committed(memory, RUN)] == ["tree"]


@pytest.mark.parametrize("where", [(RUN, "moved.manifest.json"), ("another", "tree.manifest.json")])
def test_a_manifest_moved_elsewhere_is_not_accepted(memory: MemorySink, where: tuple[str, str]) -> None:
    Transfer(memory).run(plan(FILES))
    moved = ArtifactKey(*where)
    memory.put(moved, MemorySource(everything(memory)["tree.manifest.json"]))
    with pytest.raises(ManifestError, match="describes run/tree"):
        read_manifest(memory, moved)
    assert len(list_committed(memory, where[0])) == (1 if where[0] == RUN else 0)


def test_something_far_too_large_is_not_read_to_its_end(memory: MemorySink, monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(Recording):
        def open(self, key: ArtifactKey) -> Any:
            return GeneratedSource(MAX_MANIFEST_BYTES * 1000).open()

    monkeypatch.setattr(read, "MAX_MANIFEST_BYTES", 1 << 20)
    with pytest.raises(ManifestError, match="larger than any manifest"):
        read_manifest(Endless(memory), ArtifactKey(RUN, "tree.manifest.json"))


def test_a_manifest_that_goes_while_the_run_is_listed_is_not_there(memory: MemorySink) -> None:
    class Going(Recording):
        def open(self, key: ArtifactKey) -> Any:
            self.inner.delete(key)
            return super().open(key)

    Transfer(memory).run(plan(FILES))
    assert list_committed(Going(memory), RUN) == ()


@pytest.mark.parametrize("operation", ["list", "open"])
def test_a_store_that_is_busy_is_asked_again(memory: MemorySink, operation: Any) -> None:
    Transfer(memory).run(plan(FILES))
    assert len(list_committed(FaultySink(memory, fails(operation, BUSY, first=2)), RUN, QUICK)) == 1


def test_a_listing_cut_off_in_the_middle_lists_nothing_twice(memory: MemorySink) -> None:
    class CutOff(Recording):
        def list(self, run_id: str, prefix: str = "") -> Any:
            found = list(super().list(run_id, prefix))
            yield found[-1]  # the manifest, put last
            if len(self.asked("list")) == 1:
                raise BUSY
            yield from found[:-1]

    Transfer(memory).run(plan(FILES))
    assert [manifest.path for manifest in list_committed(CutOff(memory), RUN, QUICK)] == ["tree"]


@pytest.mark.parametrize("operation", ["list", "open"])
def test_a_store_that_does_not_let_us_is_an_error_not_an_empty_list(memory: MemorySink, operation: Any) -> None:
    Transfer(memory).run(plan(FILES))
    with pytest.raises(SinkAuthError):
        list_committed(FaultySink(memory, fails(operation, SinkAuthError("no"))), RUN, QUICK)


def test_all_objects_are_listed_by_path(memory: MemorySink) -> None:
    Transfer(memory).run(plan(FILES))
    put(memory, "junk", b"12345")
    put(memory, "tree2", b"")
    assert [(item.key.path, item.size) for item in list_objects(memory, RUN)][:2] == [
        ("junk", 5),
        ("tree.manifest.json", len(everything(memory)["tree.manifest.json"])),
    ]
    assert [item.key.path for item in list_objects(memory, RUN, "tree")] == ["tree/a.bin", "tree/b.bin"]


def test_listing_objects_starts_anew_when_the_store_is_busy(memory: MemorySink) -> None:
    class CutOff(Recording):
        def list(self, run_id: str, prefix: str = "") -> Any:
            yield from super().list(run_id, prefix)
            if len(self.asked("list")) == 1:
                raise BUSY

    put(memory, "a", b"")
    put(memory, "b", b"")
    assert [item.key.path for item in list_objects(CutOff(memory), RUN, options=QUICK)] == ["a", "b"]


def test_reading_an_object_stops_when_it_should(memory: MemorySink) -> None:
    put(memory, "x", b"xxx")
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(TransferCancelled):
        hash_object(memory, ArtifactKey(RUN, "x"), cancel, lambda: None)
