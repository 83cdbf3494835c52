"""What `stagesink[mlflow]` brings is enough: mlflow-skinny, without what only the whole of mlflow has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import Distribution, distribution
from importlib.util import cache_from_source
from pathlib import Path

import pytest
from mlflow_servers import MlflowServer, mlflow_version
from outside import python
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import stagesink

PROGRAM = """
import json, sys
from importlib import metadata
from pathlib import Path

packages, *refused = sys.argv[1:]
sys.path.insert(0, packages)
assert not {found.name.lower().replace("_", "-") for found in metadata.distributions()} & set(refused)

import stagesink
from stagesink.trackers import MLflowTrainingTracker

with MLflowTrainingTracker(experiment="skinny") as tracker:
    tracker.log_params({"epochs": 2})
    tracker.log_metrics({"loss": 0.5}, step=1)
    landed = tracker.log_training_artifacts("out/checkpoint", "out/metrics.json")
facade = stagesink.upload_benchmark_artifacts("out/metrics.json", run_id=tracker.run_id, sink="mlflow:")
sink = stagesink.open_sink("mlflow:")
stagesink.restore(sink, list(stagesink.list_committed(sink, tracker.run_id)), "back")
import mlflow
print(json.dumps([tracker.run_id, landed, facade, Path("back/checkpoint/model.bin").read_text(), mlflow.__file__]))
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder of packages that holds what ``stagesink[mlflow]`` asks for, and no more."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for found in required("stagesink[mlflow]").values():
        link(found, folder)
    if mlflow_version() < (2, 10):  # it imports pkg_resources and does not say so
        link(distribution("setuptools"), folder)
    (folder / "stagesink").symlink_to(Path(stagesink.__file__).parent)
    return folder


def required(requirement: str) -> dict[str, Distribution]:
    """Return what is installed of a requirement and, in their turn, of theirs, by name."""
    found: dict[str, Distribution] = {}
    seen = set()
    waiting = [Requirement(requirement)]
    while waiting:
        each = waiting.pop()
        name = canonicalize_name(each.name)
        for extra in {"", *each.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            found[name] = distribution(name)
            wanted = map(Requirement, found[name].requires or ())
            waiting += [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": extra})]
    return found


def link(found: Distribution, folder: Path) -> None:
    """Have the folder show a package's files, each by itself: mlflow and mlflow-skinny lie in one another."""
    for file in found.files or ():
        source = Path(str(found.locate_file(file)))
        if ".." in file.parts or file.parts[0] == "stagesink" or not source.is_file():
            continue  # commands; and our own modules, which are the ones under test
        places = [(source, folder / file)]
        if source.suffix == ".py":
            compiled = Path(cache_from_source(str(source)))
            places.append((compiled, folder / file.parent / "__pycache__" / compiled.name))
        for there, here in places:
            if there.exists() and not here.is_symlink():
                here.parent.mkdir(parents=True, exist_ok=True)
                here.symlink_to(there)


def test_mlflow_skinny_is_enough(mlflow_server: MlflowServer, packages: Path, tmp_path: Path) -> None:
    refused = {"mlflow", *required("mlflow")} - required("stagesink[mlflow]").keys()
    assert {"flask", "sqlalchemy", "pandas"} <= refused
    (tmp_path / "out" / "checkpoint").mkdir(parents=True)
    (tmp_path / "out" / "checkpoint" / "model.bin").write_text("weights")
    (tmp_path / "out" / "metrics.json").write_text("{}")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run(
        # Without the packages of this environment, and whatever names others.
        [sys.executable, "-I", "-S", "-c", PROGRAM, str(packages), *refused],
        cwd=tmp_path,
        env={**kept, "MLFLOW_TRACKING_URI": mlflow_server.url},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    run_id, landed, facade, restored, imported = json.loads(done.stdout.splitlines()[-1])
    assert (all(landed.values()), all(facade.values()), restored) == (True, True, "weights")
    assert Path(imported).is_relative_to(packages)
    found = mlflow_server.rest("GET", "runs/get", run_id=run_id)["run"]
    assert found["info"]["status"] == "FINISHED"
    assert {each["key"]: each["value"] for each in found["data"]["params"]}["epochs"] == "2"
    assert {each["key"]: each["value"] for each in found["data"]["metrics"]}["loss"] == 0.5
    assert {"checkpoint/model.bin", "metrics.json", "benchmark_results.json"} <= mlflow_server.listed(run_id).keys()


def test_what_mlflow_itself_lacks_is_named(tmp_path: Path) -> None:
    pytest.importorskip("urllib3")
    (tmp_path / "mlflow.py").write_text("import what_it_needs")
    program = """
        import sys
        from stagesink import open_sink
        from stagesink.artifacts import ArtifactKey
        sys.path.insert(0, sys.argv[1])
        try:
            open_sink("mlflow+sqlite:///x.db").stat(ArtifactKey("run", "x"))
        except ImportError as error:
            print(error)
    """
    done = python(program, tmp_path)
    assert done.stdout.strip().endswith("what_it_needs is not installed. pip install 'stagesink[mlflow]'"), done
