"""The facade: policy in, booleans out."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import re
import sys
import tarfile
import textwrap
import threading
import traceback
import types
import uuid
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from outside import files_in, python

from stagesink import create_checkpoint_archive, list_committed, open_sink, upload_metrics, verify
from stagesink.artifacts import NOTES_FOLDER, ArtifactKey, MemorySource, Source, StoredArtifact, lies_under
from stagesink.config import load
from stagesink.errors import (
    ArchiveError,
    ConfigError,
    EmptyTree,
    InvalidKey,
    MissingExtra,
    RunNotFound,
    SinkError,
    SourceNotFound,
    StagesinkError,
    TransferError,
    TransientSinkError,
)
from stagesink.sinks.memory import MemorySink
from stagesink.sinks.protocol import OnBytes
from stagesink.testing import FaultySink, fails, loses_object
from stagesink.transfer import Progress, plan_file
from stagesink.uploader import ArtifactUploader

Configure = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _fast_and_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # neither our own ./config nor our own git commit
    monkeypatch.setenv("STAGESINK_RETRIES_INITIAL", "0")


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink(uuid.uuid4().hex)


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    """Write ``mlflow.yaml`` and return its folder."""

    def configure(text: str) -> Path:
        folder = tmp_path / "conf"
        folder.mkdir(exist_ok=True)
        (folder / "mlflow.yaml").write_text(textwrap.dedent(text))
        return folder

    return configure


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "out" / "checkpoint"
    (folder / "shards").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "shards" / "0.bin").write_bytes(os.urandom(5000))
    return folder


@pytest.fixture
def metrics_json(tmp_path: Path) -> Path:
    file = tmp_path / "out-metrics.json"
    file.write_text('{"accuracy": 0.9}')
    return file


def objects(sink: MemorySink, run_id: str = "run") -> dict[str, bytes]:
    return {stored.key.path: sink.open(stored.key).read() for stored in sink.list(run_id)}


def landed(sink: MemorySink, run_id: str = "run") -> set[str]:
    """The paths that are there, manifests left out."""
    return {path for path in objects(sink, run_id) if not path.endswith("manifest.json")}


# -- what it is made of ------------------------------------------------------------------------------------------------


def test_making_one_reads_nothing_and_opens_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "conf"
    broken.mkdir()
    (broken / "mlflow.yaml").write_text("artifacts: [")
    uploader = ArtifactUploader("run", "training", broken, sink="no-such-scheme:x")
    assert (uploader.stage, uploader.config_dir) == ("training", broken)
    assert (uploader.receipts, uploader.errors, uploader.metrics) == ([], [], {})
    uploader.close()


def test_the_configuration_is_read_once_at_the_first_upload(
    sink: MemorySink, checkpoint: Path, metrics_json: Path, configure: Configure
) -> None:
    uploader = ArtifactUploader("run", "training", configure("tracking: {training: {log_checkpoint: true}}"), sink=sink)
    folder = configure("tracking: {training: {log_checkpoint: false}}")  # changed before the first upload: counts
    assert uploader.upload_checkpoint(checkpoint) is False
    (folder / "mlflow.yaml").write_text("artifacts: [")  # changed after it: does not
    assert uploader.upload_checkpoint(checkpoint) is False
    assert uploader.upload_file(metrics_json, "metrics.json") is True
    assert landed(sink) == {"metrics.json"}


def test_a_missing_configuration_means_defaults(sink: MemorySink, metrics_json: Path, tmp_path: Path) -> None:
    uploader = ArtifactUploader("run", "training", tmp_path / "no such folder", sink=sink)
    assert uploader.upload_file(metrics_json) is True


def test_arguments_are_above_environment_and_file(
    sink: MemorySink, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = configure("artifacts: {workers: 2, verify: size, progress: lines}")
    assert ArtifactUploader(config_dir=folder).options.workers == 2
    monkeypatch.setenv("STAGESINK_WORKERS", "3")
    assert ArtifactUploader(config_dir=folder).options.workers == 3
    options = ArtifactUploader(config_dir=folder, workers=4, verify="full", attempts=2, initial=0.5).options
    assert (options.workers, options.verify, options.attempts, options.initial) == (4, "full", 2, 0.5)


def test_the_retries_of_the_configuration_are_those_of_the_engine(configure: Configure) -> None:
    folder = configure("artifacts: {retries: {attempts: 7, initial: 0.25, max_wait: 3, budget: 11}}")
    os.environ.pop("STAGESINK_RETRIES_INITIAL")
    options = ArtifactUploader(config_dir=folder).options
    assert (options.attempts, options.initial, options.max_wait, options.budget) == (7, 0.25, 3.0, 11.0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"workers": 0}, "argument workers: expected a whole number from 1 to 64, got 0"),
        ({"verify": "ful"}, "argument verify: expected one of auto, full, size, none, got 'ful'; did you mean 'full'?"),
        ({"on_failure": "explode"}, "argument on_failure: expected one of keep, warn, raise"),
        ({"progress": "bars"}, "did you mean 'bar'?"),
        ({"attempts": 0}, "argument retries.attempts: expected a whole number, 1 or more, got 0"),
        ({"sink": ""}, "The sink is empty."),
    ],
)
def test_an_argument_that_makes_no_sense_is_said_and_not_ignored(
    metrics_json: Path, arguments: dict[str, Any], sentence: str
) -> None:
    uploader = ArtifactUploader("run", **{"sink": "memory:", **arguments})
    assert uploader.upload_file(metrics_json) is False
    (error,) = uploader.errors
    assert isinstance(error, ConfigError)
    assert sentence in str(error)


# -- each method -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_lands_as_a_tree(sink: MemorySink, checkpoint: Path) -> None:
    with ArtifactUploader("run", "training", sink=sink) as uploader:
        assert uploader.upload_checkpoint(checkpoint) is True
    there = objects(sink)
    assert {f"checkpoint/{path}": data for path, data in files_in(checkpoint).items()}.items() <= there.items()
    manifest = json.loads(there["checkpoint.manifest.json"])
    assert manifest["provenance"]["stage"] == "training"
    assert len(there) == 3


def test_a_checkpoint_lands_where_it_is_told_to(sink: MemorySink, checkpoint: Path) -> None:
    assert ArtifactUploader("run", sink=sink).upload_checkpoint(checkpoint, "models/best") is True
    assert landed(sink) == {"models/best/config.json", "models/best/shards/0.bin"}


@pytest.mark.parametrize("pack", ["tar.gz", "tar.zst"])
def test_a_checkpoint_is_packed_when_the_configuration_says_so(
    sink: MemorySink, checkpoint: Path, configure: Configure, tmp_path: Path, pack: str
) -> None:
    if pack == "tar.zst":
        pytest.importorskip("zstandard", reason="comes with the extra `fast`")
    uploader = ArtifactUploader("run", "training", configure(f"artifacts: {{pack: {pack}}}"), sink=sink)
    assert uploader.upload_checkpoint(checkpoint) is True
    there = objects(sink)
    beside = "checkpoint_manifest.json" if pack == "tar.gz" else f"checkpoint.{pack}.manifest.json"
    assert set(there) == {f"checkpoint.{pack}", beside}
    if pack == "tar.gz":
        (tmp_path / "packed").write_bytes(there["checkpoint.tar.gz"])
        with tarfile.open(tmp_path / "packed") as archive:
            (member,) = [m for m in archive if m.name.endswith("0.bin")]
            stream = archive.extractfile(member)
            assert stream is not None
            assert stream.read() == (checkpoint / "shards/0.bin").read_bytes()


def test_packing_obeys_the_slots_switch(sink: MemorySink, checkpoint: Path, configure: Configure) -> None:
    folder = configure("{artifacts: {pack: tar.gz}, tracking: {training: {log_checkpoint: false}}}")
    assert ArtifactUploader("run", "training", folder, sink=sink).upload_checkpoint(checkpoint) is False
    assert objects(sink) == {}


@pytest.mark.parametrize(
    ("destination", "expected"),
    [("metrics.json", "metrics.json"), (None, "out-metrics.json"), ("a/b.json", "a/b.json")],
)
def test_a_file_lands_exactly_where_it_is_told_to(
    sink: MemorySink, metrics_json: Path, destination: str | None, expected: str
) -> None:
    """Not at ``metrics.json/metrics.json``, as MLflow's ``log_artifact`` would have it."""
    assert ArtifactUploader("run", sink=sink).upload_file(metrics_json, destination) is True
    assert landed(sink) == {expected}
    assert objects(sink)[expected] == metrics_json.read_bytes()


@pytest.mark.parametrize("given", [str, Path, os.fspath, lambda path: os.path.relpath(path)])
def test_every_kind_of_path_is_taken(sink: MemorySink, checkpoint: Path, given: Callable[[Path], Any]) -> None:
    uploader = ArtifactUploader("run", sink=sink)
    assert uploader.upload_checkpoint(given(checkpoint)) is True
    assert uploader.upload_file(given(checkpoint / "config.json")) is True
    assert landed(sink) == {"checkpoint/config.json", "checkpoint/shards/0.bin", "config.json"}


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("plots", {"plots/config.json", "plots/shards/0.bin", "plots.manifest.json"}),
        ("a/plots", {"a/plots/config.json", "a/plots/shards/0.bin", "a/plots.manifest.json"}),
        (None, {"config.json", "config.json.manifest.json", "shards/0.bin", "shards.manifest.json"}),
    ],
)
def test_what_a_folder_holds_is_added_to_a_folder_of_the_run(
    sink: MemorySink, checkpoint: Path, folder: str | None, expected: set[str]
) -> None:
    uploader = ArtifactUploader("run", sink=sink)
    assert uploader.add_files(checkpoint, folder) is True
    assert set(objects(sink)) == expected
    assert {check.status for check in verify(sink, list_committed(sink, "run"))} == {"ok"}


@pytest.mark.parametrize(("folder", "expected"), [(None, "out-metrics.json"), ("a/b", "a/b/out-metrics.json")])
def test_a_file_is_added_to_a_folder_of_the_run(
    sink: MemorySink, metrics_json: Path, folder: str | None, expected: str
) -> None:
    assert ArtifactUploader("run", sink=sink).add_files(metrics_json, folder) is True
    assert landed(sink) == {expected}


@pytest.mark.parametrize("folder", [None, "plots"])
def test_what_was_added_before_stays(sink: MemorySink, tmp_path: Path, folder: str | None) -> None:
    uploader = ArtifactUploader("run", sink=sink)
    for name in ("first", "second"):
        (tmp_path / name / "shared").mkdir(parents=True)
        (tmp_path / name / f"{name}.txt").write_text(name)
        (tmp_path / name / "shared" / f"{name}.txt").write_text(name)
        assert uploader.add_files(tmp_path / name, folder) is True
    prefix = f"{folder}/" if folder else ""
    assert landed(sink) == {f"{prefix}{path}.txt" for path in ("first", "second", "shared/first", "shared/second")}
    manifests = list_committed(sink, "run")
    assert {entry.path for manifest in manifests for entry in manifest.objects()} == landed(sink)


def test_a_folder_at_the_root_obeys_the_switches_of_what_is_in_it(
    sink: MemorySink, checkpoint: Path, configure: Configure
) -> None:
    (checkpoint.parent / "metrics.json").write_text("{}")
    folder = configure("tracking: {training: {log_checkpoint: false}}")
    uploader = ArtifactUploader("run", "training", folder, sink=sink)
    assert uploader.add_files(checkpoint.parent) is False  # not all of it landed
    assert landed(sink) == {"metrics.json"}
    assert [(receipt.key.path, receipt.status) for receipt in uploader.receipts] == [
        ("checkpoint", "skipped"),
        ("metrics.json", "uploaded"),
    ]


def test_what_cannot_land_at_the_root_does_not_stop_the_rest_of_the_folder(sink: MemorySink, checkpoint: Path) -> None:
    blocked = ArtifactKey("run", "config.json.manifest.json")
    ArtifactUploader("run", sink=sink).upload_file(checkpoint / "config.json", blocked.path)
    uploader = ArtifactUploader("run", sink=sink)
    assert uploader.add_files(checkpoint) is False
    assert landed(sink) == {"shards/0.bin"}
    (error,) = uploader.errors
    assert isinstance(error, TransferError)
    assert set(error.failures) == {"config.json"}


def test_a_backend_that_is_gone_is_not_waited_for_with_every_file_at_the_root(
    sink: MemorySink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGESINK_RETRIES_BUDGET", "0")
    (tmp_path / "many").mkdir()
    for number in range(20):
        (tmp_path / "many" / f"{number}.txt").write_text("x")
    gone = TransientSinkError("gone")
    faulty = FaultySink(sink, fails("list", gone), fails("open", gone))
    uploader = ArtifactUploader("run", sink=faulty, workers=1)
    assert uploader.add_files(tmp_path / "many") is False
    assert sum(faulty.calls.values()) < 5
    assert [receipt.status for receipt in uploader.receipts] == ["kept"] * 20


def test_an_archive_lands_with_its_manifest_and_stays_where_it_is(
    sink: MemorySink, checkpoint: Path, tmp_path: Path
) -> None:
    archive, manifest = create_checkpoint_archive(checkpoint, 7, tmp_path / "best.tar.gz")
    assert ArtifactUploader("run", "hpo", sink=sink).upload_checkpoint_archive(archive, manifest) is True
    there = objects(sink)
    assert set(there) == {"best_trial_checkpoint.tar.gz", "best_trial_checkpoint_manifest.json"}
    assert there["best_trial_checkpoint.tar.gz"] == archive.read_bytes()
    stored = json.loads(there["best_trial_checkpoint_manifest.json"])
    assert (stored["trial_number"], stored["file_count"]) == (7, 2)
    assert {file["path"]: file["sha256"] for file in stored["files"]} == {
        path: hashlib.sha256(data).hexdigest() for path, data in files_in(checkpoint).items()
    }


@pytest.mark.parametrize("manifest", [None, {}, {"trial_number": 3, "files": [{"path": "a", "size": 1}]}])
def test_an_archive_of_an_older_program_lands_too(
    sink: MemorySink, tmp_path: Path, manifest: dict[str, Any] | None
) -> None:
    (tmp_path / "old.tar.gz").write_bytes(b"an archive")
    uploader = ArtifactUploader("run", sink=sink)
    assert uploader.upload_checkpoint_archive(tmp_path / "old.tar.gz", manifest, "old.tar.gz") is True
    (committed,) = list_committed(sink, "run")
    assert [check.status for check in verify(sink, [committed])] == ["ok"]


@pytest.mark.parametrize(
    "faulty",
    [
        FaultySink(MemorySink("f1"), fails("put", SinkError("no"))),
        FaultySink(MemorySink("f2"), loses_object()),
        FaultySink(MemorySink("f3"), fails("put", ValueError("a defect"))),
    ],
)
def test_an_archive_is_never_deleted_when_its_upload_fails(
    faulty: FaultySink, checkpoint: Path, tmp_path: Path
) -> None:
    archive, manifest = create_checkpoint_archive(checkpoint, 1, tmp_path / "best.tar.gz")
    before = files_in(tmp_path)
    assert ArtifactUploader("run", sink=faulty).upload_checkpoint_archive(archive, manifest) is False
    assert files_in(tmp_path) == before


def test_a_folder_is_packed_while_it_is_sent(sink: MemorySink, checkpoint: Path, tmp_path: Path) -> None:
    before = files_in(tmp_path)
    uploader = ArtifactUploader("run", sink=sink)
    assert uploader.upload_packed_checkpoint(checkpoint, "trial_3.tar.gz", trial_number=3) is True
    assert json.loads(objects(sink)["trial_3_manifest.json"])["trial_number"] == 3
    assert files_in(tmp_path) == before


def test_a_packed_checkpoint_needs_a_name_that_says_how(sink: MemorySink, checkpoint: Path) -> None:
    uploader = ArtifactUploader("run", sink=sink)
    assert uploader.upload_packed_checkpoint(checkpoint, "trial_3") is False
    assert isinstance(uploader.errors[0], ArchiveError)


def test_a_plan_of_somebody_else_is_uploaded_under_the_stages_switches(
    sink: MemorySink, metrics_json: Path, configure: Configure
) -> None:
    plan = plan_file("run", "metrics.json", metrics_json)
    off = configure("tracking: {training: {log_metrics_json: false}}")
    assert ArtifactUploader("run", "training", off, sink=sink).upload_plan(plan) is False
    assert ArtifactUploader("run", "training", sink=sink).upload_plan(plan) is True


def test_the_results_are_real_booleans(sink: MemorySink, checkpoint: Path, metrics_json: Path, tmp_path: Path) -> None:
    uploader = ArtifactUploader("run", "training", sink=sink)
    results = [
        uploader.upload_checkpoint(checkpoint),
        uploader.upload_file(metrics_json),
        uploader.upload_file(tmp_path / "nothing"),
        uploader.upload_checkpoint_archive(tmp_path / "nothing"),
        uploader.upload_packed_checkpoint(tmp_path / "nothing"),
        uploader.upload_slots({"metrics_json": metrics_json})["metrics_json"],
        uploader.upload_plan(plan_file("run", "x", metrics_json)),
    ]
    assert [type(result) for result in results] == [bool] * 7
    assert results == [True, True, False, False, False, True, True]


# -- switches ----------------------------------------------------------------------------------------------------------

SLOTS = [
    ("training", "checkpoint", "log_checkpoint", {"checkpoint/config.json", "checkpoint/shards/0.bin"}),
    ("training", "metrics_json", "log_metrics_json", {"metrics.json"}),
    ("conversion", "onnx_model", "log_onnx_model", {"onnx_model/out-metrics.json"}),
    ("conversion", "conversion_log", "log_conversion_log", {"conversion_log.txt"}),
    ("benchmark", "benchmark_json", "log_artifacts", {"benchmark_results.json"}),
    ("hpo", "checkpoint", "log_checkpoint", {"best_trial_checkpoint.tar.gz"}),
]
"""The stage table of DESIGN.md, written down a second time on purpose."""


def source_of(slot: str, checkpoint: Path, metrics_json: Path) -> Path:
    return checkpoint if slot == "checkpoint" else metrics_json


@pytest.mark.parametrize(("stage", "slot", "switch", "destinations"), SLOTS)
def test_each_slot_lands_where_the_stage_table_says(
    sink: MemorySink, checkpoint: Path, metrics_json: Path, stage: str, slot: str, switch: str, destinations: set[str]
) -> None:
    path = source_of(slot, checkpoint, metrics_json)
    assert ArtifactUploader("run", stage, sink=sink).upload_slots({slot: path}, trial_number=1) == {slot: True}
    assert landed(sink) == destinations


@pytest.mark.parametrize(("stage", "slot", "switch", "destinations"), SLOTS)
@pytest.mark.parametrize("whole_stage", [False, True])
def test_each_switch_switches_its_slot_off_and_says_so(
    sink: MemorySink,
    checkpoint: Path,
    metrics_json: Path,
    configure: Configure,
    caplog: pytest.LogCaptureFixture,
    stage: str,
    slot: str,
    switch: str,
    destinations: set[str],
    whole_stage: bool,
) -> None:
    caplog.set_level(logging.INFO, "stagesink")
    key = f"tracking.{stage}.{'enabled' if whole_stage else switch}"
    folder = configure(f"tracking: {{{stage}: {{{'enabled' if whole_stage else switch}: false}}}}")
    uploader = ArtifactUploader("run", stage, folder, sink=sink)
    assert uploader.upload_slots({slot: source_of(slot, checkpoint, metrics_json)}) == {slot: False}
    assert objects(sink) == {}
    (receipt,) = uploader.receipts
    assert receipt.status == "skipped"
    assert f"{key} ({folder / 'mlflow.yaml'}:1) is false" in (receipt.error or "")
    (line,) = caplog.messages
    assert key in line
    assert uploader.errors == []


def test_a_switch_leaves_the_other_slots_on(
    sink: MemorySink, checkpoint: Path, metrics_json: Path, configure: Configure
) -> None:
    folder = configure("tracking: {training: {log_checkpoint: false}, hpo: {enabled: false}}")
    uploader = ArtifactUploader("run", "training", folder, sink=sink)
    assert uploader.upload_checkpoint(checkpoint) is False
    assert uploader.upload_file(metrics_json, "metrics.json") is True
    assert uploader.upload_file(metrics_json, "something-else.json") is True


def test_a_switched_off_upload_does_not_look_at_its_file(sink: MemorySink, configure: Configure) -> None:
    folder = configure("tracking: {training: {log_metrics_json: false}}")
    uploader = ArtifactUploader("run", "training", folder, sink=sink)
    assert uploader.upload_file("nothing there", "metrics.json") is False
    assert uploader.errors == []


@pytest.mark.parametrize("switch", ["log_checkpoint", "enabled"])
def test_a_checkpoint_can_be_uploaded_although_it_is_switched_off(
    sink: MemorySink, checkpoint: Path, configure: Configure, switch: str
) -> None:
    uploader = ArtifactUploader("run", "training", configure(f"tracking: {{training: {{{switch}: false}}}}"), sink=sink)
    assert uploader.upload_checkpoint(checkpoint, skip_if_disabled=True) is False
    assert uploader.upload_checkpoint(checkpoint, skip_if_disabled=False) is True


def test_a_stage_that_the_table_does_not_know_is_no_stage_without_switches(sink: MemorySink, checkpoint: Path) -> None:
    uploader = ArtifactUploader("run", "trainning", sink=sink)
    assert uploader.upload_checkpoint(checkpoint) is False
    assert "There is no stage 'trainning'. There are training, conversion" in str(uploader.errors[0])
    assert objects(sink) == {}


@pytest.mark.parametrize(("stage", "slot"), [("training", "model"), (None, "model")])
def test_a_slot_that_the_table_does_not_know_is_said(
    sink: MemorySink, metrics_json: Path, stage: str | None, slot: str, caplog: pytest.LogCaptureFixture
) -> None:
    uploader = ArtifactUploader("run", stage, sink=sink)
    assert uploader.upload_slots({slot: metrics_json}) == {slot: False}
    assert f"The stage {stage!r} has no slot 'model'. artifacts.stages adds slots." in caplog.text


def test_stages_and_slots_of_the_configuration_work_like_our_own(
    sink: MemorySink, checkpoint: Path, metrics_json: Path, configure: Configure
) -> None:
    folder = configure(
        """
        artifacts:
          stages:
            distillation:
              student: {destination: student, kind: tree}
              packed: {destination: student.tar.gz, kind: archive}
              report: {destination: "reports/{name}", switch: log_report}
            training:
              metrics_json: {destination: results/metrics.json}
        tracking:
          distillation: {log_report: false}
        """
    )
    uploader = ArtifactUploader("run", "distillation", folder, sink=sink)
    slots = {"student": checkpoint, "packed": checkpoint, "report": metrics_json}
    assert uploader.upload_slots(slots, trial_number=2) == {"student": True, "packed": True, "report": False}
    assert landed(sink) == {"student/config.json", "student/shards/0.bin", "student.tar.gz"}
    training = ArtifactUploader("run", "training", folder, sink=sink)
    assert training.upload_slots({"metrics_json": metrics_json}) == {"metrics_json": True}
    assert "results/metrics.json" in landed(sink)


# -- MLFLOW_SKIP_ARTIFACT_LOGGING --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["true", "TRUE", "1", "yes"])
def test_everything_is_skipped_with_one_line(
    sink: MemorySink,
    checkpoint: Path,
    metrics_json: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    value: str,
) -> None:
    monkeypatch.setenv("MLFLOW_SKIP_ARTIFACT_LOGGING", value)
    caplog.set_level(logging.INFO, "stagesink")
    uploader = ArtifactUploader("run", "training", sink=sink, on_failure="raise")
    assert uploader.upload_checkpoint(checkpoint) is False
    assert uploader.upload_checkpoint(checkpoint, skip_if_disabled=False) is False
    assert uploader.upload_packed_checkpoint(checkpoint) is False
    assert uploader.upload_file(metrics_json) is False
    assert uploader.upload_checkpoint_archive(metrics_json) is False
    assert uploader.upload_plan(plan_file("run", "x", metrics_json)) is False
    assert uploader.upload_slots({"checkpoint": checkpoint}) == {"checkpoint": False}
    assert objects(sink) == {}
    assert [receipt.status for receipt in uploader.receipts] == ["skipped"] * 7
    assert caplog.messages == ["Nothing is uploaded: MLFLOW_SKIP_ARTIFACT_LOGGING is set."]
    assert uploader.metrics == {}


@pytest.mark.parametrize("value", ["false", "0", "no", ""])
def test_a_variable_that_says_no_skips_nothing(
    sink: MemorySink, metrics_json: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("MLFLOW_SKIP_ARTIFACT_LOGGING", value)
    assert ArtifactUploader("run", sink=sink).upload_file(metrics_json) is True


def test_a_trial_that_uploads_nothing_needs_no_sound_configuration(
    checkpoint: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SKIP_ARTIFACT_LOGGING", "true")
    uploader = ArtifactUploader("run", "hpo", configure("artifacts: ["), sink="no-such-scheme:", on_failure="raise")
    assert uploader.upload_slots({"checkpoint": checkpoint}) == {"checkpoint": False}
    assert uploader.upload_checkpoint(checkpoint) is False


# -- failures ----------------------------------------------------------------------------------------------------------


def test_a_broken_configuration_is_false_with_its_message_and_never_a_default(
    checkpoint: Path, metrics_json: Path, configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = configure("artifacts:\n  wrokers: 4\n")
    before = files_in(tmp_path)
    uploader = ArtifactUploader("run", "training", folder)
    results = [
        uploader.upload_checkpoint(checkpoint),
        uploader.upload_checkpoint(checkpoint, skip_if_disabled=False),
        uploader.upload_file(metrics_json),
        *uploader.upload_slots({"checkpoint": checkpoint}).values(),
    ]
    assert results == [False] * 4
    wanted = f"{folder / 'mlflow.yaml'}:2: artifacts.wrokers: unknown key; did you mean 'workers'?"
    assert [str(error) for error in uploader.errors] == [wanted] * 4
    assert all(message.endswith(wanted) for message in caplog.messages)
    assert files_in(tmp_path) == before  # above all, no ./artifacts


def test_a_failure_is_one_line_with_what_to_do(
    sink: MemorySink, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uploader = ArtifactUploader("run", "training", sink=sink)
    assert uploader.upload_file(tmp_path / "metrics.json", "metrics.json") is False
    (record,) = caplog.records
    assert record.getMessage() == (
        f"metrics.json was not uploaded: {tmp_path}/metrics.json does not exist. Check the path."
    )
    assert (record.levelno, record.exc_info) == (logging.ERROR, None)
    (error,) = uploader.errors
    assert isinstance(error, SourceNotFound)


@pytest.mark.parametrize("origin", ["argument", "environment", "file"])
def test_on_failure_raise_lets_the_typed_error_through_and_logs_nothing(
    sink: MemorySink,
    configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    origin: str,
) -> None:
    if origin == "environment":
        monkeypatch.setenv("STAGESINK_ON_FAILURE", "raise")
    folder = configure("artifacts: {on_failure: raise}" if origin == "file" else "")
    uploader = ArtifactUploader("run", None, folder, sink=sink, on_failure="raise" if origin == "argument" else None)
    with pytest.raises(SourceNotFound) as caught:
        uploader.upload_file("nothing there")
    assert uploader.errors == [caught.value]
    assert caplog.messages == []


def test_an_argument_warn_is_above_a_file_that_says_raise(sink: MemorySink, configure: Configure) -> None:
    folder = configure("artifacts: {on_failure: raise}")
    assert ArtifactUploader("run", None, folder, sink=sink, on_failure="warn").upload_file("nothing there") is False


def test_on_failure_raise_raises_what_is_wrong_with_the_configuration(sink: MemorySink, configure: Configure) -> None:
    with pytest.raises(ConfigError):
        ArtifactUploader("run", None, configure("artifacts: 3"), sink=sink, on_failure="raise").upload_file("x")


def test_every_object_has_a_receipt_also_when_others_failed(checkpoint: Path) -> None:
    sink = FaultySink(MemorySink(uuid.uuid4().hex), fails("put", SinkError("The store said no."), nth=1))
    uploader = ArtifactUploader("run", "training", sink=sink, workers=1, on_failure="warn")
    assert uploader.upload_checkpoint(checkpoint) is False
    assert sorted(receipt.status for receipt in uploader.receipts) == ["failed", "uploaded"]
    (error,) = uploader.errors
    assert isinstance(error, TransferError)
    assert [str(each) for each in error.failures.values()] == ["The store said no."]
    (failed,) = [receipt for receipt in uploader.receipts if receipt.status == "failed"]
    assert (failed.error, failed.sha256, failed.verified_by) == ("The store said no.", None, "none")


def test_receipts_say_what_landed(sink: MemorySink, checkpoint: Path, metrics_json: Path) -> None:
    uploader = ArtifactUploader("run", "training", sink=sink)
    uploader.upload_checkpoint(checkpoint)
    uploader.upload_file(metrics_json, "metrics.json")
    uploader.upload_file(metrics_json, "metrics.json")
    assert {r.key.path: r.sha256 for r in uploader.receipts} == {
        path: hashlib.sha256(data).hexdigest() for path, data in objects(sink).items() if path in landed(sink)
    }
    assert [r.status for r in uploader.receipts] == ["uploaded"] * 3 + ["unchanged"]
    assert [r.key.path for r in uploader.receipts[-2:]] == ["metrics.json"] * 2
    assert {(r.key.run_id, r.verified_by, r.error) for r in uploader.receipts} == {("run", "size", None)}
    assert [r.attempts for r in uploader.receipts] == [1, 1, 1, 0]


def test_an_unexpected_error_of_somebody_elses_sink_is_false_with_its_trace(
    metrics_json: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = FaultySink(MemorySink(), fails("put", ZeroDivisionError("a defect of theirs")))
    uploader = ArtifactUploader("run", sink=sink)
    assert uploader.upload_file(metrics_json, "metrics.json") is False
    assert "metrics.json was not uploaded: Unexpected ZeroDivisionError." in caplog.text
    assert "Traceback" in caplog.text
    assert "a defect of theirs" in caplog.text
    (error,) = uploader.errors
    assert isinstance(error.__cause__, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        ArtifactUploader("run", sink=sink, on_failure="raise").upload_file(metrics_json)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_what_ends_the_program_passes_through(metrics_json: Path, error: BaseException) -> None:
    class Stopped(MemorySink):
        def put(self, *_: Any, **__: Any) -> Any:
            raise error

    uploader = ArtifactUploader("run", sink=Stopped(uuid.uuid4().hex))
    with pytest.raises(type(error)):
        uploader.upload_file(metrics_json)
    assert uploader.errors == []


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        (None, "Expected a path, got NoneType."),
        (3, "Expected a path, got int."),
        ("", "The path '' names nothing."),
        ("a\0b", r"The path 'a\x00b' names nothing."),
    ],
)
def test_what_is_no_path_never_kills_the_training(sink: MemorySink, path: Any, sentence: str) -> None:
    uploader = ArtifactUploader("run", "training", sink=sink)
    assert uploader.upload_file(path) is False
    assert uploader.upload_file(path, "x") is False
    assert uploader.upload_checkpoint(path) is False
    assert uploader.upload_packed_checkpoint(path) is False
    assert uploader.upload_checkpoint_archive(path) is False
    assert uploader.add_files(path) is False
    assert uploader.upload_slots({"checkpoint": path}) == {"checkpoint": False}
    assert [str(error).startswith(sentence) for error in uploader.errors] == [True] * 7
    assert objects(sink) == {}


def test_what_goes_along_with_uploads_fails_as_they_do(
    sink: MemorySink, metrics_json: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uploader = ArtifactUploader("run", sink=sink)
    for error in (RunNotFound("No such run.", hint="Check it."), KeyError("a defect")):
        with uploader.guard("The run was not told"):
            raise error
    known, defect = (record for record in caplog.records if record.name == "stagesink")
    assert known.getMessage() == "The run was not told: No such run. Check it."
    assert known.exc_info is None
    assert defect.exc_info is not None
    assert len(uploader.errors) == 2
    with pytest.raises(KeyboardInterrupt), uploader.guard("The run was not told"):
        raise KeyboardInterrupt
    error = RunNotFound("No such run.")
    with (
        pytest.raises(RunNotFound) as caught,
        ArtifactUploader("run", sink=sink, on_failure="raise").guard("The run was not told"),
    ):
        raise error
    assert caught.value is error


# -- metrics and progress ----------------------------------------------------------------------------------------------


def test_metrics_count_by_stage_and_sink(checkpoint: Path, metrics_json: Path) -> None:
    name = uuid.uuid4().hex
    sink = FaultySink(MemorySink(name), fails("put", TransientSinkError("busy"), nth=1))
    training = ArtifactUploader("run", "training", sink=sink, workers=1)
    training.upload_checkpoint(checkpoint)
    training.upload_file(metrics_json)
    training.upload_file("nothing there")
    conversion = ArtifactUploader("run", "conversion", sink=sink)
    conversion.upload_file(metrics_json, "model.onnx")
    size = sum(map(len, files_in(checkpoint).values())) + metrics_json.stat().st_size
    figures = training.metrics["training"][sink.uri]
    assert figures.pop("seconds") > 0
    assert figures == {"uploads": 3, "failures": 1, "files": 3, "bytes": size, "attempts": 4, "retries": 1}
    assert set(training.metrics) == {"training"}
    process = upload_metrics()
    assert process["training"][sink.uri]["uploads"] == 3
    assert process["conversion"][sink.uri]["uploads"] == 1
    assert json.loads(json.dumps(process)) == process


def test_a_failure_before_any_sink_was_open_counts_too(configure: Configure) -> None:
    uploader = ArtifactUploader("run", "training", configure("artifacts: 3"))
    uploader.upload_file("x")
    assert uploader.metrics["training"][""]["failures"] == 1


def test_progress_goes_to_a_callback(sink: MemorySink, checkpoint: Path) -> None:
    seen: list[Progress] = []
    assert ArtifactUploader("run", sink=sink, progress=seen.append).upload_checkpoint(checkpoint) is True
    assert seen[-1].bytes_done == sum(map(len, files_in(checkpoint).values()))
    assert seen[-1].files_done == 2


# -- which run, which sink ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "environ", "active", "expected"),
    [
        ("arg", {"STAGESINK_RUN_ID": "stagesink"}, "active", "arg"),
        (None, {"STAGESINK_RUN_ID": "stagesink", "MLFLOW_RUN_ID": "mlflow"}, "active", "stagesink"),
        (None, {"MLFLOW_RUN_ID": "mlflow", "AZUREML_RUN_ID": "azure"}, "active", "active"),
        (None, {"MLFLOW_RUN_ID": "mlflow", "AZUREML_RUN_ID": "azure"}, None, "mlflow"),
        (None, {"AZUREML_RUN_ID": "azure"}, None, "azure"),
    ],
)
def test_the_run_is_found_by_precedence(
    sink: MemorySink,
    metrics_json: Path,
    monkeypatch: pytest.MonkeyPatch,
    argument: str | None,
    environ: dict[str, str],
    active: str | None,
    expected: str,
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    mlflow = types.ModuleType("mlflow")
    info = types.SimpleNamespace(info=types.SimpleNamespace(run_id=active))
    mlflow.active_run = lambda: info if active else None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    uploader = ArtifactUploader(argument, sink=sink)
    assert uploader.upload_file(metrics_json) is True
    assert uploader.run_id == expected
    assert landed(sink, expected) == {"out-metrics.json"}


class Tracked(MemorySink):
    tracks_runs = True
    tracking_uri = "http://user:secret@host"


def test_a_sink_that_tracks_runs_says_where_and_gets_none_made_up(
    metrics_json: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploader = ArtifactUploader(sink=Tracked("tracked"))
    assert uploader.tracking_uri == "http://user:secret@host"
    assert uploader.named_run_id is None
    assert uploader.upload_file(metrics_json) is False
    assert isinstance(uploader.errors[0], RunNotFound)
    monkeypatch.setenv("MLFLOW_RUN_ID", "named")
    uploader = ArtifactUploader(sink=Tracked("tracked"))
    assert uploader.named_run_id == uploader.run_id == "named"
    assert ArtifactUploader(sink=MemorySink("untracked")).tracking_uri is None


def test_all_stages_of_a_process_share_one_local_run_which_is_said_once(
    tmp_path: Path, checkpoint: Path, metrics_json: Path
) -> None:
    program = """
        import sys
        from stagesink import ArtifactUploader, upload_benchmark_artifacts, upload_training_artifacts
        sink, checkpoint, metrics = sys.argv[1:]
        assert upload_training_artifacts(checkpoint, metrics, sink=sink) == {"checkpoint": True, "metrics_json": True}
        assert upload_benchmark_artifacts(metrics, sink=sink) == {"benchmark_json": True}
        assert ArtifactUploader(sink=sink).upload_file(metrics, "more.json") is True
    """
    done = python(program, tmp_path / "store", checkpoint, metrics_json)
    (run_id,) = (path.name for path in (tmp_path / "store").iterdir())
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-z]{7}", run_id)
    assert done.stderr.splitlines() == [
        f"No run was named: this process uploads to run {run_id}. Set STAGESINK_RUN_ID to name it."
    ]


def test_the_sink_is_found_by_precedence(
    metrics_json: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = configure(f"artifacts: {{sink: 'file:{tmp_path}/by-file'}}")
    assert ArtifactUploader("run", None, folder).upload_file(metrics_json, "m") is True
    monkeypatch.setenv("STAGESINK_SINK", f"file:{tmp_path}/by-environment")
    assert ArtifactUploader("run", None, folder).upload_file(metrics_json, "m") is True
    assert ArtifactUploader("run", None, folder, sink=f"{tmp_path}/by-argument").upload_file(metrics_json, "m") is True
    for name in ("by-file", "by-environment", "by-argument"):
        assert (tmp_path / name / "run/m").exists()
    monkeypatch.delenv("STAGESINK_SINK")
    assert ArtifactUploader("run", None, tmp_path / "no").upload_file(metrics_json, "m") is True
    assert (tmp_path / "artifacts/run/m").exists()


def test_storage_options_reach_the_sink(metrics_json: Path, configure: Configure) -> None:
    folder = configure("artifacts: {sink: 'file:./store', storage_options: {fsnyc: false}}")
    uploader = ArtifactUploader("run", None, folder)
    assert uploader.upload_file(metrics_json) is False
    assert "no storage option 'fsnyc'" in str(uploader.errors[0])


@pytest.mark.parametrize(
    "environ",
    [{"MLFLOW_TRACKING_URI": "azureml://westeurope.api"}, {"AZUREML_RUN_ID": "r", "AZUREML_ARM_WORKSPACE_NAME": "w"}],
)
def test_auto_puts_nothing_elsewhere_where_its_sink_cannot_be_opened(
    metrics_json: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environ: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    before = files_in(tmp_path)
    uploader = ArtifactUploader("run")
    assert uploader.upload_file(metrics_json) is False
    error = uploader.errors[0]
    assert isinstance(error, ConfigError | MissingExtra)  # without the extra it says so
    assert error.hint in caplog.text
    assert files_in(tmp_path) == before


class Closable(MemorySink):
    """A sink that counts how often it is closed. Named in an entry point below."""

    closed: list[str] = []  # noqa: RUF012

    def close(self) -> None:
        self.closed.append(self.name)


def test_a_given_sink_stays_open(metrics_json: Path) -> None:
    sink = Closable(uuid.uuid4().hex)
    with ArtifactUploader("run", sink=sink) as uploader:
        assert uploader.upload_file(metrics_json) is True
    assert Closable.closed == []


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Install a distribution that brings a sink, as pip would lay it out."""

    def plug_in(scheme: str, code: str) -> None:
        site = tmp_path / "site"
        info = site / "acme_store-1.0.dist-info"
        info.mkdir(parents=True)
        name = f"acme_store_{uuid.uuid4().hex}"
        (site / f"{name}.py").write_text(textwrap.dedent(code))
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-store\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[stagesink.sinks]\n{scheme} = {name}:open_acme\n")
        monkeypatch.syspath_prepend(site)

    return plug_in


def test_somebody_elses_sink_is_found_by_its_entry_point_and_closed(
    plug_in: Callable[..., None], metrics_json: Path, configure: Configure, tmp_path: Path
) -> None:
    plug_in(
        "acme",
        """
        from pathlib import Path
        from stagesink.sinks.local import LocalSink

        class AcmeSink(LocalSink):
            def close(self):
                Path(self.root, "closed").write_text("yes")

        def open_acme(uri, options):
            assert uri == "acme://store" and options["token"] == "t"
            return AcmeSink(options["folder"])
        """,
    )
    folder = configure(f"artifacts: {{sink: 'acme://store', storage_options: {{token: t, folder: '{tmp_path}/acme'}}}}")
    with ArtifactUploader("run", None, folder) as uploader:
        assert uploader.upload_file(metrics_json, "metrics.json") is True
        assert "closed" not in files_in(tmp_path / "acme")
    there = files_in(tmp_path / "acme")
    assert there["run/metrics.json"] == metrics_json.read_bytes()
    assert there["closed"] == b"yes"
    with uploader:  # it opens a new one
        assert uploader.upload_file(metrics_json, "again.json") is True


def test_somebody_elses_sink_that_does_not_close_does_not_kill_the_training(
    plug_in: Callable[..., None], metrics_json: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plug_in(
        "acme",
        """
        from stagesink.sinks.memory import MemorySink

        class AcmeSink(MemorySink):
            def close(self):
                raise RuntimeError("closing failed")

        def open_acme(uri, options):
            return AcmeSink("acme")
        """,
    )
    with ArtifactUploader("run", sink="acme:x") as uploader:
        assert uploader.upload_file(metrics_json) is True
    assert "memory:acme was not closed: Unexpected RuntimeError." in caplog.text
    assert len(uploader.errors) == 1


@pytest.mark.parametrize(
    "code",
    [
        "import no_such_module_of_theirs",
        "other = 1",
        "def open_acme(uri, options): raise RuntimeError('broken')",
        "syntax error",
    ],
)
def test_somebody_elses_sink_that_is_broken_is_false_with_a_trace(
    plug_in: Callable[..., None], metrics_json: Path, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    plug_in("acme", code)
    assert ArtifactUploader("run", sink="acme://store").upload_file(metrics_json) is False
    assert "Traceback" in caplog.text


# -- secrets -----------------------------------------------------------------------------------------------------------

SECRET = "pa55w0rd-of-mine"


def everything_said(uploader: ArtifactUploader, caplog: pytest.LogCaptureFixture, *more: object) -> str:
    formatter = logging.Formatter()
    traces = [formatter.format(record) for record in caplog.records]
    chain: list[object] = []
    for error in uploader.errors:
        link: BaseException | None = error
        while link is not None:
            chain += [str(link), repr(link), link.__dict__]
            link = link.__cause__
    return "\n".join(map(str, [*traces, caplog.text, *chain, uploader.receipts, uploader.metrics, *more]))


@pytest.mark.parametrize("message", ["cannot reach {uri}", "wrong token {option}", "signature {sig}"])
@pytest.mark.parametrize("on_failure", ["warn", "raise"])
def test_an_error_of_somebody_elses_sink_that_quotes_a_secret_is_not_quoted(
    plug_in: Callable[..., None],
    metrics_json: Path,
    configure: Configure,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    message: str,
    on_failure: Any,
) -> None:
    caplog.set_level(logging.DEBUG)
    code = message.format(uri="{uri}", option="{options['token']}", sig="{uri.partition('sig=')[2]}")
    plug_in("acme", f'def open_acme(uri, options): raise RuntimeError(f"{code}")')
    folder = configure(
        f"artifacts: {{sink: 'acme://me:{SECRET}@h/x?sig={SECRET}', storage_options: {{token: {SECRET}}}}}"
    )
    uploader = ArtifactUploader("run", "training", folder, on_failure=on_failure)
    raised = ""
    if on_failure == "raise":
        with pytest.raises(StagesinkError) as caught:
            uploader.upload_file(metrics_json, "m")
        raised = "".join(traceback.format_exception(caught.value))
        assert caught.value.__cause__ is None
    else:
        assert uploader.upload_file(metrics_json, "m") is False
    assert "Unexpected RuntimeError" in str(uploader.errors[0])
    assert SECRET not in everything_said(uploader, caplog, *capsys.readouterr())
    assert SECRET not in raised


@pytest.mark.parametrize(
    "sink",
    [
        f"s4://me:{SECRET}@bucket",
        f"s3://[me:{SECRET}@bucket",
        f"file://me:{SECRET}@host/x",
        f"memory://me:{SECRET}@x?token={SECRET}",
    ],
)
def test_a_sink_uri_with_a_password_that_cannot_be_used_is_not_quoted(
    metrics_json: Path, caplog: pytest.LogCaptureFixture, sink: str
) -> None:
    caplog.set_level(logging.DEBUG)
    uploader = ArtifactUploader("run", "training", sink=sink)
    if not sink.startswith("memory"):
        assert uploader.upload_file(metrics_json, "m") is False
        assert uploader.errors
        assert SECRET not in everything_said(uploader, caplog)


def test_a_broken_configuration_does_not_quote_its_secrets(
    metrics_json: Path, configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    folder = configure(f"artifacts:\n  sink: [s3://me:{SECRET}@b]\n  storage_options: {SECRET}\n  wrokers: 3\n")
    uploader = ArtifactUploader("run", "training", folder)
    assert uploader.upload_file(metrics_json) is False
    assert SECRET not in everything_said(uploader, caplog)
    assert len(str(uploader.errors[0]).splitlines()) == 3


# -- threads -----------------------------------------------------------------------------------------------------------


def test_several_uploaders_at_once(tmp_path: Path) -> None:
    start = threading.Barrier(6)

    def work(number: int) -> list[bool]:
        file = tmp_path / f"{number}.json"
        file.write_text(str(number))
        start.wait()
        with ArtifactUploader("run", "training", sink=f"file:{tmp_path}/store") as uploader:
            return [uploader.upload_file(file, f"{number}/{index}.json") for index in range(10)]

    with ThreadPoolExecutor(6) as pool:
        assert [result for results in pool.map(work, range(6)) for result in results] == [True] * 60
    there = files_in(tmp_path / "store")
    assert {path: data for path, data in there.items() if not path.endswith(".manifest.json")} == {
        f"run/{number}/{index}.json": str(number).encode() for number in range(6) for index in range(10)
    }
    sink = open_sink(f"{tmp_path}/store")
    assert [check.status for check in verify(sink, list_committed(sink, "run"))] == ["ok"] * 60


def test_one_uploader_in_several_threads(tmp_path: Path, metrics_json: Path) -> None:
    uploader = ArtifactUploader("run", "training", sink=f"file:{tmp_path}/store")
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda number: uploader.upload_file(metrics_json, f"{number}.json"), range(40)))
    assert len(uploader.receipts) == 40
    figures = uploader.metrics["training"][uploader.sink.uri]
    assert (figures["uploads"], figures["files"]) == (40, 40)


def test_importing_the_facade_asks_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGESINK_WORKERS", "nonsense")
    assert load.skip_artifact_logging() is False
    ArtifactUploader("run", sink="memory:")


def test_an_empty_folder_and_a_bad_destination_are_typed(sink: MemorySink, tmp_path: Path, metrics_json: Path) -> None:
    (tmp_path / "empty").mkdir()
    uploader = ArtifactUploader("run", sink=sink)
    assert uploader.upload_checkpoint(tmp_path / "empty") is False
    assert uploader.upload_file(metrics_json, "../x") is False
    assert [type(error) for error in uploader.errors] == [EmptyTree, InvalidKey]
    assert sink.stat(ArtifactKey("run", "x")) is None
    sink.put(ArtifactKey("run", "x"), MemorySource(b""))


@pytest.mark.parametrize("wrong", [None, 5, b"bytes", ["list"], {"a": 1}], ids=repr)
@pytest.mark.parametrize("argument", ["artifact_path", "run_id", "stage", "sink", "config_dir", "path"])
def test_an_argument_of_another_type_never_kills_the_training(
    argument: str, wrong: object, tmp_path: Path, metrics_json: Path
) -> None:
    if wrong is None and argument in ("run_id", "stage", "sink", "config_dir"):
        pytest.skip("None stands for the default there")
    given: dict[str, Any] = {
        "run_id": "run",
        "stage": "training",
        "sink": f"file:{tmp_path / 'out'}",
        "config_dir": None,
    }
    call: dict[str, Any] = {"path": metrics_json, "artifact_path": "metrics.json"}
    (call if argument in call else given)[argument] = wrong
    uploader = ArtifactUploader(**given)
    if wrong is None and argument == "artifact_path":
        assert uploader.upload_file(call["path"], None) is True  # its own name
        assert uploader.upload_checkpoint(metrics_json.parent, None) is False  # type: ignore[arg-type]
    else:
        assert uploader.upload_file(call["path"], call["artifact_path"]) is False
    assert len(uploader.errors) == 1
    assert "Unexpected" not in str(uploader.errors[0]) or argument == "path"


def test_paths_are_taken_for_a_sink_and_a_destination(tmp_path: Path, metrics_json: Path) -> None:
    uploader = ArtifactUploader("run", sink=tmp_path / "out")
    assert uploader.upload_file(metrics_json, Path("reports", "m.json")) is True  # type: ignore[arg-type]
    assert (tmp_path / "out/run/reports/m.json").exists()


def test_an_archive_that_was_written_anew_since_its_manifest_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"weights")
    archive, manifest = create_checkpoint_archive(folder, 1, tmp_path / "a.tar.gz")
    archive.write_bytes(b"something else")
    uploader = ArtifactUploader("run", "hpo", sink="memory:rewritten")
    assert uploader.upload_checkpoint_archive(archive, manifest) is False
    assert "describes another archive" in str(uploader.errors[0])
    assert list_committed(uploader.sink, "run") == ()


def test_storage_options_of_the_configured_sink_are_not_for_one_of_another_kind(
    tmp_path: Path, metrics_json: Path, configure: Configure
) -> None:
    config_dir = configure("artifacts: {sink: 's3://bucket', storage_options: {client_kwargs: {endpoint_url: x}}}")
    uploader = ArtifactUploader("run", config_dir=config_dir, sink=tmp_path / "out")
    assert uploader.upload_file(metrics_json) is True
    given = ArtifactUploader("run", config_dir=config_dir, sink=tmp_path / "out", storage_options={"fsync": False})
    assert given.upload_file(metrics_json) is True
    assert given.sink.fsync is False  # type: ignore[attr-defined]


class Holding(FaultySink):
    """A store that is gone, whose client has the object in its hands as it finds that out."""

    def __init__(self, inner: MemorySink) -> None:
        super().__init__(inner)
        self.held: list[weakref.ref[Any]] = []

    def put(self, key: ArtifactKey, source: Source, *, on_bytes: OnBytes | None = None) -> StoredArtifact:
        if lies_under(key.path, NOTES_FOLDER):
            return super().put(key, source, on_bytes=on_bytes)

        class Body(bytearray):
            pass

        with source.open() as stream:
            body = Body(stream.read())
        self.held.append(weakref.ref(body))
        try:
            raise ConnectionError("gone")
        except ConnectionError:
            raise TransientSinkError("The store is gone.") from None


@pytest.mark.parametrize("background", [False, True])
def test_errors_that_are_kept_do_not_keep_the_bytes(
    background: bool, sink: MemorySink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGESINK_RETRIES", "1")
    (tmp_path / "checkpoint").mkdir()
    for name in ("a", "b"):
        (tmp_path / "checkpoint" / name).write_bytes(b"x")
    gone = Holding(sink)
    uploader = ArtifactUploader("run", "training", sink=gone, background=background)
    assert uploader.upload_checkpoint(tmp_path / "checkpoint") is background
    if background:
        assert isinstance(uploader.handles[0].exception(60), TransferError)
    else:
        assert uploader.errors
    gc.collect()
    assert len(gone.held) >= 2
    assert [ref() for ref in gone.held if ref() is not None] == []


@pytest.mark.parametrize("wrong", ['{"fsync": true}', [("fsync", True)], 7], ids=repr)
def test_storage_options_of_another_type_are_said(metrics_json: Path, wrong: Any) -> None:
    uploader = ArtifactUploader("run", sink="memory:", storage_options=wrong)
    assert not uploader.upload_file(metrics_json)
    assert f"storage_options is {type(wrong).__name__}; it takes Mapping" in str(uploader.errors[0])


def test_an_error_whose_text_cannot_be_had_stops_nobody(metrics_json: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    class Broken(MemorySink):
        def put(self, *args: Any, **options: Any) -> Any:
            raise Unspeakable

    uploader = ArtifactUploader("run", sink=Broken("unspeakable"), on_failure="warn")
    assert not uploader.upload_file(metrics_json)
    assert "Unexpected Unspeakable" in caplog.text
