"""The threat page: each row names tests that exist; and two of its rows that are about the code as a whole."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import stagesink
from stagesink.config import load_config
from stagesink.errors import ConfigError

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "security.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
PACKAGE = Path(stagesink.__file__).parent

# What makes code run of what it reads.
RUNS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "torch"}
CALLS = {"eval", "exec", "__import__"}


def rows() -> list[str]:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [line for line in lines if not line.startswith("| what |")]


def test_every_row_of_the_page_names_a_test() -> None:
    assert len(rows()) > 20
    assert [row for row in rows() if not NAMED.search(row.rsplit(" | ", 1)[1])] == []


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED.findall(PAGE.read_text(encoding="utf-8"))}))
def test_every_test_that_the_page_names_exists(file: str) -> None:
    wanted = {name for each, name in NAMED.findall(PAGE.read_text(encoding="utf-8")) if each == file}
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert wanted - {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)} == set()


def test_nothing_that_runs_code_is_read() -> None:
    # The package of tests for sinks' authors pickles what it has made itself; the demo trains a model.
    files = [each for each in PACKAGE.rglob("*.py") if not {"testing", "pipeline"} & set(each.parts)]
    found = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names} & RUNS
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").partition(".")[0]} & RUNS
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = {node.func.id} & CALLS
            else:
                continue
            found += [f"{file.relative_to(PACKAGE)}:{node.lineno} {name}" for name in names]
    assert len(files) > 100
    assert found == []


@pytest.mark.parametrize(
    "value", ["!!python/object/apply:os.system ['touch made']", "!!python/name:os.system", "!!python/module:os"]
)
def test_a_tag_of_python_makes_no_object(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.yaml").write_text(f"artifacts:\n  sink: {value}\n")
    with pytest.raises(ConfigError):
        load_config(tmp_path)
    assert not (tmp_path / "made").exists()
