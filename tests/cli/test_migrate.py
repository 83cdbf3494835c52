from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CALL = 'import mlflow\nmlflow.log_artifact(x, "reports")\n'
WRITE = 'ArtifactUploader().upload_file(x, f"reports/{Path(x).name}")'


def test_nothing_to_do_is_success(run):
    Path("a.py").write_text("print('hello')\n")
    answer = run("migrate", ".")
    assert (answer.code, answer.out) == (0, "")
    assert answer.err == "1 file: 0 places to change.\n"


def test_each_finding_is_one_line_that_an_editor_can_follow(run):
    Path("src").mkdir()
    Path("src/a.py").write_text(CALL + "mlflow.log_artifacts(\n    y)\n")
    answer = run("migrate", "src")
    assert answer.code == 1
    assert answer.out.splitlines() == [
        f'src/a.py:2:1: log-artifact: mlflow.log_artifact(x, "reports") -> {WRITE}',
        "src/a.py:3:1: log-artifacts: mlflow.log_artifacts(y) -> ArtifactUploader().add_files(y)",
    ]
    assert answer.err.startswith("1 file: 2 places to change.\n")


def test_code_is_shown_as_it_is(run):
    """Brackets are no markup, and nothing is folded."""
    Path("a.py").write_text(f"import mlflow\nmlflow.log_artifact(x['[red]'], 'a' * 300, {'y' * 300!r})\n")
    answer = run("migrate", "a.py")
    (line,) = answer.out.splitlines()
    assert "x['[red]']" in line
    assert "y" * 300 in line


def test_json_has_the_same_and_its_shape_is_fixed(run):
    Path("a.py").write_text(CALL)
    Path("b.ipynb").write_text(json.dumps({"cells": [{"cell_type": "code", "source": CALL}]}))
    answer = run("migrate", "a.py", "b.ipynb", "--json")
    assert (answer.code, answer.err) == (1, "")
    first, second = answer.json["findings"]
    assert answer.json["files"] == 2
    assert first == {
        "path": "a.py",
        "line": 2,
        "column": 1,
        "rule": "log-artifact",
        "found": 'mlflow.log_artifact(x, "reports")',
        "write": WRITE,
        "note": "",
        "cell": None,
    }
    assert second == {**first, "path": "b.ipynb", "cell": 1}


def test_quiet_leaves_the_findings_alone(run):
    Path("a.py").write_text(CALL)
    answer = run("migrate", "a.py", "-q")
    assert len(answer.out.splitlines()) == 1
    assert answer.err == ""


@pytest.mark.parametrize("others", [{}, {"good.py": CALL}])
def test_what_cannot_be_parsed_is_a_finding_and_2(run, others):
    for name, text in {"bad.py": "x = (", **others}.items():
        Path(name).write_text(text)
    answer = run("migrate", ".")
    assert answer.code == 2
    assert answer.out.startswith("bad.py:1:5: unreadable: ")
    assert len(answer.out.splitlines()) == 1 + len(others)
    assert f"{1 + len(others)} file" in answer.err
    assert "1 not readable" in answer.err


@pytest.mark.parametrize("arguments", [[], ["no-such"], [".", ""], ["--nope", "."]])
def test_wrong_usage_is_2(run, arguments):
    answer = run("migrate", *arguments, "--json")
    assert answer.code == 2
    assert answer.json["error"]["type"] == "UsageError"


def test_the_code_is_not_run_and_nothing_heavy_is_imported(tmp_path):
    (tmp_path / "a.py").write_text(f"raise SystemExit(77)\n{CALL}")
    program = (
        "import sys; sys.argv = ['stagesink', 'migrate', '.']\nfrom stagesink.cli import main\n"
        "try: main()\nexcept SystemExit as end: print(end.code, {'mlflow', 'fsspec', 'yaml'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout.splitlines()[-1] == "1 set()"
