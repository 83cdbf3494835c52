"""``import stagesink`` is fast because it imports nothing but the standard library."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from importlib.metadata import entry_points, version

import pytest

import stagesink

BACKENDS = {
    "adlfs",
    "aiobotocore",
    "azure",
    "boto3",
    "botocore",
    "gcsfs",
    "google",
    "mlflow",
    "obstore",
    "paramiko",
    "s3fs",
    "urllib3",
}
DEMO = {"numpy", "onnx", "onnxruntime", "optuna", "skl2onnx", "sklearn"}


def imported_by(*statements: str) -> set[str]:
    """Return the top-level modules that the statements import in a fresh process, the standard library's left out."""
    program = "\n".join(
        [
            "import sys",
            "before = set(sys.modules)",  # the interpreter's own start brings some, through .pth files
            *statements,
            "import json",
            "new = {name.partition('.')[0] for name in set(sys.modules) - before}",
            "print(json.dumps(sorted(new - sys.stdlib_module_names)))",
        ]
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout))


def modules_of_ours() -> list[str]:
    """Every module that must be importable without an extra: not the pipeline, nor what sink authors test with.

    Nor a driver that needs one: the registry imports it when its scheme is asked for, and says which extra is missing.
    """
    drivers = ("stagesink.sinks._http", "stagesink.sinks.azureml", "stagesink.sinks.mlflow", "stagesink.sinks.obstore")
    others = ("stagesink.pipeline", "stagesink.testing", *drivers)
    found = pkgutil.walk_packages(stagesink.__path__, "stagesink.", onerror=lambda name: None)
    return [m.name for m in found if not m.name.startswith(others) and "__main__" not in m.name]


def test_importing_stagesink_imports_nothing_but_the_standard_library() -> None:
    assert imported_by("import stagesink") == {"stagesink"}


def test_the_check_above_would_see_a_third_party_package() -> None:
    assert "yaml" in imported_by("import yaml")


def test_no_module_imports_a_backend_or_the_demo_before_it_is_used() -> None:
    loaded = imported_by(*(f"import {name}" for name in modules_of_ours()))
    assert "stagesink" in loaded
    assert loaded.isdisjoint(BACKENDS | DEMO)


def test_every_public_name_is_there() -> None:
    assert [name for name in stagesink.__all__ if getattr(stagesink, name, None) is None] == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        stagesink.no_such_name  # noqa: B018


def test_the_version_is_the_one_that_was_installed() -> None:
    assert stagesink.__version__ == version("stagesink")


def test_the_command_is_installed() -> None:
    (command,) = entry_points(group="console_scripts", name="stagesink")
    assert callable(command.load())
