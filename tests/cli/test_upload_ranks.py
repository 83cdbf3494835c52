"""``stagesink upload --rank``."""

from __future__ import annotations

from pathlib import Path

import pytest

from stagesink import list_committed, open_sink


@pytest.fixture
def shards(tmp_path):
    folders = [tmp_path / f"shard-{rank}" for rank in range(2)]
    for rank, folder in enumerate(folders):
        folder.mkdir()
        (folder / f"{rank}.bin").write_bytes(bytes([rank]) * 10)
    return folders


def test_shares_become_one_upload(run, shards):
    common = ("-s", "file:store", "-r", "run", "--to", "checkpoint", "--world-size", "2", "--session", "s")
    first = run("upload", shards[0], *common, "--rank", "0", "--json")
    assert (first.code, first.json["status"]) == (0, "uploaded")
    assert not Path("store/run/checkpoint.manifest.json").exists()
    assert run("ls", "-s", "file:store", "-r", "run", "--json").json["uploads"] == []
    assert run("upload", shards[1], *common, "--rank", "1").code == 0
    (manifest,) = list_committed(open_sink("file:store"), "run")
    assert [entry.path for entry in manifest.files] == ["0.bin", "1.bin"]


def test_a_rank_may_have_no_files(run, shards, tmp_path):
    (tmp_path / "empty").mkdir()
    common = ("-s", "file:store", "-r", "run", "--to", "checkpoint", "--world-size", "2", "--session", "s")
    assert run("upload", tmp_path / "empty", *common, "--rank", "0").code == 0
    assert run("upload", shards[1], *common, "--rank", "1", "--json").code == 0
    (manifest,) = list_committed(open_sink("file:store"), "run")
    assert [entry.path for entry in manifest.files] == ["1.bin"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--rank", "0"),
        ("--rank", "0", "--world-size", "2"),
        ("--rank", "2", "--world-size", "2", "--session", "s"),
        ("--rank", "0", "--world-size", "2", "--session", "s", "--pack", "tar.gz"),
    ],
)
def test_what_cannot_be_is_refused(run, shards, arguments):
    assert run("upload", shards[0], "-s", "file:store", "-r", "run", *arguments).code == 2
    assert not Path("store").exists()


def test_ranks_need_a_run_that_has_a_name(run, shards):
    answer = run("upload", shards[0], "-s", "file:store", "--rank", "0", "--world-size", "2", "--session", "s")
    assert answer.code == 2
    assert "--run-id" in answer.err
