"""A short pipeline through its four helpers, into each kind of store, and everything out of it again."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from outside import files_in
from servers import S3Server

from stagesink import (
    ArtifactSink,
    extract_checkpoint_archive,
    list_committed,
    open_sink,
    restore,
    upload_benchmark_artifacts,
    upload_conversion_artifacts,
    upload_hpo_artifacts,
    upload_training_artifacts,
    verify,
)

RUN = "e2e run"
ReadBack = Callable[[], dict[str, bytes]]


class Store:
    """Where the pipeline uploads to: its configuration, and a way to look into it that is not ours."""

    def __init__(self, uri: str, read_back: ReadBack, **options: Any) -> None:
        self.uri = uri
        self.options = options
        self.read_back = read_back

    def sink(self) -> ArtifactSink:
        return open_sink(self.uri, storage_options=self.options)


@pytest.fixture(params=["file", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    name = uuid.uuid4().hex
    if request.param == "file":
        return Store("file:./store", lambda: files_in(tmp_path / "store" / RUN))
    if request.param == "memory":

        def in_memory() -> dict[str, bytes]:
            sink = open_sink(f"memory:{name}")
            return {stored.key.path: sink.open(stored.key).read() for stored in sink.list(RUN)}

        return Store(f"memory:{name}", in_memory)
    moto: S3Server = request.getfixturevalue("moto")
    bucket: str = request.getfixturevalue("bucket")

    def in_s3() -> dict[str, bytes]:
        client = moto.boto3()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{name}/{RUN}/")
        keys = [each["Key"] for page in pages for each in page.get("Contents", ())]
        cut = len(f"{name}/{RUN}/")
        return {key[cut:]: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}

    return Store(f"s3://{bucket}/{name}", in_s3, **moto.options())


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the stages of the pipeline wrote."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    for folder in ("best_trial/checkpoint", "final/checkpoint/optimizer", "final/checkpoint/__pycache__"):
        (out / folder).mkdir(parents=True)
    (out / "best_trial/checkpoint/model.bin").write_bytes(os.urandom(50_000))
    (out / "final/checkpoint/model.bin").write_bytes(os.urandom(200_000))
    (out / "final/checkpoint/optimizer/état 1.bin").write_bytes(os.urandom(1))
    (out / "final/checkpoint/empty").touch()
    (out / "final/checkpoint/train.log").write_text("a log goes in as well\n")
    (out / "final/checkpoint/__pycache__/x.pyc").write_bytes(b"a cache does not")
    (out / "final/metrics.json").write_text('{"accuracy": 0.97}')
    (out / "model.onnx").write_bytes(os.urandom(30_000))
    (out / "conversion.log").write_text("converted\n")
    (out / "benchmark.json").write_text('{"p50_ms": 1.5}')
    return out


def run_pipeline(out: Path, config_dir: Path) -> list[Any]:
    """What the code of a user's four stages does at their ends."""
    return [
        upload_hpo_artifacts(out / "best_trial/checkpoint", 12, RUN, config_dir),
        upload_training_artifacts(out / "final/checkpoint", out / "final/metrics.json", RUN, config_dir),
        upload_conversion_artifacts(out / "model.onnx", RUN, config_dir, conversion_log_path=out / "conversion.log"),
        upload_benchmark_artifacts(out / "benchmark.json", RUN, config_dir),
    ]


def wanted_from(out: Path) -> dict[str, bytes]:
    """What must lie in the run, the archive and the manifests left out."""
    checkpoint = {
        f"checkpoint/{path}": data
        for path, data in files_in(out / "final/checkpoint").items()
        if not path.startswith("__pycache__")
    }
    return {
        **checkpoint,
        "metrics.json": (out / "final/metrics.json").read_bytes(),
        "onnx_model/model.onnx": (out / "model.onnx").read_bytes(),
        "conversion_log.txt": b"converted\n",
        "benchmark_results.json": (out / "benchmark.json").read_bytes(),
    }


ALL_LANDED = [True, {"checkpoint": True, "metrics_json": True}, True, {"benchmark_json": True}]
MANIFESTS = {
    *("best_trial_checkpoint_manifest.json", "checkpoint.manifest.json", "metrics.json.manifest.json"),
    *(
        "onnx_model/model.onnx.manifest.json",
        "conversion_log.txt.manifest.json",
        "benchmark_results.json.manifest.json",
    ),
}


def test_a_pipelines_artifacts_land_and_come_back(store: Store, out: Path, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    settings = {"sink": store.uri, "storage_options": store.options}
    (tmp_path / "config/mlflow.yaml").write_text(json.dumps({"artifacts": settings, "naming": {"theirs": True}}))
    assert run_pipeline(out, tmp_path / "config") == ALL_LANDED

    # What lies there, seen without us.
    there = store.read_back()
    wanted = wanted_from(out)
    assert there.keys() == {*wanted, *MANIFESTS, "best_trial_checkpoint.tar.gz"}
    assert {path: there[path] for path in wanted} == wanted
    with tarfile.open(fileobj=io.BytesIO(there["best_trial_checkpoint.tar.gz"])) as archive:
        (member,) = archive.getmembers()
        stream = archive.extractfile(member)
        assert stream is not None
        assert stream.read() == (out / "best_trial/checkpoint/model.bin").read_bytes()
    manifest = json.loads(there["checkpoint.manifest.json"])
    assert {file["path"]: (file["size"], file["sha256"]) for file in manifest["files"]} == {
        path.removeprefix("checkpoint/"): (len(data), hashlib.sha256(data).hexdigest())
        for path, data in wanted.items()
        if path.startswith("checkpoint/")
    }
    assert manifest["skipped"] == ["__pycache__/"]
    assert json.loads(there["best_trial_checkpoint_manifest.json"])["trial_number"] == 12

    # What we say of it.
    sink = store.sink()
    committed = list_committed(sink, RUN)
    assert [(m.path, m.provenance["stage"]) for m in committed] == [
        ("benchmark_results.json", "benchmark"),
        ("best_trial_checkpoint.tar.gz", "hpo"),
        ("checkpoint", "training"),
        ("conversion_log.txt", "conversion"),
        ("metrics.json", "training"),
        ("onnx_model/model.onnx", "conversion"),
    ]
    checks = verify(sink, committed)
    assert {check.status for check in checks} == {"ok"}
    assert len(checks) == len(wanted) + 1

    # And out again.
    restored = restore(sink, committed, tmp_path / "restored")
    assert len(restored) == len(wanted) + 1
    back = files_in(tmp_path / "restored")
    assert back.pop("best_trial_checkpoint.tar.gz") == there["best_trial_checkpoint.tar.gz"]
    assert back == wanted
    extract_checkpoint_archive(tmp_path / "restored/best_trial_checkpoint.tar.gz", tmp_path / "extracted")
    assert files_in(tmp_path / "extracted").popitem()[1] == (out / "best_trial/checkpoint/model.bin").read_bytes()
    sink.close()


def test_a_pipeline_that_runs_again_sends_nothing_and_one_that_changed_sends_the_change(
    store: Store, out: Path, tmp_path: Path
) -> None:
    (tmp_path / "config").mkdir()
    settings = {"sink": store.uri, "storage_options": store.options}
    (tmp_path / "config/mlflow.yaml").write_text(json.dumps({"artifacts": settings}))
    assert run_pipeline(out, tmp_path / "config") == ALL_LANDED
    before = store.read_back()
    assert run_pipeline(out, tmp_path / "config") == ALL_LANDED
    again = store.read_back()
    archive = "best_trial_checkpoint_manifest.json"  # the packed archive is made anew, with the time of it
    assert {k: v for k, v in again.items() if k != archive} == {k: v for k, v in before.items() if k != archive}

    (out / "final/checkpoint/model.bin").write_bytes(b"better")
    (out / "final/checkpoint/train.log").unlink()
    (out / "final/checkpoint/new.bin").write_bytes(b"new")
    assert run_pipeline(out, tmp_path / "config") == ALL_LANDED
    there = store.read_back()
    wanted = wanted_from(out)
    assert {path: data for path, data in there.items() if path in wanted} == wanted
    assert "checkpoint/train.log" not in there
    sink = store.sink()
    assert {check.status for check in verify(sink, list_committed(sink, RUN))} == {"ok"}
    sink.close()


def test_what_was_altered_or_lost_in_the_store_is_found_and_not_restored(out: Path, tmp_path: Path) -> None:
    assert upload_training_artifacts(out / "final/checkpoint", run_id=RUN, sink="file:./store") == {"checkpoint": True}
    folder = tmp_path / "store" / RUN / "checkpoint"
    data = bytearray((folder / "model.bin").read_bytes())
    data[100] ^= 1
    (folder / "model.bin").write_bytes(data)
    (folder / "train.log").unlink()
    sink = open_sink("file:./store")
    committed = list_committed(sink, RUN)
    found = {check.key.path: check.status for check in verify(sink, committed)}
    assert found == {
        "checkpoint/empty": "ok",
        "checkpoint/model.bin": "content",
        "checkpoint/optimizer/état 1.bin": "ok",
        "checkpoint/train.log": "missing",
    }
    from stagesink.errors import StagesinkError

    with pytest.raises(StagesinkError) as caught:
        restore(sink, committed, tmp_path / "restored")
    assert "checkpoint/model.bin" in str(caught.value)
    assert "checkpoint/train.log" in str(caught.value)
    assert set(files_in(tmp_path / "restored")) == {"checkpoint/empty", "checkpoint/optimizer/état 1.bin"}
