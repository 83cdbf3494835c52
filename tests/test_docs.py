"""What the README and the guides show works as it is written there."""

from __future__ import annotations

import ast
import importlib
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main

from stagesink.cli.app import app
from stagesink.migration.findings import Rule
from stagesink.migration.rules import find
from stagesink.sinks import ArtifactSink
from stagesink.testing import SinkConformance

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
SINK_GUIDE = ROOT / "docs" / "writing-a-sink.md"
MIGRATION = ROOT / "docs" / "migration.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def _python(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def _old_python(page: Path) -> list[str]:
    """What a reader is told to replace; it is not meant to run."""
    return re.findall(r"^```py\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def _block(page: Path, word: str) -> str:
    (found,) = (block for block in _python(page) if word in block)
    return found


def _run(code: str) -> list[Any]:
    """Run an example and return what its expressions gave, one by one."""
    names: dict[str, Any] = {"__name__": "example"}
    values = []
    for statement in ast.parse(code).body:
        if isinstance(statement, ast.Expr):
            values.append(eval(compile(ast.Expression(statement.value), "example", "eval"), names))
        else:
            exec(compile(ast.Module([statement], []), "example", "exec"), names)
    return values


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the examples hand over lie in the working folder; what lands for the run is returned."""
    for name in ("out/checkpoint/model.bin", "out/metrics.json", "out/model.onnx", "out/benchmark.json"):
        _write(tmp_path / name)
    _write(tmp_path / "out/report.html")
    _write(tmp_path / "out/plots/loss.svg")
    _write(tmp_path / "trials/7/checkpoint/model.bin")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STAGESINK_RUN_ID", "run-42")
    return tmp_path / "artifacts" / "run-42"


def _write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(path.name)


def _landed(store: Path) -> set[str]:
    found = {path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()}
    return {path for path in found if not path.endswith("manifest.json")}


# -- Python ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_that_is_imported_exists(page: Path) -> None:
    for block in _python(page):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []


def test_the_first_example_gives_what_it_says(store: Path) -> None:
    example = _block(README, "{'checkpoint': True")
    (said,) = re.findall(r"^# (\{.*\})$", example, re.MULTILINE)
    assert _run(example.replace("s3://models/runs", "file:./artifacts")) == [ast.literal_eval(said)]
    assert _landed(store) == {"checkpoint/model.bin", "metrics.json"}


def test_the_stage_helpers_land_where_the_readme_says(store: Path) -> None:
    answers = _run(_block(README, "upload_hpo_artifacts"))
    assert len(answers) == 4
    assert all(all(answer.values()) if isinstance(answer, dict) else answer for answer in answers)
    assert _landed(store) == {
        "checkpoint/model.bin",
        "metrics.json",
        "onnx_model/model.onnx",
        "benchmark_results.json",
        "best_trial_checkpoint.tar.gz",
    }


def test_the_example_of_trackers_runs(store: Path) -> None:
    _run(_block(README, "MLflowTrainingTracker("))
    assert _landed(store) == {"checkpoint/model.bin", "metrics.json", "benchmark_results.json"}


def test_the_uploader_example_runs(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(_block(README, "uploader.receipts"))
    assert _landed(store) == {"checkpoint/model.bin", "reports/final.html"}
    *receipts, metrics = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in receipts if "manifest.json" not in line] == [
        "checkpoint/model.bin",
        "reports/final.html",
    ]
    (said,) = re.findall(r"print\(uploader\.metrics\)\s+# (.*), by stage and sink", README.read_text(encoding="utf-8"))
    (of_sink,) = ast.literal_eval(metrics)["training"].values()
    assert said.split(", ") == list(of_sink)


def test_the_example_of_the_background_runs(store: Path) -> None:
    example = _block(README, "background=True").replace("s3://models/runs", "file:./artifacts")
    _run(f"from stagesink import ArtifactUploader\ntrain_on = lambda: None\n{example}")
    assert _landed(store) == {"checkpoint/model.bin"}


def test_the_guide_to_sinks_shows_a_whole_sink_and_exempts_what_there_is(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    for block in _python(SINK_GUIDE):
        exec(compile(block, "example", "exec"), names)
    sink = names["ShelfSink"]("shelf://me:hunter2@host/runs", {})
    assert isinstance(sink, ArtifactSink)
    assert "hunter2" not in sink.uri
    suite = names["TestShelfSink"]  # an exemption of what does not exist would have been refused
    assert issubclass(suite, SinkConformance)
    assert suite.exemptions


def test_the_guide_to_migration_lands_where_it_says(store: Path) -> None:
    for block in _python(MIGRATION):
        assert all(all(a.values()) if isinstance(a, dict) else a for a in _run(block) if a is not None)
    assert _landed(store) == {
        "checkpoint/model.bin",
        "metrics.json",
        "onnx_model/model.onnx",
        "benchmark_results.json",
        "best_trial_checkpoint.tar.gz",
        "plots/loss.svg",
        "reports/report.html",
    }


def test_what_the_guide_replaces_is_found_and_what_it_writes_is_not() -> None:
    for block in _old_python(MIGRATION)[1:]:  # the first is an import alone
        assert find(f"import mlflow, os\nfrom mlflow import MlflowClient\n{block}", "old.py") != []
    for block in _python(MIGRATION):
        assert find(block, "new.py") == []


def test_the_guide_names_every_rule() -> None:
    named = set(re.findall(r"`([a-z-]+)`", "".join(re.findall(r"^\| `.*", MIGRATION.read_text("utf-8"), re.MULTILINE))))
    assert named >= set(get_args(Rule))


# -- the command -------------------------------------------------------------------------------------------------------


def _typed(page: Path) -> Iterator[list[str]]:
    """Each command line that a reader would type, without ``stagesink`` and its comment."""
    for line in re.findall(r"^\$ stagesink (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        yield shlex.split(line, comments=True)


def _command(words: list[str]) -> tuple[Any, list[str]]:
    """Find the command, also in a group of commands, and what is left to be its arguments."""
    command, rest = COMMANDS[words[0]], words[1:]
    while rest and rest[0] in getattr(command, "commands", ()):
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def _options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


def test_every_command_is_shown() -> None:
    assert {line[0] for line in _typed(README)} >= COMMANDS.keys() - {"demo"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_line_is_understood(page: Path) -> None:
    for line in _typed(page):
        command, arguments = _command(line)
        command.make_context(line[0], arguments).close()  # parses, and runs nothing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_named_in_the_text_exist(page: Path) -> None:
    for words in re.findall(r"`stagesink ([^`]+)`", page.read_text(encoding="utf-8")):
        command, rest = _command([word.split("|")[0] for word in words.split()])
        assert {word for word in rest if word.startswith("-")} <= _options(command)


def test_the_options_that_all_are_said_to_take_exist() -> None:
    text = README.read_text(encoding="utf-8")
    assert "Each but `run` takes `--json`; `upload` and `restore` take `--dry-run`." in text
    groups = [command.commands.values() for command in COMMANDS.values() if hasattr(command, "commands")]
    single = [command for name, command in COMMANDS.items() if not hasattr(command, "commands") and name != "run"]
    assert all("--json" in _options(command) for command in [*single, *itertools.chain(*groups)])
    assert {name for name, command in COMMANDS.items() if "--dry-run" in _options(command)} == {"upload", "restore"}
