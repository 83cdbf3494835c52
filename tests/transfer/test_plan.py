"""What should land where, worked out before the first byte moves."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from parts import RUN, folder_of, manifest_in

from stagesink.archive import create_checkpoint_archive
from stagesink.artifacts import ArtifactKey
from stagesink.errors import (
    EmptyTree,
    IncompleteCheckpoint,
    InvalidKey,
    ManifestError,
    SourceError,
    SourceKindError,
    SourceNotFound,
    SourceUnreadable,
)
from stagesink.sinks.memory import MemorySink
from stagesink.transfer import Transfer, list_committed, plan_archive, plan_file, plan_packed_tree, plan_tree

FILES = {"a.bin": b"aaa", "sub/b.bin": b"bb", "trace.log": b"log"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "in", FILES)


# -- a file ------------------------------------------------------------------------------------------------------------


def test_a_file_lands_exactly_at_its_path_not_in_a_folder_of_that_name(folder: Path, memory: MemorySink) -> None:
    plan = plan_file(RUN, "metrics.json", folder / "a.bin")
    assert [item.key for item in plan.objects] == [ArtifactKey(RUN, "metrics.json")]
    assert (plan.size, plan.manifest_key.path) == (3, "metrics.json.manifest.json")
    Transfer(memory).run(plan)
    (manifest,) = list_committed(memory, RUN)
    assert (manifest.kind, [entry.path for entry in manifest.objects()]) == ("file", ["metrics.json"])


def test_a_file_in_a_folder_lands_there(folder: Path, memory: MemorySink) -> None:
    Transfer(memory).run(plan_file(RUN, "onnx_model/model.onnx", folder / "a.bin"))
    (manifest,) = list_committed(memory, RUN)
    assert [(f.path, f.sha256) for f in manifest.files] == [("model.onnx", hashlib.sha256(b"aaa").hexdigest())]


def test_a_file_that_is_not_there_is_refused_before_anything_moves(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="nothing"):
        plan_file(RUN, "x", tmp_path / "nothing")


def test_a_folder_where_a_file_belongs_is_refused_and_the_reverse(folder: Path) -> None:
    with pytest.raises(SourceKindError, match="folder where a file belongs"):
        plan_file(RUN, "x", folder)
    with pytest.raises(SourceKindError, match="file where a folder belongs"):
        plan_tree(RUN, "x", folder / "a.bin")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "a.bin/b"], ids=["too long", "NUL", "through a file"])
def test_a_path_no_file_can_have_is_a_typed_error(folder: Path, name: str) -> None:
    with pytest.raises(SourceError) as caught:
        plan_file(RUN, "x", folder / name)
    assert caught.value.hint


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceUnreadable, match="not a regular file"):
        plan_file(RUN, "x", tmp_path / "pipe")


@pytest.mark.parametrize("path", ["../x", "/x", "a\\b", "a\0b", "", "a//b", "x" * 300])
def test_a_path_that_no_backend_should_see_is_refused(folder: Path, path: str) -> None:
    for plan in (plan_file, plan_archive):
        with pytest.raises(InvalidKey):
            plan(RUN, path, folder / "a.bin")
    with pytest.raises(InvalidKey):
        plan_tree(RUN, path, folder)


# -- a tree ------------------------------------------------------------------------------------------------------------


def test_a_tree_lands_under_its_path_with_logs_and_all(folder: Path) -> None:
    plan = plan_tree(RUN, "checkpoint", folder)
    assert {item.key.path: item.size for item in plan.objects} == {
        f"checkpoint/{name}": len(data) for name, data in FILES.items()
    }
    assert plan.size == 8


def test_what_is_left_out_is_listed_in_the_manifest(folder: Path, memory: MemorySink) -> None:
    folder_of(folder, {"x.tmp": b"", "__pycache__/m.pyc": b"", "a.lock": b""})
    Transfer(memory).run(plan_tree(RUN, "tree", folder, exclude=["*.log"]))
    manifest = manifest_in(memory)
    assert manifest is not None
    assert [f.path for f in manifest.files] == ["a.bin", "sub/b.bin"]
    assert set(manifest.skipped) == {"x.tmp", "__pycache__/", "a.lock", "trace.log"}


def test_patterns_choose_and_exclude_wins(folder: Path) -> None:
    def chosen(**patterns: Any) -> list[str]:
        return [item.key.path.removeprefix("t/") for item in plan_tree(RUN, "t", folder, **patterns).objects]

    assert chosen(include=["*.bin"]) == ["a.bin", "sub/b.bin"]
    assert chosen(include=["*.bin"], exclude=["sub"]) == ["a.bin"]
    assert chosen(exclude=["sub/"]) == ["a.bin", "trace.log"]
    assert chosen(include=["sub/*"]) == ["sub/b.bin"]


def test_patterns_that_leave_nothing_are_an_error_that_says_so(folder: Path) -> None:
    with pytest.raises(EmptyTree, match="leave none of the 3 files"):
        plan_tree(RUN, "t", folder, include=["*.onnx"])


def test_an_empty_folder_and_one_that_says_it_is_incomplete_are_refused(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmptyTree):
        plan_tree(RUN, "t", tmp_path / "empty")
    (folder / "checkpoint-is-incomplete.txt").touch()
    with pytest.raises(IncompleteCheckpoint):
        plan_tree(RUN, "t", folder)
    with pytest.raises(IncompleteCheckpoint):
        plan_packed_tree(RUN, "t.tar.gz", folder, archive_format="tar.gz")


# -- an archive --------------------------------------------------------------------------------------------------------


def contents(memory: MemorySink, name: str) -> dict[str, tuple[int, str]]:
    manifest = manifest_in(memory, name)
    assert manifest is not None
    return {f.path: (f.size, f.sha256) for f in manifest.files}


EXPECTED = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in FILES.items()}


def test_an_archive_made_on_the_way_lists_what_it_holds(folder: Path, memory: MemorySink) -> None:
    plan = plan_packed_tree(RUN, "best.tar.gz", folder, archive_format="tar.gz", details={"trial_number": 7})
    assert plan.size is None
    Transfer(memory).run(plan)
    assert contents(memory, "best_manifest.json") == EXPECTED
    document = json.loads(memory.open(ArtifactKey(RUN, "best_manifest.json")).read())
    assert {name: document[name] for name in ("trial_number", "archive_format", "file_count", "total_size")} == {
        "trial_number": 7,
        "archive_format": "tar.gz",
        "file_count": 3,
        "total_size": 8,
    }
    (manifest,) = list_committed(memory, RUN)
    assert manifest.archive is not None
    stored = memory.open(ArtifactKey(RUN, "best.tar.gz")).read()
    assert (manifest.archive.size, manifest.archive.sha256) == (len(stored), hashlib.sha256(stored).hexdigest())


def test_an_archive_made_before_lists_what_its_maker_said(folder: Path, memory: MemorySink, tmp_path: Path) -> None:
    archive, manifest = create_checkpoint_archive(folder, 7, tmp_path / "best.tar.gz")
    Transfer(memory).run(plan_archive(RUN, "best.tar.gz", archive, manifest=manifest))
    assert contents(memory, "best_manifest.json") == EXPECTED
    (stored,) = list_committed(memory, RUN)
    assert stored.details["trial_number"] == 7


def test_the_makers_manifest_is_not_changed(folder: Path, tmp_path: Path) -> None:
    archive, manifest = create_checkpoint_archive(folder, 7, tmp_path / "best.tar.gz")
    before = json.dumps(manifest)
    plan_archive(RUN, "best.tar.gz", archive, manifest=manifest)
    assert json.dumps(manifest) == before


@pytest.mark.parametrize(
    "manifest", [None, {}, {"files": ["a", "b"]}, {"files": [{"path": "a"}]}, {"files": None, "skipped": None}]
)
def test_an_older_manifest_without_digests_serves_too(
    folder: Path, memory: MemorySink, manifest: dict[str, Any] | None
) -> None:
    Transfer(memory).run(plan_archive(RUN, "best.tar.gz", folder / "a.bin", manifest=manifest))
    (stored,) = list_committed(memory, RUN)
    assert stored.files == ()


def test_a_manifest_of_another_run_does_not_say_where_this_one_lies(
    folder: Path, memory: MemorySink, tmp_path: Path
) -> None:
    Transfer(memory).run(plan_packed_tree("other", "old.tar.gz", folder, archive_format="tar.gz"))
    (old,) = list_committed(memory, "other")
    archive = tmp_path / "old.tar.gz"
    archive.write_bytes(memory.open(ArtifactKey("other", "old.tar.gz")).read())
    Transfer(memory).run(plan_archive(RUN, "best.tar.gz", archive, manifest=old.to_dict()))
    (stored,) = list_committed(memory, RUN)
    assert (stored.run_id, stored.path, stored.files) == (RUN, "best.tar.gz", old.files)


@pytest.mark.parametrize(
    "manifest",
    [
        {"files": [{"path": "../x", "size": 1, "sha256": "00" * 32}]},
        {"files": [{"path": "a", "size": -1, "sha256": "00" * 32}]},
        {"files": [{"path": "a", "size": 1, "sha256": "short"}]},
        {"files": [{"path": "a", "sha256": "00" * 32}]},
        {"files": [{"path": "a", "size": 1, "sha256": "00" * 32}] * 2},
        {"files": 5},
        {"skipped": 5},
        {"skipped": [5]},
        {"score": object()},
        {"score": {1, 2}},
        {"note": "\ud800"},
    ],
)
def test_a_manifest_that_could_not_be_read_back_is_refused_before_anything_moves(
    folder: Path, manifest: dict[str, Any]
) -> None:
    with pytest.raises(ManifestError) as caught:
        plan_archive(RUN, "best.tar.gz", folder / "a.bin", manifest=manifest)
    assert caught.value.hint
