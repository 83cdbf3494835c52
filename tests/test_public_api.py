"""The public face: names, signatures, types. What changes here breaks somebody's pipeline."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

import stagesink
from stagesink import ArtifactUploader

NAMES = {
    *(
        "ArtifactKey",
        "ArtifactSink",
        "ArtifactUploader",
        "FileSource",
        "Manifest",
        "MemorySource",
        "Progress",
        "Receipt",
    ),
    *("Source", "StagesinkError", "StoredArtifact", "Transfer", "TransferOptions", "__version__"),
    *("create_checkpoint_archive", "extract_checkpoint_archive", "get_mlflow_run_id", "list_committed", "open_sink"),
    *("restore", "should_skip_file", "upload_benchmark_artifacts", "upload_conversion_artifacts"),
    *("upload_hpo_artifacts", "upload_metrics", "upload_training_artifacts", "verify"),
    *("flush", "install_drain"),
    *("log_artifact_safe", "log_artifacts_safe", "upload_checkpoint_archive"),  # deprecated
}

SIGNATURES: list[tuple[Any, str]] = [
    (stagesink.get_mlflow_run_id, "()"),
    (ArtifactUploader, "(run_id=None, stage=None, config_dir=None)"),
    (ArtifactUploader.upload_checkpoint, "(self, checkpoint_dir, artifact_path='checkpoint', skip_if_disabled=True)"),
    (ArtifactUploader.upload_file, "(self, file_path, artifact_path=None)"),
    (
        ArtifactUploader.upload_checkpoint_archive,
        "(self, archive_path, manifest=None, artifact_path='best_trial_checkpoint.tar.gz')",
    ),
    (
        stagesink.upload_training_artifacts,
        "(checkpoint_dir, metrics_json_path=None, run_id=None, config_dir=None)",
    ),
    (stagesink.upload_conversion_artifacts, "(onnx_path, run_id=None, config_dir=None)"),
    (stagesink.upload_benchmark_artifacts, "(benchmark_json_path=None, run_id=None, config_dir=None)"),
    (stagesink.upload_hpo_artifacts, "(checkpoint_dir, trial_number, run_id=None, config_dir=None)"),
    (
        stagesink.log_artifact_safe,
        "(local_path, artifact_path=None, run_id=None, max_retries=None, base_delay=None, config_dir=None)",
    ),
    (
        stagesink.log_artifacts_safe,
        "(local_dir, artifact_path=None, run_id=None, max_retries=None, base_delay=None, config_dir=None)",
    ),
    (
        stagesink.upload_checkpoint_archive,
        "(archive_path, manifest=None, artifact_path='best_trial_checkpoint.tar.gz', run_id=None, max_retries=None, "
        "base_delay=None, config_dir=None)",
    ),
    (stagesink.create_checkpoint_archive, "(checkpoint_dir, trial_number, output_path=None)"),
    (stagesink.should_skip_file, "(file_path, relative_path)"),
]


def test_the_public_names_are_these() -> None:
    assert set(stagesink.__all__) == NAMES
    assert set(dir(stagesink)) >= NAMES


@pytest.mark.parametrize(("function", "expected"), SIGNATURES, ids=lambda value: getattr(value, "__qualname__", ""))
def test_positions_names_and_defaults_are_those_that_users_know(function: Any, expected: str) -> None:
    """Keywords of our own come after them, so that every call that worked still does."""
    known = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    assert str(inspect.Signature(known)) == expected


@pytest.mark.parametrize(
    "function",
    [
        ArtifactUploader,
        stagesink.upload_training_artifacts,
        stagesink.upload_conversion_artifacts,
        stagesink.upload_benchmark_artifacts,
        stagesink.upload_hpo_artifacts,
        stagesink.log_artifact_safe,
        stagesink.log_artifacts_safe,
        stagesink.upload_checkpoint_archive,
    ],
)
def test_all_of_them_take_a_sink_by_keyword(function: Any) -> None:
    parameters = inspect.signature(function).parameters
    assert "sink" in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


@pytest.mark.parametrize("name", sorted(NAMES - {"__version__"}))
def test_every_public_name_is_documented(name: str) -> None:
    assert len(inspect.getdoc(getattr(stagesink, name)) or "") > 10


GOOD = """
from pathlib import Path
from stagesink import (
    ArtifactKey, ArtifactSink, ArtifactUploader, Manifest, MemorySource, Progress, Receipt, Transfer,
    TransferOptions, create_checkpoint_archive, get_mlflow_run_id, list_committed, open_sink, restore,
    should_skip_file, upload_benchmark_artifacts, upload_conversion_artifacts, upload_hpo_artifacts,
    upload_metrics, upload_training_artifacts, verify,
)

run_id: str | None = get_mlflow_run_id()
sink: ArtifactSink = open_sink("memory:", storage_options={"key": "x"})

def show(progress: Progress) -> None: ...

with ArtifactUploader(run_id, "training", Path("config"), sink=sink, verify="full", progress=show) as uploader:
    landed: bool = uploader.upload_checkpoint("out/checkpoint", skip_if_disabled=False)
    landed = uploader.upload_file(Path("metrics.json"), artifact_path="metrics.json")
    archive, details = create_checkpoint_archive(Path("out"), 3, "best.tar.gz")
    landed = uploader.upload_checkpoint_archive(archive, details)
    receipts: list[Receipt] = uploader.receipts
    failures: float = uploader.metrics["training"][sink.uri]["failures"]
training: dict[str, bool] = upload_training_artifacts("out", "metrics.json", sink="memory:")
landed = upload_conversion_artifacts(Path("model.onnx"), run_id, sink=sink)
benchmark: dict[str, bool] = upload_benchmark_artifacts("benchmark.json")
landed = upload_hpo_artifacts("out", 3)
skip: bool = should_skip_file("a", "b")
manifests: tuple[Manifest, ...] = list_committed(sink, "run")
checks = verify(sink, manifests, TransferOptions(workers=2))
statuses: list[str] = [check.status for check in checks]
paths: list[Path] = [restored.path for restored in restore(sink, manifests, "target")]
stored = sink.put(ArtifactKey("run", "x"), MemorySource(b"x"))
size: int = stored.size
upload_metrics()["training"]
Transfer(sink, progress=show)
"""

BAD = """
from stagesink import ArtifactUploader, upload_hpo_artifacts, upload_training_artifacts
ArtifactUploader(verify="ful")
ArtifactUploader(3)
ArtifactUploader().upload_file(None)
upload_hpo_artifacts("out")
x: bool = upload_training_artifacts("out")
"""


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """Run ``mypy --strict`` on two programs of a user, once; return the lines it complains of, by program."""
    api = pytest.importorskip("mypy.api", reason="the types are checked where mypy is installed")
    folder = tmp_path_factory.mktemp("typed")
    files = {"good": folder / "good.py", "bad": folder / "bad.py"}
    files["good"].write_text(GOOD)
    files["bad"].write_text(BAD)
    options = ("--strict", "--no-incremental", "--config-file=", "--follow-imports=silent", "--no-error-summary")
    out, errors, _ = api.run([*options, *map(str, files.values())])
    assert errors == ""
    lines = [line.split(":")[:2] for line in out.splitlines() if ": error:" in line]
    return {name: [int(number) for path, number in lines if path == str(file)] for name, file in files.items()}


@pytest.mark.once
@pytest.mark.timeout(600)
def test_a_program_that_uses_it_all_is_typed(complaints: dict[str, list[int]]) -> None:
    assert complaints["good"] == []


@pytest.mark.timeout(600)
def test_the_types_catch_what_is_wrong(complaints: dict[str, list[int]]) -> None:
    assert complaints["bad"] == [3, 4, 5, 6, 7]


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(stagesink.__file__).parent / "py.typed").is_file()
