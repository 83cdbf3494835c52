from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("optuna")
pytest.importorskip("skl2onnx")


@pytest.mark.once
def test_the_demo_lands_where_it_says_and_cleans_up_after_itself(run, tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    answer = run("demo", "--trials", "1", "--json", "-r", "demo1")
    assert answer.code == 0, answer.err
    document = answer.json
    assert {each["stage"] for each in document["landed"]} == {"hpo", "training", "conversion", "benchmark"}
    assert document["workdir"] == ""
    assert Path("demo/artifacts/demo1/checkpoint.manifest.json").is_file()
    assert run("verify", "-r", "demo1", "-s", document["sink"]).code == 0
    assert list(temporary.glob("stagesink-demo-*")) == []


def test_a_work_folder_that_is_in_use_is_refused(run):
    Path("mine").mkdir()
    Path("mine/file").touch()
    answer = run("demo", "--workdir", "mine")
    assert answer.code == 1
    assert "not empty" in answer.err
    assert [path.name for path in Path("mine").iterdir()] == ["file"]
