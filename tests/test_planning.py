"""What is handed over becomes a plan: where each thing goes, and what cannot be planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stagesink.config import load_config
from stagesink.errors import ConfigError, SourceNotFound
from stagesink.planning import Planner, additions, checked, name_of


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    (folder / "logs").mkdir(parents=True)
    (folder / "logs/a.txt").write_text("a")
    (folder / "logs/b.txt").write_text("b")
    (folder / "top.bin").write_bytes(b"x")
    return folder


def planner(tmp_path: Path, *, pack: str = "none", is_named: bool = True) -> Planner:
    config = load_config(tmp_path, arguments={"pack": pack})
    return Planner(config, "training", lambda: "run", is_named)


def test_a_folder_is_a_tree_or_an_archive_as_the_configuration_says(tree: Path, tmp_path: Path) -> None:
    plan = planner(tmp_path).checkpoint(str(tree), "checkpoint")
    assert (plan.run_id, plan.path, plan.kind) == ("run", "checkpoint", "tree")
    assert {item.key.path for item in plan.objects} == {
        f"checkpoint/{n}" for n in ("logs/a.txt", "logs/b.txt", "top.bin")
    }
    packed = planner(tmp_path, pack="tar.gz").checkpoint(str(tree), "checkpoint")
    assert (packed.path, packed.kind, len(packed.objects)) == ("checkpoint.tar.gz", "archive", 1)


@pytest.mark.parametrize(
    ("ranks", "settings", "says"),
    [
        ((0, None, None), {}, "rank and world_size go together"),
        ((None, 2, None), {}, "rank and world_size go together"),
        ((0, 2, "s"), {"is_named": False}, "Each rank would make up a run of its own"),
        ((0, 2, "s"), {"pack": "tar.gz"}, "several ranks cannot make one archive"),
    ],
)
def test_ranks_that_do_not_fit_are_an_error(
    tree: Path, tmp_path: Path, ranks: Any, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        planner(tmp_path, **settings).checkpoint(str(tree), "checkpoint", ranks)


def test_one_rank_alone_is_like_none_and_needs_no_name_for_the_run(tree: Path, tmp_path: Path) -> None:
    plan = planner(tmp_path, is_named=False).checkpoint(str(tree), "checkpoint", (0, 1, None))
    assert (plan.path, plan.share) == ("checkpoint", None)


def test_an_addition_leaves_what_lies_beside_it(tree: Path, tmp_path: Path) -> None:
    plans = [planner(tmp_path).addition(str(tree / name), name) for name in ("logs", "top.bin")]
    assert [(plan.kind, plan.adds) for plan in plans] == [("tree", True), ("file", True)]


def test_what_is_added_to_a_folder_and_to_the_root(tree: Path) -> None:
    file, folder = str(tree / "top.bin"), str(tree)
    assert additions(file, "") == {"top.bin": file}
    assert additions(file, "a/b") == {"a/b/top.bin": file}
    assert additions(folder, "a/b") == {"a/b": folder}
    assert additions(folder, "") == {"logs": f"{folder}/logs", "top.bin": file}


@pytest.mark.parametrize("path", ["", "a\0b", None, 7])
def test_a_path_that_names_nothing_is_an_error(path: Any) -> None:
    with pytest.raises(SourceNotFound):
        checked(path)


def test_every_path_has_a_name(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert [name_of(path) for path in (".", "logs/", "logs/../top.bin")] == ["out", "logs", "top.bin"]
