"""What is found in other people's code, what is left alone, and what is written instead."""

from __future__ import annotations

import ast
import json
import os
import textwrap
from pathlib import Path
from typing import Any

import pytest

from stagesink.migration import Finding, look_through
from stagesink.migration.rules import find

IMPORTS = "import os\nimport mlflow\nfrom mlflow import MlflowClient\nfrom old import *\n"


def found(code: str, *, imports: str = IMPORTS) -> list[Finding]:
    return find(imports + textwrap.dedent(code), "code.py")


def rules(code: str, *, imports: str = IMPORTS) -> list[str]:
    return [finding.rule for finding in found(code, imports=imports)]


def written(code: str) -> str:
    (finding,) = found(code)
    return finding.write


# -- each rule, and each way to write it -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        # the module's functions, however they were imported
        ("import mlflow\nmlflow.log_artifact(x)", "log-artifact"),
        ("import mlflow\nmlflow.log_artifacts(x)", "log-artifacts"),
        ("import mlflow as m\nm.log_artifact(x)", "log-artifact"),
        ("import mlflow.sklearn\nmlflow.log_artifact(x)", "log-artifact"),
        ("from mlflow import log_artifact\nlog_artifact(x)", "log-artifact"),
        ("from mlflow import log_artifacts as la\nla(x)", "log-artifacts"),
        ("from mlflow import *\nlog_artifact(x)", "log-artifact"),
        ("import mlflow.tracking.fluent as f\nf.log_artifact(x)", "log-artifact"),
        ("from mlflow.tracking import fluent\nfluent.log_artifacts(x)", "log-artifacts"),
        ("import importlib\nm = importlib.import_module('mlflow')\nm.log_artifact(x)", "log-artifact"),
        ("m = __import__('mlflow')\nm.log_artifact(x)", "log-artifact"),
        ("try:\n    import mlflow\nexcept ImportError:\n    mlflow = None\nmlflow.log_artifact(x)", "log-artifact"),
        ("def f():\n    import mlflow\n    def g():\n        mlflow.log_artifact(x)", "log-artifact"),
        ("import mlflow\nlog = mlflow.log_artifact\nlog(x)", "log-artifact"),
        ("import mlflow\n[mlflow.log_artifact(x) for x in y]", "log-artifact"),
        ("import mlflow\nretry(lambda: mlflow.log_artifact(x))", "log-artifact"),
        ("class T:\n    def __init__(self):\n        import mlflow\n        self.m = mlflow\n"
         "    def go(self):\n        self.m.log_artifact(x)", "log-artifact"),
        ("def f():\n    global m\n    import mlflow as m\nm.log_artifact(x)", "log-artifact"),
        ("mlflow.log_artifact(x)", "log-artifact"),  # nothing here says that it is anything else
        # handed on, to be called elsewhere
        ("import mlflow\npool.submit(mlflow.log_artifact, x)", "log-artifact"),
        ("from mlflow import log_artifacts\npartial(log_artifacts, x)", "log-artifacts"),
        ("from mlflow import MlflowClient as C\nc = C()\npool.submit(c.log_artifact, r, x)", "client-log-artifact"),
        # the client, by each of its names
        ("from mlflow import MlflowClient\nMlflowClient().log_artifact(r, x)", "client-log-artifact"),
        ("from mlflow import MlflowClient as C\nC(uri).log_artifacts(r, x)", "client-log-artifacts"),
        ("import mlflow\nmlflow.MlflowClient().log_artifact(r, x)", "client-log-artifact"),
        ("import mlflow\nmlflow.tracking.MlflowClient().log_artifact(r, x)", "client-log-artifact"),
        ("import mlflow.client\nmlflow.client.MlflowClient().log_artifact(r, x)", "client-log-artifact"),
        ("from mlflow.tracking.client import MlflowClient\nMlflowClient().log_artifact(r, x)", "client-log-artifact"),
        ("from mlflow import tracking as t\nt.MlflowClient().log_artifact(r, x)", "client-log-artifact"),
    ],
)  # fmt: skip
def test_every_way_to_import_is_followed(code: str, rule: str) -> None:
    assert rules(code, imports="") == [rule]


@pytest.mark.parametrize(
    "code",
    [
        "client = MlflowClient()\nclient.log_artifact(r, x)",
        "client: MlflowClient = make()\nclient.log_artifact(r, x)",
        "client: 'MlflowClient | None' = None\nclient.log_artifact(r, x)",
        "def f(client: MlflowClient):\n    client.log_artifact(r, x)",
        "def f(*, client: MlflowClient | None = None):\n    client.log_artifact(r, x)",
        "from typing import Optional\ndef f(client: Optional[MlflowClient] = None):\n    client.log_artifact(r, x)",
        "def f(client: 'mlflow.MlflowClient'):\n    client.log_artifact(r, x)",
        "async def f(client: MlflowClient):\n    client.log_artifact(r, x)",
        "def f(client=None):\n    client = client or MlflowClient()\n    client.log_artifact(r, x)",
        "def f(client=None):\n    client = MlflowClient() if client is None else client\n    client.log_artifact(r, x)",
        "if (client := MlflowClient()):\n    client.log_artifact(r, x)",
        "with MlflowClient() as client:\n    client.log_artifact(r, x)",
        "client, n = MlflowClient(), 3\nclient.log_artifact(r, x)",
        "a = b = MlflowClient()\nb.log_artifact(r, x)",
        "one = MlflowClient()\ntwo = one\nthree = two\nthree.log_artifact(r, x)",
        "def make() -> MlflowClient: ...\nmake().log_artifact(r, x)",
        "trainer.client = MlflowClient()\ntrainer.client.log_artifact(r, x)",
        """
        class Tracker:
            def __init__(self):
                self.client = MlflowClient()
            def go(self):
                self.client.log_artifact(r, x)
        """,
        """
        class Tracker:
            def go(self):
                def inner():
                    self._client.log_artifact(r, x)
            def __init__(self, client: MlflowClient):
                self._client = client
        """,
        """
        class Tracker:
            client: MlflowClient
            def go(this):
                this.client.log_artifact(r, x)
        """,
        """
        class Tracker:
            client = MlflowClient()
            @classmethod
            def go(cls):
                cls.client.log_artifact(r, x)
        """,
        """
        class Tracker:
            @property
            def client(self) -> MlflowClient: ...
            def go(self):
                self.client.log_artifact(r, x)
        """,
        """
        class Base:
            def __init__(self):
                self.client: MlflowClient = MlflowClient()
        class Tracker(Base):
            def go(self):
                self.client.log_artifact(r, x)
        """,
        """
        class Tracker:
            def __init__(self):
                self.client = MlflowClient()
        Tracker().client.log_artifact(r, x)
        """,
    ],
)
def test_instances_of_the_client_are_followed(code: str) -> None:
    assert rules(code) == ["client-log-artifact"]


@pytest.mark.parametrize("name", ["log_artifact_safe", "log_artifacts_safe", "upload_checkpoint_archive"])
@pytest.mark.parametrize(
    "code",
    [
        "from infrastructure.tracking.mlflow.artifacts import {name}\n{name}(x)",
        "from ..artifacts import {name} as old\nold(x)",
        "import tracking.artifacts\ntracking.artifacts.{name}(x)",
        "from tracking import artifacts as a\na.{name}(x)",
        "from tracking import *\n{name}(x)",
        "from stagesink import {name}\n{name}(x)",
        "from stagesink.deprecated import {name}\nretry({name}, x)",
    ],
)
def test_the_old_functions_are_found_from_wherever_they_come(name: str, code: str) -> None:
    assert rules(code.format(name=name), imports="") == [name.replace("_", "-")]


@pytest.mark.parametrize(
    "code",
    [
        "mlflow.active_run().info.run_id",
        "mlflow.active_run().info.run_uuid",
        "run = mlflow.active_run()\nif run:\n    run_id = run.info.run_id",
        "info = mlflow.active_run().info\nprint(info.run_id)",
        "(mlflow.active_run() or mlflow.start_run()).info.run_id",
        "from mlflow import active_run as ar\nar().info.run_id",
        "os.environ.get('MLFLOW_RUN_ID')",
        "os.environ.get('MLFLOW_RUN_ID', '')",
        "os.environ['MLFLOW_RUN_ID']",
        "os.getenv('MLFLOW_RUN_ID')",
        "'MLFLOW_RUN_ID' in os.environ",
        "from os import environ as e\ne['MLFLOW_RUN_ID']",
        "from os import getenv\ngetenv('MLFLOW_RUN_ID')",
        "NAME = 'MLFLOW_RUN_ID'\ndef f():\n    return os.environ.get(NAME)",
    ],
)
def test_run_ids_that_are_looked_up_by_hand_are_found(code: str) -> None:
    (finding,) = found(code)
    assert (finding.rule, finding.write) == ("run-id", "get_mlflow_run_id()")


@pytest.mark.parametrize(
    "code",
    [
        "skip = os.environ.get('MLFLOW_SKIP_ARTIFACT_LOGGING', 'false').lower() == 'true'",
        "if os.getenv('MLFLOW_SKIP_ARTIFACT_LOGGING'): pass",
        "os.environ['MLFLOW_SKIP_ARTIFACT_LOGGING']",
    ],
)
def test_the_switch_that_is_read_by_hand_is_found(code: str) -> None:
    assert rules(code) == ["skip-variable"]


# -- what is left alone ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "mlflow.log_metric('a', 1)\nmlflow.log_params({})\nclient = MlflowClient()\nclient.set_tag(r, 'a', 'b')",
        "wandb.log_artifact(x)\nself.log_artifact(x)",
        "def log_artifact(x): ...\nlog_artifact(x)",
        "def f(mlflow):\n    mlflow.log_artifact(x)",
        "def f():\n    mlflow = Fake()\n    mlflow.log_artifact(x)",
        "[mlflow.log_artifact(x) for mlflow in fakes]",
        "lambda mlflow: mlflow.log_artifact(x)",
        "for mlflow in fakes:\n    pass\nclass T:\n    mlflow = Fake()\n    mlflow.log_artifact(x)",
        "def f(client):\n    client.log_artifact(r, x)",
        "class A:\n    def __init__(self):\n        self.client = Other()\n"
        "    def go(self):\n        self.client.log_artifact(r, x)\n"
        "class B:\n    def __init__(self):\n        self.client = MlflowClient()",
        "def f(clients: list[MlflowClient]):\n    clients.log_artifact(r, x)",
        "from stagesink import ArtifactUploader\nArtifactUploader().upload_checkpoint_archive(x)",
        "from stagesink import ArtifactUploader\nuploader = ArtifactUploader()\nuploader.upload_checkpoint_archive(x)",
        "def f(uploader):\n    uploader.upload_checkpoint_archive(x)",
        "def log_artifact_safe(client, r, x): ...\nlog_artifact_safe(c, r, x)",
        "with mlflow.start_run() as run:\n    print(run.info.run_id)",
        "run = client.create_run(e)\nrun.info.run_id",
        "if mlflow.active_run() is None:\n    mlflow.start_run()",
        "class T:\n    def go(self):\n        self.run_id = None\n        return self.run_id",
        "os.environ['MLFLOW_RUN_ID'] = run_id\nos.environ['MLFLOW_SKIP_ARTIFACT_LOGGING'] = 'true'",
        "del os.environ['MLFLOW_RUN_ID']\nenv = {'MLFLOW_RUN_ID': r}\nenv['MLFLOW_RUN_ID']",
        "os.environ.get('MLFLOW_TRACKING_URI')\nos.environ.get(name)\nos.getenv(key='x')",
        "'''mlflow.log_artifact(x)'''  # mlflow.log_artifact(x)",
        "from stagesink import get_mlflow_run_id\nget_mlflow_run_id()",
    ],
)  # fmt: skip
def test_what_is_something_else_is_left_alone(code: str) -> None:
    assert rules(code) == []


def test_a_name_that_keeps_a_found_run_id_is_not_found_again_at_each_use() -> None:
    code = """
        class T:
            def __init__(self):
                self.run_id = mlflow.active_run().info.run_id
            def go(self):
                print(self.run_id, self.run_id)
        """
    assert rules(code) == ["run-id"]


# -- what to write -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        # a file lands where it landed
        ("mlflow.log_artifact(x)", "ArtifactUploader().upload_file(x)"),
        ("mlflow.log_artifact(x, None)", "ArtifactUploader().upload_file(x)"),
        ("mlflow.log_artifact(str(x))", "ArtifactUploader().upload_file(x)"),
        ("mlflow.log_artifact(x, 'reports')", 'ArtifactUploader().upload_file(x, f"reports/{Path(x).name}")'),
        ("mlflow.log_artifact(local_path=x, artifact_path='a/b')",
         'ArtifactUploader().upload_file(x, f"a/b/{Path(x).name}")'),
        ("mlflow.log_artifact('out/m.json', 'a')", "ArtifactUploader().upload_file('out/m.json', \"a/m.json\")"),
        ("mlflow.log_artifact(out / 'm.json', 'a')", "ArtifactUploader().upload_file(out / 'm.json', \"a/m.json\")"),
        ("mlflow.log_artifact(os.path.join(d, 'm.json'), 'a')",
         "ArtifactUploader().upload_file(os.path.join(d, 'm.json'), \"a/m.json\")"),
        ("mlflow.log_artifact(f'{d}/m.json', 'a')", "ArtifactUploader().upload_file(f'{d}/m.json', \"a/m.json\")"),
        ("mlflow.log_artifact(d['x'], 'a')", "ArtifactUploader().upload_file(d['x'], f\"a/{Path(d['x']).name}\")"),
        ('mlflow.log_artifact(d["x"], "a")', 'ArtifactUploader().add_files(d["x"], "a")'),
        ("mlflow.log_artifact(x, folder)", "ArtifactUploader().add_files(x, folder)"),
        ("mlflow.log_artifact(x, f'a/{b}')", "ArtifactUploader().add_files(x, f'a/{b}')"),
        # the run is kept
        ("mlflow.log_artifact(x, run_id=r)", "ArtifactUploader(r).upload_file(x)"),
        ("MlflowClient().log_artifact(r, x)", "ArtifactUploader(r).upload_file(x)"),
        ("MlflowClient().log_artifact(run.info.run_id, x, 'a')",
         'ArtifactUploader(run.info.run_id).upload_file(x, f"a/{Path(x).name}")'),
        ("MlflowClient().log_artifacts(local_dir=d, run_id=r)", "ArtifactUploader(r).add_files(d)"),
        # a folder: other calls may fill it too
        ("mlflow.log_artifacts(d)", "ArtifactUploader().add_files(d)"),
        ("mlflow.log_artifacts(d, 'plots')", "ArtifactUploader().add_files(d, 'plots')"),
        ("mlflow.log_artifacts(str(d), artifact_path='checkpoint')",
         "ArtifactUploader().add_files(d, 'checkpoint')"),
        ("mlflow.log_artifacts(checkpoint, 'best')", "ArtifactUploader().add_files(checkpoint, 'best')"),
        # the old functions, with their patience
        ("log_artifact_safe(x, 'a', r)", 'ArtifactUploader(r).upload_file(x, f"a/{Path(x).name}")'),
        ("log_artifact_safe(x, max_retries=3, base_delay=1.5, config_dir=c)",
         "ArtifactUploader(config_dir=c, attempts=3, initial=1.5).upload_file(x)"),
        ("log_artifact_safe(x, None, r, 3)", "ArtifactUploader(r, attempts=3).upload_file(x)"),
        ("log_artifacts_safe(d, 'plots', run_id=r, sink=s)", "ArtifactUploader(r, sink=s).add_files(d, 'plots')"),
        ("upload_checkpoint_archive(a)", "ArtifactUploader().upload_checkpoint_archive(a)"),
        ("upload_checkpoint_archive(archive_path=a, manifest=m, artifact_path=p, run_id=r)",
         "ArtifactUploader(r).upload_checkpoint_archive(a, m, p)"),
        ("upload_checkpoint_archive(a, artifact_path=p)",
         "ArtifactUploader().upload_checkpoint_archive(a, artifact_path=p)"),
        # what is not spelled out
        ("mlflow.log_artifact(*a)", "ArtifactUploader().add_files"),
        ("mlflow.log_artifact(**a)", "ArtifactUploader().add_files"),
        ("mlflow.log_artifact(x, unknown=1)", "ArtifactUploader().add_files"),
        ("mlflow.log_artifact()", "ArtifactUploader().add_files"),
        ("mlflow.log_artifact(a, b, c, d, e)", "ArtifactUploader().add_files"),
        ("MlflowClient().log_artifacts(*a)", "ArtifactUploader(run_id).add_files"),
        ("upload_checkpoint_archive(*a)", "ArtifactUploader().upload_checkpoint_archive"),
        ("pool.submit(mlflow.log_artifact, x)", "ArtifactUploader().add_files"),
    ],
)  # fmt: skip
def test_what_is_written_instead(code: str, expected: str) -> None:
    assert written(code) == expected
    ast.parse(expected)


@pytest.mark.parametrize(
    ("code", "expected", "note"),
    [
        (
            "mlflow.log_artifact('out/metrics.json', 'metrics.json')",
            '"metrics.json/metrics.json"',
            '"metrics.json" was',
        ),
        ("mlflow.log_artifact(x, 'metrics.json')", 'f"metrics.json/{Path(x).name}"', 'write "metrics.json"'),
    ],
)
def test_the_usual_trap_is_kept_and_said(code: str, expected: str, note: str) -> None:
    (finding,) = found(code)
    assert expected in finding.write
    assert note in finding.note


@pytest.mark.parametrize(
    ("code", "note"),
    [
        ('MlflowClient("http://other:5000").log_artifact(r, "a.txt")', 'sink="mlflow+<tracking URI>"'),
        ('c = MlflowClient(tracking_uri=uri)\nc.log_artifacts(r, "out")', 'sink="mlflow+<tracking URI>"'),
        ('mlflow.set_tracking_uri(uri)\nmlflow.log_artifact("a.txt")', 'sink="mlflow+<tracking URI>"'),
        ('MlflowClient().log_artifact(r, "a.txt")', None),
        ('mlflow.log_artifact("model_dir")', 'if it is a folder, add_files("model_dir", "model_dir")'),
        ('mlflow.log_artifact("a.txt")', None),
    ],
)
def test_what_the_old_call_knew_is_not_lost(code: str, note: str | None) -> None:
    (finding,) = found(code)
    assert finding.note == "" if note is None else note in finding.note


def test_what_is_written_lands_where_the_old_call_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words are run: each file is where mlflow would have put it."""
    from stagesink import ArtifactUploader, open_sink

    monkeypatch.chdir(tmp_path)
    Path("plots").mkdir()
    for name in ("a.txt", "b.txt", "c.txt", "d.txt", "plots/e.txt"):
        Path(name).write_text(name)
    code = """
        MlflowClient().log_artifact("run", a)
        MlflowClient().log_artifact("run", b, "deep/er")
        MlflowClient().log_artifact("run", c, folder)
        MlflowClient().log_artifact("run", str(d), "d.txt")
        MlflowClient().log_artifacts("run", "plots", "figures")
        """
    names: dict[str, Any] = {"ArtifactUploader": ArtifactUploader, "Path": Path, "folder": "any"}
    names |= {"a": "a.txt", "b": Path("b.txt"), "c": "c.txt", "d": Path("d.txt")}
    monkeypatch.setenv("STAGESINK_SINK", "file:store")
    assert [eval(finding.write, names) for finding in found(code)] == [True] * 5
    there = {stored.key.path for stored in open_sink("file:store").list("run")}
    assert {path for path in there if not path.endswith("manifest.json")} == {
        *("a.txt", "deep/er/b.txt", "any/c.txt", "d.txt/d.txt", "figures/e.txt"),
    }


# -- a real trainer ----------------------------------------------------------------------------------------------------

TRAINER = '''\
import os
import sys
from pathlib import Path

from common.shared.logging_utils import get_logger

log = get_logger(__name__)


def log_training_artifacts(output_dir: Path, config: dict) -> None:
    """What grew at the end of training, as it stands in many a trainer."""
    skip_artifact_logging = os.environ.get("MLFLOW_SKIP_ARTIFACT_LOGGING", "false").lower() == "true"
    if skip_artifact_logging:
        print("  [Training] Skipping artifact logging...", file=sys.stderr, flush=True)
        return
    try:
        import mlflow
        from mlflow.tracking import MlflowClient

        active_run = mlflow.active_run()
        run_id = None
        if active_run:
            run_id = active_run.info.run_id
        else:
            run_id = os.environ.get("MLFLOW_RUN_ID")
        if not run_id:
            print("  [Training] No MLflow run available", file=sys.stderr, flush=True)
            return
        tracking = config.get("tracking", {}).get("training", {})
        checkpoint_dir = output_dir / "checkpoint"
        if tracking.get("log_checkpoint", True) and checkpoint_dir.exists():
            try:
                if active_run:
                    mlflow.log_artifacts(str(checkpoint_dir), artifact_path="checkpoint")
                else:
                    client = MlflowClient()
                    for file_path in checkpoint_dir.rglob("*"):
                        if file_path.is_file():
                            client.log_artifact(run_id, str(file_path), artifact_path="checkpoint")
            except Exception as error:
                log.debug(f"Could not log the checkpoint: {error}")
        metrics_json = output_dir / "metrics.json"
        if tracking.get("log_metrics_json", True) and metrics_json.exists():
            try:
                if active_run:
                    mlflow.log_artifact(str(metrics_json), artifact_path="metrics.json")
                else:
                    MlflowClient().log_artifact(run_id, str(metrics_json))
            except Exception as error:
                log.debug(f"Could not log metrics.json: {error}")
    except ImportError:
        log.debug("mlflow is not installed")
'''


def test_a_whole_trainer(tmp_path: Path) -> None:
    (tmp_path / "trainer.py").write_text(TRAINER)
    report = look_through([tmp_path])
    assert [(finding.line, finding.rule, finding.write) for finding in report.findings] == [
        (12, "skip-variable", "leave the check out"),
        (23, "run-id", "get_mlflow_run_id()"),
        (25, "run-id", "get_mlflow_run_id()"),
        (34, "log-artifacts", 'ArtifactUploader().add_files(checkpoint_dir, "checkpoint")'),
        (39, "client-log-artifact",
         'ArtifactUploader(run_id).upload_file(file_path, f"checkpoint/{Path(file_path).name}")'),
        (46, "log-artifact",
         'ArtifactUploader().upload_file(metrics_json, f"metrics.json/{Path(metrics_json).name}")'),
        (48, "client-log-artifact", "ArtifactUploader(run_id).upload_file(metrics_json)"),
    ]  # fmt: skip
    assert 'write "metrics.json"' in report.findings[5].note
    lines = TRAINER.splitlines()
    for finding in report.findings:
        assert lines[finding.line - 1][finding.column - 1 :].startswith(finding.found)


# -- files -------------------------------------------------------------------------------------------------------------

CALL = "import mlflow\nmlflow.log_artifact(x)\n"


def files_found(folder: Path) -> list[str]:
    return [Path(finding.path).relative_to(folder).as_posix() for finding in look_through([folder]).findings]


def test_folders_are_searched_but_for_what_is_not_ours(tmp_path: Path) -> None:
    ours = ["a.py", "deep/er/b.py", "notebooks/c.py"]
    others = ["notes.txt", "a.pyc"]
    others += [
        f"{name}/x.py" for name in (".git", ".venv", "lib/site-packages", "__pycache__", "a/node_modules", ".tox")
    ]
    others += ["myenv/bin/x.py"]
    for name in (*ours, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(CALL)
    (tmp_path / "myenv" / "pyvenv.cfg").touch()
    os.mkfifo(tmp_path / "pipe.py")
    assert files_found(tmp_path) == ours
    assert look_through([tmp_path]).files == len(ours)


def test_a_file_is_looked_at_once_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "script").write_text(CALL)
    (tmp_path / "a.py").write_text(CALL)
    report = look_through([tmp_path / "script", tmp_path / "a.py", tmp_path, tmp_path / "a.py"])
    assert (report.files, len(report.findings)) == (2, 2)


@pytest.mark.parametrize(
    ("data", "line", "said"),
    [
        (b"x = 1\ny = (", 2, "never closed"),
        (b"print 'two'", 1, "parentheses"),
        (b"# coding: no-such\n", 1, "no-such"),
        (b"x = '\xff'", 1, ""),
        (b"x = 1\0", 1, "null byte"),
        (b"(" * 5000 + b")" * 5000, 1, "nested"),
        (b"x = y" + b".a()" * 10_000, 1, "nested"),
    ],
    ids=["open", "python2", "encoding", "bytes", "null", "nested", "chained"],
)
def test_a_file_that_cannot_be_read_is_a_finding_of_its_own(tmp_path: Path, data: bytes, line: int, said: str) -> None:
    (tmp_path / "bad.py").write_bytes(data)
    (tmp_path / "good.py").write_text(CALL)
    report = look_through([tmp_path])
    bad, good = report.findings
    assert (bad.rule, bad.line, good.rule) == ("unreadable", line, "log-artifact")
    assert said in bad.found
    assert report.unreadable == 1


def test_a_link_to_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")
    (finding,) = look_through([tmp_path]).findings
    assert (finding.rule, finding.found) == ("unreadable", "No such file or directory")


@pytest.mark.parametrize(
    "data", ["﻿".encode() + CALL.encode(), CALL.replace("\n", "\r\n").encode()], ids=["bom", "crlf"]
)
def test_every_text_that_python_takes_is_taken(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.py").write_bytes(data)
    (finding,) = look_through([tmp_path]).findings
    assert (finding.line, finding.column) == (2, 1)


def test_columns_are_characters_and_another_encoding_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(
        "# coding: latin-1\nimport mlflow\n'äö'; mlflow.log_artifact('ü')".encode("latin-1")
    )
    (finding,) = look_through([tmp_path]).findings
    assert (finding.line, finding.column, finding.found) == (3, 7, "mlflow.log_artifact('ü')")


def test_what_somebody_elses_code_would_warn_of_is_not_warned_of(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(f'"\\d"\n1 is 1\n{CALL}')
    assert files_found(tmp_path) == ["a.py"]


def test_a_call_over_several_lines_is_one_line() -> None:
    (finding,) = found("mlflow.log_artifact(\n    x,\n    'a',\n)")
    assert finding.found == "mlflow.log_artifact(x, 'a')"
    assert "\n" not in str(finding)


# -- notebooks ---------------------------------------------------------------------------------------------------------


def notebook(folder: Path, *cells: str | list[str]) -> Path:
    """Write a notebook; its second cell is text."""
    code = [{"cell_type": "code", "source": cell, "metadata": {}, "outputs": []} for cell in cells]
    code.insert(1, {"cell_type": "markdown", "source": "mlflow.log_artifact(x)", "metadata": {}, "outputs": []})
    path = folder / "a.ipynb"
    path.write_text(json.dumps({"cells": code, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}))
    return path


def test_a_notebook_is_one_module_and_its_places_are_told_by_cell(tmp_path: Path) -> None:
    notebook(tmp_path, "import mlflow as m", "x = 1\n\nm.log_artifact(x)", ["m.log_artifacts(\n", "    x)\n"], "")
    first, second = look_through([tmp_path]).findings
    assert (first.cell, first.line, first.rule) == (3, 3, "log-artifact")
    assert (second.cell, second.line, second.rule) == (4, 1, "log-artifacts")
    assert str(first).startswith(f"{tmp_path}/a.ipynb:cell 3:3:1: log-artifact: m.log_artifact(x) -> ")


def test_magics_are_no_obstacle(tmp_path: Path) -> None:
    cells = (
        "%pip install mlflow\n!ls\nimport mlflow",
        "%%bash\nmlflow.log_artifact(",
        "%%time\nmlflow.log_artifact(x)",
    )
    more = ("y = !ls\nfiles = %sx ls\nmlflow?\nif y:\n    %matplotlib inline\n    mlflow.log_artifact(y)",)
    operator = ("z = ('%s'\n     %w)\nmlflow.log_artifact(z)",)
    findings = look_through([notebook(tmp_path, *cells, *more, *operator)]).findings
    assert [(finding.cell, finding.line) for finding in findings] == [(4, 2), (5, 6), (6, 3)]


def test_a_cell_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    findings = look_through([notebook(tmp_path, "import mlflow", "x = (", "mlflow.log_artifact(x)")]).findings
    assert [(finding.cell, finding.line, finding.rule) for finding in findings] == [
        (3, 1, "unreadable"),
        (4, 1, "log-artifact"),
    ]


@pytest.mark.parametrize("text", ["{", "[]", '{"worksheets": []}', '{"cells": 3}'])
def test_what_is_no_notebook_is_unreadable(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.ipynb").write_text(text)
    (finding,) = look_through([tmp_path]).findings
    assert (finding.rule, finding.cell) == ("unreadable", None)
