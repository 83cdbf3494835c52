"""What docker/ names is there. Lint checks the files' form, test_mlflow_compose runs its commands."""

from __future__ import annotations

import fnmatch
import re
import shlex
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from compose import FOLDER, ROOT, Service, Stage, azurite_version, compose, services, stages

PAGE = (ROOT / "docs/docker.md").read_text()
PINNED = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
PROGRAMS = {"stagesink", "python", "mlflow", "moto_server", "azurite-blob"}
"""What the commands run: scripts of packages that the images have, which test_mlflow_compose runs by these names."""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    if sys.version_info < (3, 11):
        pytest.skip("pyproject.toml is read where Python can")
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def copied(stage: Stage) -> list[str]:
    """What a stage copies from the repository."""
    words = [shlex.split(line) for line in stage.named("COPY") if "--from=" not in line]
    return [source for *sources, _ in words for source in sources]


def installed_by(stage: Stage) -> list[list[str]]:
    """The arguments of each installation in a stage."""
    commands = [command for line in stage.named("RUN") for command in line.split("&&")]
    return [shlex.split(command) for command in commands if "pip install" in command]


# -- Dockerfile --------------------------------------------------------------------------------------------------------


def test_all_that_is_copied_is_there_and_reaches_the_builder_and_nothing_else_does() -> None:
    sources = {path for stage in stages().values() for path in copied(stage)}
    assert [path for path in sources if not (ROOT / path).exists()] == []
    lines = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == sources
    assert not any(fnmatch.fnmatch(path, rule) for path in sources for rule in rules[1:])


def test_stages_stand_on_those_before_them() -> None:
    known: list[str] = []
    for stage in stages().values():
        assert stage.base in known or stage.base == "python:${PYTHON}-slim"
        for line in stage.named("COPY"):
            source = re.match(r"--from=(\S+)", line)
            assert source is None or source[1] in known
        known.append(stage.name)
    assert known[-1] == "cli"  # the one that is built where none is named


@pytest.mark.parametrize("name", ["servers", "trainer", "cli"])
def test_what_runs_is_not_root_and_has_nothing_that_was_needed_to_build_it(name: str) -> None:
    stage = stages()[name]
    assert stage.base == "run"
    assert stages()["run"].named("USER") == ["1000"]
    assert not stage.named("USER") + stage.named("RUN")


def test_every_version_is_a_pinned_one() -> None:
    installations = [arguments for stage in stages().values() for arguments in installed_by(stage)]
    assert installations
    for arguments in installations:
        assert arguments[arguments.index("--constraint") + 1] == "constraints.txt"


def test_extras_groups_and_packages_are_those_of_the_project(project: dict[str, Any]) -> None:
    extras: dict[str, set[str]] = {}
    for stage in stages().values():
        for arguments in installed_by(stage):
            words = iter(arguments[arguments.index("install") + 1 :])
            for word in words:
                if word == "--group":
                    assert next(words) in project["dependency-groups"]
                elif word.startswith("-"):
                    next(words)
                elif found := re.fullmatch(r"\.\[(.*)\]", word):
                    extras[stage.name] = set(found[1].split(","))
                else:
                    assert word in PINNED
    every = set(project["project"]["optional-dependencies"]) - {"all", "testing"}
    assert extras == {"build": every - {"demo"}, "build-trainer": {"demo"}}


def test_the_python_is_one_that_the_package_is_tested_on(project: dict[str, Any]) -> None:
    (version,) = re.findall(r"^ARG PYTHON=(\S+)", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    assert f"Programming Language :: Python :: {version}" in project["project"]["classifiers"]


# -- compose.yaml ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=services())
def service(request: pytest.FixtureRequest) -> Service:
    return services()[request.param]


def test_a_service_is_built_from_a_stage_or_is_the_azurite_of_the_tests(service: Service) -> None:
    build = service.settings.get("build")
    if build is None:
        assert service.settings["image"] == f"mcr.microsoft.com/azure-storage/azurite:{azurite_version()}"
    else:
        assert (FOLDER / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).is_file()
        assert build["target"] in stages()


def test_a_command_runs_what_the_image_has(service: Service) -> None:
    program, *arguments = service.command
    assert program in PROGRAMS
    target = service.settings.get("build", {}).get("target")
    places = [shlex.split(line)[-1] for line in stages()[target].named("COPY")] if target else []
    if program == "python":
        assert arguments[0] in places


def test_a_service_waits_for_services_that_tell_when_they_are_ready(service: Service) -> None:
    for name, how in service.settings.get("depends_on", {}).items():
        ready = "healthcheck" in services()[name].settings
        assert how["condition"] == ("service_healthy" if ready else "service_completed_successfully")


def test_a_server_is_looked_for_and_published_where_it_listens(service: Service) -> None:
    if service.port is None:
        assert not service.settings.keys() & {"ports", "healthcheck"}
    else:
        assert service.settings["ports"] == [f"127.0.0.1:{service.port}:{service.port}"]
        assert str(service.port) in " ".join(service.settings["healthcheck"]["test"])


def test_other_services_are_named_by_name_and_port(service: Service) -> None:
    for value in service.environment.values():
        for found in re.findall(r"http://[^\s;]+", value):
            url = urlsplit(found)
            assert url.hostname in services()
            assert url.port == services()[url.hostname].port


def test_what_is_kept_lies_in_a_volume(service: Service) -> None:
    volumes = [line.partition(":") for line in service.settings.get("volumes", [])]
    assert {name for name, _, _ in volumes} <= compose()["volumes"].keys()
    assert ("/data" in " ".join(service.command)) == ("/data" in [folder for _, _, folder in volumes])


# -- The guide ---------------------------------------------------------------------------------------------------------


def test_the_guide_names_files_targets_and_ports_that_are_there() -> None:
    assert re.findall(r"docker/[\w.]+", PAGE)
    assert [path for path in re.findall(r"docker/[\w.]+\w", PAGE) if not (ROOT / path).exists()] == []
    assert set(re.findall(r"--target (\S+)", PAGE)) <= stages().keys()
    assert {int(port) for port in re.findall(r"localhost:(\d+)", PAGE)} <= {one.port for one in services().values()}
    _, table = PAGE.split("## The services")
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \|", table, re.MULTILINE)) == services().keys()


def test_the_folder_holds_what_the_guide_is_about() -> None:
    assert {path.name for path in Path(FOLDER).iterdir()} == {
        *("Dockerfile", "Dockerfile.dockerignore"),
        *("compose.yaml", "make_stores.py"),
    }
