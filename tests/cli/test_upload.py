from __future__ import annotations

from pathlib import Path

import pytest


def _stored(root: str = "artifacts") -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in Path(root).rglob("*") if p.is_file()}


def test_a_folder_lands_as_a_tree_named_like_it(run, checkpoint):
    answer = run("upload", checkpoint, "-r", "r1")
    assert answer.code == 0, answer.err
    assert set(_stored()) == {
        "r1/checkpoint/model.bin",
        "r1/checkpoint/optimizer.bin",
        "r1/checkpoint/sub/notes.txt",
        "r1/checkpoint.manifest.json",
    }
    assert "checkpoint" in answer.out
    assert "r1" in answer.out
    assert "Skipped: train.lock" in answer.err


def test_a_file_lands_as_a_file(run, tmp_path):
    Path("metrics.json").write_text("{}")
    assert run("upload", "metrics.json", "-r", "r1").code == 0
    assert run("upload", "metrics.json", "-r", "r1", "--to", "eval/m.json").code == 0
    assert _stored()["r1/metrics.json"] == _stored()["r1/eval/m.json"] == b"{}"


def test_the_working_folder_has_a_name_too(run, checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint)
    assert run("upload", ".", "-r", "r1", "-s", "../../store").code == 0
    assert "r1/checkpoint/model.bin" in _stored("../../store")


def test_an_empty_path_is_not_the_working_folder(run, checkpoint):
    answer = run("upload", "", "-r", "r1")
    assert answer.code == 2
    assert "the path is empty" in answer.err
    document = run("upload", "", "-r", "r1", "--json").json
    assert "the path is empty" in document["error"]["message"]
    assert not Path("artifacts").exists()


def test_json_tells_every_receipt_in_bytes(run, checkpoint):
    document = run("upload", checkpoint, "-r", "r1", "--json").json
    assert (document["status"], document["size"], document["kind"]) == ("uploaded", 2005, "tree")
    assert {r["path"]: r["size"] for r in document["receipts"]}["checkpoint/model.bin"] == 1500
    assert all(len(r["sha256"]) == 64 and r["verified_by"] == "size" for r in document["receipts"])
    assert document["skipped"] == ["train.lock"]


def test_what_is_there_already_is_not_sent_again(run, checkpoint):
    run("upload", checkpoint, "-r", "r1")
    assert run("upload", checkpoint, "-r", "r1", "--json").json["status"] == "unchanged"
    assert "nothing, unchanged" in run("upload", checkpoint, "-r", "r1").out


def test_include_and_exclude_choose_files_and_the_rest_is_listed(run, checkpoint):
    document = run(
        "upload", checkpoint, "-r", "r1", "--include", "*.bin", "--include", "sub", "--exclude", "optim*", "--json"
    ).json
    assert [r["path"] for r in document["receipts"]] == ["checkpoint/model.bin", "checkpoint/sub/notes.txt"]
    assert document["skipped"] == ["optimizer.bin", "train.lock"]


def test_patterns_that_leave_nothing_are_an_error(run, checkpoint):
    answer = run("upload", checkpoint, "-r", "r1", "--include", "*.onnx")
    assert answer.code == 1
    assert "leave none of the 3 files" in answer.err
    assert not Path("artifacts").exists()


def test_patterns_for_a_file_are_a_usage_error(run, checkpoint):
    assert run("upload", checkpoint / "model.bin", "--exclude", "x").code == 2


@pytest.mark.parametrize(
    ("options", "lands"),
    [
        (["--pack", "tar.gz"], "checkpoint.tar.gz"),
        (["--pack", "tar.gz", "--to", "best"], "best.tar.gz"),
        (["--to", "best.tar.gz"], "best.tar.gz"),
        (["--pack", "tar.gz", "--to", "best.tar.gz"], "best.tar.gz"),
        (["--to", "best.tgz"], "best.tgz"),
        (["--pack", "tar.gz", "--to", "best.tgz/"], "best.tgz"),
        (["--to", "BEST.TAR.GZ"], "BEST.TAR.GZ"),
    ],
)
def test_a_folder_can_land_as_an_archive(run, checkpoint, options, lands):
    document = run("upload", checkpoint, "-r", "r1", "--json", *options).json
    assert (document["path"], document["kind"]) == (lands, "archive")
    assert _stored()[f"r1/{lands}"][:2] == b"\x1f\x8b"


def test_the_configured_pack_holds_unless_the_option_says_otherwise(run, checkpoint):
    Path("config").mkdir()
    Path("config/mlflow.yaml").write_text("artifacts: {pack: tar.gz}")
    assert run("upload", checkpoint, "-r", "r1", "--json").json["path"] == "checkpoint.tar.gz"
    assert run("upload", checkpoint, "-r", "r1", "--pack", "none", "--json").json["path"] == "checkpoint"


def test_two_formats_at_once_are_a_usage_error(run, checkpoint):
    for pack, to in (("tar.gz", "best.tar.zst"), ("tar.zst", "best.tgz")):
        answer = run("upload", checkpoint, "--pack", pack, "--to", to)
        assert answer.code == 2
        assert "two formats" in answer.err


def test_a_file_cannot_be_packed(run, checkpoint):
    answer = run("upload", checkpoint / "model.bin", "--pack", "tar.gz")
    assert answer.code == 2
    assert "is a file where a folder belongs" in answer.err


def test_a_made_up_run_is_said_on_stderr_and_in_the_answer(run, checkpoint):
    document = run("upload", checkpoint, "--json").json
    assert f"{document['run_id']}/checkpoint.manifest.json" in _stored()


# -- dry run ---------------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_what_would_land_and_touches_nothing(run, checkpoint):
    answer = run("upload", checkpoint, "--dry-run", "--exclude", "sub")
    assert answer.code == 0
    assert "checkpoint/model.bin" in answer.out
    assert "1.5 kB" in answer.out
    assert "sub/notes.txt" in answer.out
    assert "skipped" in answer.out
    assert "file:./artifacts" in answer.out
    assert not Path("artifacts").exists()
    assert answer.err == ""


def test_a_dry_run_needs_no_backend(run, checkpoint):
    document = run("upload", checkpoint, "--dry-run", "-s", "s3://no-such-bucket/x", "-r", "r1", "--json").json
    assert (document["sink"], document["run_id"], document["size"]) == ("s3://no-such-bucket/x", "r1", 2005)
    assert document["skipped"] == ["train.lock"]


def test_a_dry_run_shows_no_password(run, checkpoint):
    answer = run("upload", checkpoint, "--dry-run", "-s", "sftp://me:hunter2@host/x")
    assert "hunter2" not in answer.out + answer.err


def test_a_dry_run_of_an_archive_shows_the_files_in_it(run, checkpoint):
    document = run("upload", checkpoint, "--dry-run", "--pack", "tar.gz", "--json").json
    assert (document["path"], document["run_id"]) == ("checkpoint.tar.gz", None)
    assert [file["path"] for file in document["files"]] == ["model.bin", "optimizer.bin", "sub/notes.txt"]


# -- switches --------------------------------------------------------------------------------------------------------


def test_a_switched_off_slot_is_not_uploaded_and_says_why(run, checkpoint):
    Path("config").mkdir()
    Path("config/mlflow.yaml").write_text("tracking: {training: {log_checkpoint: false}}")
    answer = run("upload", checkpoint, "--stage", "training", "-r", "r1")
    assert answer.code == 0
    assert "tracking.training.log_checkpoint" in answer.out
    assert not Path("artifacts").exists()
    dry = run("upload", checkpoint, "--stage", "training", "-r", "r1", "--dry-run")
    assert "would NOT be uploaded" in dry.out


def test_the_general_switch_is_honoured(run, checkpoint, monkeypatch):
    monkeypatch.setenv("MLFLOW_SKIP_ARTIFACT_LOGGING", "true")
    document = run("upload", checkpoint, "-r", "r1", "--json").json
    assert document["status"] == "skipped"
    assert "MLFLOW_SKIP_ARTIFACT_LOGGING" in document["reason"]
    assert not Path("artifacts").exists()


# -- bad input -------------------------------------------------------------------------------------------------------


def test_a_path_that_does_not_exist_is_said_before_anything_else(run):
    answer = run("upload", "nope")
    assert (answer.code, answer.out) == (3, "")
    assert answer.err == "error: nope does not exist. Check the path.\n"


def test_an_empty_folder(run, tmp_path):
    Path("empty").mkdir()
    answer = run("upload", "empty")
    assert answer.code == 1
    assert "holds no file" in answer.err


def test_an_incomplete_checkpoint(run, checkpoint):
    (checkpoint / "checkpoint-is-incomplete.txt").touch()
    answer = run("upload", checkpoint)
    assert answer.code == 1
    assert "incomplete" in answer.err


@pytest.mark.parametrize("to", ["../up", "/abs", "a//b", "a\\b", "a/./b", "x" * 300])
def test_an_artifact_path_that_no_backend_should_see(run, checkpoint, to):
    answer = run("upload", checkpoint / "model.bin", "--to", to, "-r", "r1")
    assert answer.code == 2
    assert answer.err.startswith("error: ")
    assert not Path("artifacts").exists()


def test_a_run_id_that_would_leave_the_store(run, checkpoint):
    answer = run("upload", checkpoint, "-r", "../elsewhere")
    assert answer.code == 2
    assert "Run id" in answer.err


def test_a_stage_that_is_not_known(run, checkpoint):
    answer = run("upload", checkpoint, "--stage", "trainnig")
    assert answer.code == 2
    assert "training" in answer.err


def test_a_scheme_that_nobody_serves(run, checkpoint):
    answer = run("upload", checkpoint, "-s", "fille:x", "-r", "r1")
    assert answer.code == 2
    assert "Did you mean 'file'?" in answer.err


def test_a_file_where_the_store_should_be(run, checkpoint):
    Path("store").write_text("a file")
    answer = run("upload", checkpoint, "-s", "file:store", "-r", "r1")
    assert answer.code == 5
    assert "store" in answer.err
    assert Path("store").read_text() == "a file"


def test_a_store_that_does_not_let_us(run, checkpoint, monkeypatch):
    monkeypatch.setenv("STAGESINK_OUTBOX_ENABLED", "false")
    answer = run("upload", checkpoint, "-s", "file:/sys/stagesink", "-r", "r1")
    assert answer.code == 4
    assert "Traceback" not in answer.err


def test_every_failed_object_has_a_line(run, checkpoint):
    for name in ("model.bin", "optimizer.bin"):
        Path("artifacts/r1/checkpoint", name).mkdir(parents=True)
        Path("artifacts/r1/checkpoint", name, "in-the-way").touch()
    answer = run("upload", checkpoint, "-r", "r1")
    assert answer.code == 5
    lines = answer.err.splitlines()
    assert lines[0].startswith("error: checkpoint is kept in ")
    assert lines[0].endswith(": 2 of 3 objects failed:")
    assert [line.split(":")[0] for line in lines[1:3]] == ["  checkpoint/model.bin", "  checkpoint/optimizer.bin"]
    document = run("upload", checkpoint, "-r", "r1", "--json").json
    assert set(document["error"]["cause"]["failures"]) == {"checkpoint/model.bin", "checkpoint/optimizer.bin"}


@pytest.mark.parametrize("workers", ["0", "65", "many"])
def test_a_number_of_workers_that_makes_no_sense(run, checkpoint, workers):
    assert run("upload", checkpoint, "-j", workers).code == 2


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_what_is_kept_offline_is_not_called_switched_off(run, checkpoint, monkeypatch, form):
    monkeypatch.setenv("STAGESINK_MODE", "offline")
    answer = run("upload", checkpoint, "-r", "r1", *form)
    assert answer.code == 5
    said = str(answer.json["error"]) if form else answer.err
    assert "checkpoint is kept in" in said
    assert "`stagesink sync` uploads it" in said
    assert not Path("artifacts").exists()
    monkeypatch.delenv("STAGESINK_MODE")
    assert run("sync").code == 0
    assert "r1/checkpoint.manifest.json" in _stored()


def test_a_command_waits_for_its_upload_whatever_is_configured(run, checkpoint, monkeypatch):
    monkeypatch.setenv("STAGESINK_BACKGROUND", "true")
    assert run("upload", checkpoint, "-r", "r1", "--json").json["status"] == "uploaded"
    assert "r1/checkpoint.manifest.json" in _stored()
    Path("full").write_text("a file")
    assert run("upload", checkpoint, "-r", "r1", "-s", "file:full").code == 5


def test_a_path_that_no_file_system_takes_is_one_sentence(run):
    answer = run("upload", "a" * 300, "-r", "r1")
    assert answer.code == 1
    assert "File name too long" in answer.err
