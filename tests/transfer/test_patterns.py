from __future__ import annotations

import pytest

from stagesink.errors import EmptyTree
from stagesink.transfer import plan_packed_tree, plan_tree
from stagesink.transfer.patterns import Patterns


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*.bin", "a.bin", True),
        ("*.bin", "deep/down/a.bin", True),
        ("*.bin", "a.bin.txt", False),
        ("logs", "logs/a.txt", True),
        ("logs/", "x/logs/a.txt", True),
        ("x/logs", "x/logs/a.txt", True),
        ("x/logs", "y/x/logs/a.txt", False),
        ("logs", "mylogs/a.txt", False),
        ("LOGS", "logs/a.txt", False),
        ("step-?", "step-1/a.txt", True),
        ("*", "anything/at/all", True),
    ],
)
def test_a_pattern_matches_a_path_a_folder_or_a_bare_name(pattern, path, matches):
    assert Patterns(include=[pattern]).select(path) is matches
    assert Patterns(exclude=[pattern]).select(path) is not matches


def test_exclude_wins_over_include():
    assert not Patterns(["*.bin"], ["opt*"]).select("opt.bin")


def test_without_patterns_everything_is_wanted():
    assert Patterns().select("a")


@pytest.fixture
def folder(tmp_path):
    for name in ("a.bin", "b.txt", "x.lock"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text(name)
    return tmp_path / "in"


def test_what_is_left_out_is_listed_as_skipped(folder):
    plan = plan_tree("r", "p", folder, exclude=["*.txt"])
    assert [item.key.path for item in plan.objects] == ["p/a.bin"]
    assert plan.skipped == ("b.txt", "x.lock")
    packed = plan_packed_tree("r", "p.tar.gz", folder, archive_format="tar.gz", include=["b.*"])
    assert packed.skipped == ("a.bin", "x.lock")
    assert [file.path for file in packed.objects[0].source.tree.files] == ["b.txt"]


def test_nothing_left_is_an_empty_tree(folder):
    with pytest.raises(EmptyTree, match="none of the 2 files"):
        plan_tree("r", "p", folder, include=["*.onnx"])
