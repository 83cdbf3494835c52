"""The demo from end to end, on real training, real processes and a real store."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="needs the extra demo")
pytest.importorskip("optuna", reason="needs the extra demo")
pytest.importorskip("skl2onnx", reason="needs the extra demo")
pytest.importorskip("onnxruntime", reason="needs the extra demo")

from rich.console import Console

from stagesink.errors import MissingExtra, RestoreError, VerificationError
from stagesink.pipeline import demo
from stagesink.pipeline.demo import DemoFailed, run_demo
from stagesink.pipeline.report import DemoReport, StageRun, Step, print_report, print_step
from stagesink.trackers import MLflowConversionTracker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def report(folder: Path) -> DemoReport:
    return run_demo(f"file:{folder / 'store'}", folder / "work", run_id="run", n_trials=2)


def test_every_stage_lands_what_the_stage_table_says(report: DemoReport) -> None:
    assert [(landed.stage, landed.path, landed.files) for landed in report.landed] == [
        ("hpo", "best_trial_checkpoint.tar.gz", 3),
        ("training", "checkpoint/", 3),
        ("training", "metrics.json", 1),
        ("conversion", "conversion_log.txt", 1),
        ("conversion", "onnx_model/model.onnx", 1),
        ("benchmark", "benchmark_results.json", 1),
    ]


def test_sizes_in_the_report_are_those_in_the_store(report: DemoReport, folder: Path) -> None:
    for landed in report.landed:
        path = folder / "store" / "run" / landed.path
        files = [path] if path.is_file() else list(path.iterdir())
        assert landed.size == sum(file.stat().st_size for file in files)


def test_what_is_restored_is_what_the_stages_made(report: DemoReport, folder: Path) -> None:
    restored, work = Path(report.restored), folder / "work"
    for back, made in {
        "checkpoint/model.joblib": "training/checkpoint/model.joblib",
        "checkpoint/training.log": "training/checkpoint/training.log",
        "metrics.json": "training/metrics.json",
        "onnx_model/model.onnx": "conversion/model.onnx",
        "conversion_log.txt": "conversion/conversion.log",
        "benchmark_results.json": "benchmark/benchmark.json",
    }.items():
        assert _sha256(restored / back) == _sha256(work / made)


def test_all_predictions_on_held_back_images_agree(report: DemoReport) -> None:
    assert report.predictions == 360


def test_the_report_is_plain_data(report: DemoReport) -> None:
    assert json.loads(json.dumps(dataclasses.asdict(report)))["runs"][0] == {
        "stage": "hpo",
        "run_id": "run",
        "url": None,
    }


def test_every_step_is_told_in_order(report: DemoReport) -> None:
    names = ["start", "hpo", "training", "conversion", "benchmark", "listed", "verified", "restored", "compared"]
    assert [step.name for step in report.steps] == names


def test_the_table_names_every_stage_artifact_and_proof(report: DemoReport) -> None:
    text = _printed(report)
    for landed in report.landed:
        assert landed.stage in text
        assert landed.path in text
        assert landed.proof in text
    assert "on all 360 held-back images" in text


def test_the_table_fits_a_terminal_of_80_columns(report: DemoReport) -> None:
    table, _, _ = _printed(report).partition("The restored")
    assert max(len(line) for line in table.splitlines()) <= 80
    assert table.count("sha256 ok") == len(report.landed)


def test_the_last_lines_can_be_copied_whole_from_a_narrow_terminal(report: DemoReport) -> None:
    awkward = dataclasses.replace(report, sink="file:/a folder/[red]" + "x" * 100)
    assert f"  stagesink ls --sink '{awkward.sink}' --run-id run\n" in _printed(awkward, width=40)


def test_a_step_is_printed_as_it_is_told() -> None:
    console = Console(file=io.StringIO(), width=80)
    print_step(Step("restored", "into /a/[b]/c", 0.25), console)
    assert "into /a/[b]/c  0.2 s" in _text(console)


def test_an_upload_that_fails_ends_the_demo(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the store's folder belongs")
    with pytest.raises(DemoFailed, match="hpo"):
        run_demo(f"file:{tmp_path / 'store'}", tmp_path / "work", run_id="run", n_trials=1)


def test_a_store_that_holds_other_bytes_ends_the_demo(report: DemoReport, folder: Path) -> None:
    from stagesink import list_committed, open_sink

    sink = open_sink(f"file:{folder / 'store'}")
    path = folder / "store" / "run" / "metrics.json"
    content = path.read_bytes()
    try:
        path.write_bytes(content.replace(b"0", b"1"))
        with pytest.raises(VerificationError, match=r"metrics\.json"):
            demo._verify(sink, list_committed(sink, "run"))
    finally:
        path.write_bytes(content)


def test_a_restored_model_that_predicts_otherwise_ends_the_demo(folder: Path, report: DemoReport) -> None:
    from stagesink.pipeline.conversion import convert

    tracker = MLflowConversionTracker("other", sink="memory:other")
    other = convert(folder / "work" / "hpo" / "trial-0" / "checkpoint", folder / "other", tracker)
    with pytest.raises(DemoFailed, match="of 360 held-back images"):
        demo._compare(folder / "work" / "training" / "checkpoint", other.onnx_path)


def test_a_missing_stage_ends_the_demo(report: DemoReport, folder: Path) -> None:
    from stagesink import open_sink

    with pytest.raises(DemoFailed, match="benchmark, conversion, hpo, training"):
        demo._list(open_sink(f"file:{folder / 'store'}"), [StageRun("hpo", "no-such-run", None)])


def test_a_work_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(RestoreError, match="not empty"):
        run_demo(f"file:{tmp_path / 'store'}", tmp_path)


def test_a_missing_extra_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PACKAGES", ("json", "no_such_package"))
    with pytest.raises(MissingExtra, match=r"no_such_package.*pip install 'stagesink\[demo\]'"):
        run_demo("memory:")


def test_importing_the_demo_needs_no_extra() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['numpy', 'sklearn', 'optuna', 'onnxruntime']));"
        "import stagesink.pipeline.demo, stagesink.pipeline.report"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _printed(report: DemoReport, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_report(report, console)
    return _text(console)


def _text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
