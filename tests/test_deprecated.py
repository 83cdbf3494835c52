"""The old names: the destinations, the booleans and the patience that their callers know."""

from __future__ import annotations

import inspect
import json
import logging
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from outside import files_in, python
from servers import installed

import stagesink
from stagesink import create_checkpoint_archive, list_committed, verify
from stagesink.artifacts import ArtifactKey
from stagesink.deprecated import log_artifact_safe, log_artifacts_safe, upload_checkpoint_archive
from stagesink.errors import SinkAuthError, TransientSinkError
from stagesink.sinks.memory import MemorySink
from stagesink.testing import FaultySink, fails

Shim = Callable[..., bool]
NAMES = ("log_artifact_safe", "log_artifacts_safe", "upload_checkpoint_archive")
BUSY = TransientSinkError("503")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink(uuid.uuid4().hex)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Two files at the top, one below."""
    folder = tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    for name in ("metrics.json", "model.bin", "sub/notes.txt"):
        (folder / name).write_text(name)
    return folder


def quietly(function: Shim, *args: Any, **options: Any) -> bool:
    """Call an old function, the warning aside."""
    with pytest.warns(DeprecationWarning, match="is deprecated"):
        return function(*args, **options)


def landed(sink: MemorySink, run_id: str = "run") -> set[str]:
    return {stored.key.path for stored in sink.list(run_id) if not stored.key.path.endswith("manifest.json")}


# -- where things land -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "local", "artifact_path", "expected"),
    [
        (log_artifact_safe, "out/metrics.json", None, {"metrics.json"}),
        (log_artifact_safe, "out/metrics.json", "", {"metrics.json"}),
        (log_artifact_safe, "out/metrics.json", "reports/final", {"reports/final/metrics.json"}),
        (log_artifact_safe, "out/metrics.json", "metrics.json", {"metrics.json/metrics.json"}),
        (log_artifact_safe, "out/sub", None, {"sub/notes.txt"}),
        (log_artifact_safe, "out/sub/", "reports", {"reports/sub/notes.txt"}),
        (log_artifacts_safe, "out", None, {"metrics.json", "model.bin", "sub/notes.txt"}),
        (log_artifacts_safe, "out", "a/b", {"a/b/metrics.json", "a/b/model.bin", "a/b/sub/notes.txt"}),
    ],
)
def test_things_land_where_mlflow_puts_them(
    sink: MemorySink, out: Path, function: Shim, local: str, artifact_path: str | None, expected: set[str]
) -> None:
    assert quietly(function, local, artifact_path, "run", sink=sink) is True
    assert landed(sink) == expected
    assert {check.status for check in verify(sink, list_committed(sink, "run"))} == {"ok"}


@pytest.mark.parametrize(
    ("artifact_path", "expected"),
    [
        (None, {"best_trial_checkpoint.tar.gz", "best_trial_checkpoint_manifest.json"}),
        ("hpo/best.tar.gz", {"hpo/best.tar.gz", "hpo/best_manifest.json"}),
        ("checkpoints/v1.2", {"checkpoints/v1.2/packed.tar.gz", "checkpoints/v1.2/packed_manifest.json"}),
    ],
)
def test_an_archive_lands_with_its_manifest(
    sink: MemorySink, out: Path, artifact_path: str | None, expected: set[str]
) -> None:
    archive, manifest = create_checkpoint_archive(out, 7, "packed.tar.gz")
    assert quietly(upload_checkpoint_archive, archive, manifest, artifact_path, "run", sink=sink) is True
    assert {stored.key.path for stored in sink.list("run")} == expected
    (stored,) = list_committed(sink, "run")
    assert stored.details["trial_number"] == 7


def test_an_archive_survives_an_upload_that_failed(sink: MemorySink, out: Path) -> None:
    archive, manifest = create_checkpoint_archive(out, 7, "packed.tar.gz")
    broken = FaultySink(sink, fails("put", SinkAuthError("no")))
    assert quietly(upload_checkpoint_archive, archive, manifest, run_id="run", sink=broken) is False
    assert archive.exists()


def test_the_run_and_the_configuration_are_found_as_ever(
    sink: MemorySink, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "from-environment")
    for run_id in (None, ""):
        assert quietly(log_artifact_safe, out / "metrics.json", run_id=run_id, sink=sink) is True
    assert landed(sink, "from-environment") == {"metrics.json"}
    (out / "mlflow.yaml").write_text("artifacts: {sink: 'file:store'}")
    assert quietly(log_artifact_safe, out / "model.bin", "models", config_dir=out) is True
    assert Path("store/from-environment/models/model.bin").exists()


def test_what_switches_every_upload_off_switches_these_off(
    sink: MemorySink, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SKIP_ARTIFACT_LOGGING", "true")
    assert quietly(log_artifacts_safe, out, "x", "run", sink=sink) is False
    assert landed(sink) == set()


# -- the same as mlflow's own ------------------------------------------------------------------------------------------

SEQUENCES: list[list[tuple[str, str, str | None]]] = [
    [("log_artifact_safe", "out/metrics.json", None)],
    [("log_artifact_safe", "out/metrics.json", "metrics.json")],
    [("log_artifact_safe", "out/metrics.json", "a/b")],
    [("log_artifact_safe", "out", None)],
    [("log_artifact_safe", "out/", "a")],
    [("log_artifacts_safe", "out", None)],
    [("log_artifacts_safe", "out", "plots")],
    [("log_artifacts_safe", "out", "plots"), ("log_artifacts_safe", "more", "plots")],
    [("log_artifacts_safe", "out", None), ("log_artifacts_safe", "more", None)],
    [("log_artifacts_safe", "out", "plots"), ("log_artifact_safe", "more/metrics.json", "plots")],
    [("log_artifacts_safe", "out", None), ("log_artifact_safe", "more/metrics.json", None)],
    [("log_artifacts_safe", "out", "a"), ("log_artifacts_safe", "more", "a/sub")],
    [("log_artifact_safe", "no such file", None)],
    [("log_artifacts_safe", "no such folder", "plots")],
    [("log_artifacts_safe", "out/metrics.json", "plots")],
    [("log_artifact_safe", "out/metrics.json", "../outside")],
    [("log_artifact_safe", "out/metrics.json", "/absolute")],
    [("log_artifacts_safe", "out", "a/../b")],
    [("log_artifact_safe", "out/metrics.json", "plots/")],
]

_BOTH_WAYS = """
    import json, os, sys, warnings
    warnings.simplefilter("ignore")
    import mlflow
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from stagesink import deprecated

    class Old:  # retries and log lines left out; each answer is what these functions were known for
        def __init__(self, client):
            self.client = client

        def log_artifact_safe(self, local, folder, run_id):
            return os.path.exists(local) and self.landed(self.client.log_artifact, run_id, local, folder)

        def log_artifacts_safe(self, local, folder, run_id):
            return os.path.isdir(local) and self.landed(self.client.log_artifacts, run_id, local, folder)

        def landed(self, function, *args):
            try:
                function(*args)
            except (MlflowException, OSError):
                return False
            return True

    def held(client, run_id, folder=None):
        for info in client.list_artifacts(run_id, folder):
            if info.is_dir:
                yield from held(client, run_id, info.path)
            else:
                with open(client.download_artifacts(run_id, info.path)) as stream:
                    yield info.path, stream.read()

    client = MlflowClient()
    experiment = client.create_experiment("both", artifact_location=sys.argv[2])
    answers = []
    for calls in json.loads(sys.argv[1]):
        answers.append([])
        ways = [(Old(client), {}, ""), (deprecated, {"sink": "file:store"}, "")]
        ways += [(deprecated, {}, engine) for engine in ("stagesink", "mlflow")]
        for functions, options, os.environ["STAGESINK_ENGINE"] in ways:
            run_id = client.create_run(experiment).info.run_id
            said = [getattr(functions, name)(local, folder, run_id, **options) for name, local, folder in calls]
            answers[-1].append([said, run_id, dict(held(client, run_id))])
    print("answers:", json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What mlflow's client and the shims said and left, for each sequence, by (booleans, run id, files)."""
    installed("mlflow", "sqlalchemy", "alembic")
    folder = tmp_path_factory.mktemp("both")
    for name, text in {
        "out/metrics.json": "1",
        "out/sub/a.txt": "2",
        "more/metrics.json": "3",
        "more/b.txt": "4",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        uri = f"sqlite:///{folder}/mlflow.db"
        done = python(_BOTH_WAYS, json.dumps(SEQUENCES), folder / "artifacts", timeout=300, MLFLOW_TRACKING_URI=uri)
    found: list[Any] = json.loads(done.stdout.partition("answers:")[2])
    for _, with_file_sink, *_ in found:
        store = folder / "store" / with_file_sink[1]
        with_file_sink[2] = {path: data.decode() for path, data in files_in(store).items()}
    return found


@pytest.mark.once
@pytest.mark.parametrize("index", range(len(SEQUENCES)), ids=lambda index: str(SEQUENCES[index]))
@pytest.mark.parametrize("where", [1, 2, 3], ids=["file", "mlflow", "mlflow-engine"])
def test_callers_find_their_files_where_mlflow_had_put_them(answers: list[Any], index: int, where: int) -> None:
    (said, _, known), (answer, _, found) = answers[index][0], answers[index][where]
    assert answer == said
    assert {path: text for path, text in found.items() if not path.endswith(".manifest.json")} == known


# -- what they say -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_each_call_warns_once_and_points_at_the_callers_line(name: str, sink: MemorySink) -> None:
    function = getattr(stagesink, name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function("nothing", run_id="run", sink=sink)
        line = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
    (warning,) = caught
    assert warning.category is DeprecationWarning
    assert (warning.filename, warning.lineno) == (__file__, line)
    assert str(warning.message).startswith(f"{name} is deprecated: write ArtifactUploader().")


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [None, 5, b"bytes", "", "a\0b", ["list"]], ids=repr)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_path_is_false(name: str, wrong: Any, sink: MemorySink) -> None:
    assert quietly(getattr(stagesink, name), wrong, run_id="run", sink=sink) is False


@pytest.mark.parametrize(
    "options", [{"artifact_path": 5}, {"run_id": 5}, {"max_retries": "many"}, {"base_delay": -1}, {"config_dir": 5}]
)
@pytest.mark.parametrize("name", NAMES)
def test_an_argument_that_makes_no_sense_is_false_and_said(
    name: str, options: dict[str, Any], sink: MemorySink, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    local = out if name == "log_artifacts_safe" else out / "metrics.json"
    assert quietly(getattr(stagesink, name), local, **{"run_id": "run", "sink": sink, **options}) is False
    (record,) = (each for each in caplog.records if each.levelno == logging.ERROR)
    assert record.exc_info is None  # foreseen: a sentence, no trace
    assert landed(sink) == set()


@pytest.mark.parametrize("name", NAMES)
def test_a_failed_upload_is_false_also_where_the_configuration_says_raise(
    name: str, sink: MemorySink, out: Path
) -> None:
    (out / "mlflow.yaml").write_text("artifacts: {on_failure: raise}")
    broken = FaultySink(sink, fails("put", SinkAuthError("no")))
    local = out if name == "log_artifacts_safe" else out / "metrics.json"
    assert quietly(getattr(stagesink, name), local, run_id="run", sink=broken, config_dir=out) is False


@pytest.mark.parametrize(("max_retries", "tried"), [(0, 1), (1, 1), (3, 3)])
def test_it_is_tried_as_often_as_the_caller_said(sink: MemorySink, out: Path, max_retries: int, tried: int) -> None:
    busy = FaultySink(sink, fails("put", BUSY))
    file = out / "metrics.json"
    assert quietly(log_artifact_safe, file, None, "run", max_retries, 0.0, sink=busy) is False
    assert busy.calls["put"] == tried
    passing = FaultySink(sink, fails("put", BUSY, first=tried - 1))
    assert quietly(log_artifact_safe, file, None, "run", max_retries, 0, sink=passing) is True
    assert sink.stat(ArtifactKey("run", "metrics.json")) is not None
