from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def uploaded(run, checkpoint):
    assert run("upload", checkpoint, "-r", "r1").code == 0
    assert run("upload", checkpoint, "-r", "r1", "--to", "hpo/best.tar.gz").code == 0


def _files(folder: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def test_everything_comes_back(run, uploaded, checkpoint):
    answer = run("restore", "--to", "back", "-r", "r1")
    assert answer.code == 0
    assert "4 files" in answer.out
    assert _files("back") == {
        "checkpoint/model.bin",
        "checkpoint/optimizer.bin",
        "checkpoint/sub/notes.txt",
        "hpo/best.tar.gz",
    }
    assert Path("back/checkpoint/model.bin").read_bytes() == (checkpoint / "model.bin").read_bytes()


def test_one_upload_comes_back(run, uploaded):
    document = run("restore", "checkpoint", "--to", "back", "-r", "r1", "--json").json
    assert {each["status"] for each in document["files"]} == {"restored"}
    assert document["size"] == 2005
    again = run("restore", "checkpoint", "--to", "back", "-r", "r1", "--json").json
    assert {each["status"] for each in again["files"]} == {"unchanged"}


def test_archives_are_unpacked_when_asked(run, uploaded):
    document = run("restore", "hpo", "--to", "back", "--unpack", "-r", "r1", "--json").json
    assert document["unpacked"] == {"back/hpo/best": ["model.bin", "optimizer.bin", "sub/notes.txt"]}
    assert _files("back/hpo/best") == {"model.bin", "optimizer.bin", "sub/notes.txt"}


@pytest.mark.parametrize("link", ["best", "parent"])
def test_no_archive_is_unpacked_through_a_link_out_of_the_target(run, uploaded, link):
    Path("outside").mkdir()
    Path("back/hpo").mkdir(parents=True)
    if link == "best":
        Path("back/hpo/best").symlink_to(Path("outside").absolute())
    else:
        Path("back/hpo").rmdir()
        Path("back/hpo").symlink_to(Path("outside").absolute())
    answer = run("restore", "--to", "back", "--unpack", "-r", "r1", "--json")
    assert answer.code == 1
    assert answer.json["error"]["type"] == "RestoreError"
    assert _files("outside") == set()
    assert _files("back") == set()  # refused before anything was fetched


def test_an_archive_is_unpacked_through_a_link_that_stays_inside(run, uploaded):
    Path("back/hpo").mkdir(parents=True)
    Path("back/elsewhere").mkdir()
    Path("back/hpo/best").symlink_to("../elsewhere")
    assert run("restore", "hpo", "--to", "back", "--unpack", "-r", "r1").code == 0
    assert _files("back/elsewhere") == {"model.bin", "optimizer.bin", "sub/notes.txt"}


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("checkpoint/model.bin", {"checkpoint/model.bin"}),
        ("checkpoint/sub", {"checkpoint/sub/notes.txt"}),
        ("checkpoint/sub/", {"checkpoint/sub/notes.txt"}),
    ],
)
def test_a_part_of_a_tree_comes_back_alone(run, uploaded, path, wanted):
    assert run("restore", path, "--to", "back", "-r", "r1").code == 0
    assert _files("back") == wanted


def test_an_empty_target_is_not_the_working_folder(run, uploaded):
    before = _files(".")
    answer = run("restore", "--to", "", "-r", "r1")
    assert answer.code == 2
    assert "the path is empty" in answer.err
    assert _files(".") == before


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--include", "*.bin"], {"checkpoint/model.bin", "checkpoint/optimizer.bin"}),
        (["--include", "checkpoint/sub/*"], {"checkpoint/sub/notes.txt"}),
        (["--include", "sub/notes.txt"], {"checkpoint/sub/notes.txt"}),
        (["--exclude", "checkpoint"], {"hpo/best.tar.gz"}),
        (["--exclude", "sub", "--exclude", "*.gz", "--exclude", "opt*"], {"checkpoint/model.bin"}),
    ],
)
def test_include_and_exclude_choose_files(run, uploaded, options, wanted):
    assert run("restore", "--to", "back", "-r", "r1", *options).code == 0
    assert _files("back") == wanted


def test_patterns_that_leave_nothing_are_not_found(run, uploaded):
    answer = run("restore", "--to", "back", "-r", "r1", "--include", "*.onnx")
    assert answer.code == 3
    assert not Path("back").exists()


def test_a_dry_run_shows_what_would_land_and_touches_nothing(run, uploaded):
    answer = run("restore", "--to", "back", "-r", "r1", "--exclude", "sub", "--dry-run")
    assert answer.code == 0
    assert "back/checkpoint/model.bin" in answer.out
    document = run("restore", "--to", "back", "-r", "r1", "--exclude", "sub", "--dry-run", "--json").json
    assert document["skipped"] == ["checkpoint/sub/notes.txt"]
    assert not Path("back").exists()


def test_altered_bytes_never_appear(run, uploaded):
    Path("artifacts/r1/checkpoint/model.bin").write_bytes(b"M" * 1500)
    answer = run("restore", "checkpoint", "--to", "back", "-r", "r1")
    assert answer.code == 1
    assert "checkpoint/model.bin" in answer.err
    assert _files("back") == {"checkpoint/optimizer.bin", "checkpoint/sub/notes.txt"}


def test_lost_objects_are_each_told_and_not_found(run, uploaded):
    Path("artifacts/r1/checkpoint/model.bin").unlink()
    Path("artifacts/r1/checkpoint/optimizer.bin").unlink()
    answer = run("restore", "checkpoint", "--to", "back", "-r", "r1")
    assert answer.code == 3
    lines = answer.err.splitlines()
    assert lines[0] == "error: 2 files were not restored:"
    assert [line.split(":")[0].strip() for line in lines[1:3]] == ["checkpoint/model.bin", "checkpoint/optimizer.bin"]


def test_a_file_where_the_folder_should_be(run, uploaded):
    Path("back").write_text("mine")
    answer = run("restore", "--to", "back", "-r", "r1")
    assert answer.code == 1
    assert Path("back").read_text() == "mine"


def test_a_target_is_needed(run, uploaded):
    assert run("restore", "-r", "r1").code == 2
