"""What is said of a put that failed, once it was looked what stands there."""

from __future__ import annotations

import pytest

pytest.importorskip("urllib3", reason="comes with the extra mlflow")

from stagesink.errors import SinkConflict, TransientSinkError
from stagesink.sinks.mlflow.conflicts import look_for_conflict

THERE = {"": {"file": False, "folder": True}, "folder": {"inner": True}}


@pytest.mark.parametrize(
    ("path", "said"), [("file/a", "file is a file"), ("folder", "a folder stands there"), ("folder/inner", "a folder")]
)
def test_what_stands_in_the_way_is_named(path: str, said: str) -> None:
    with pytest.raises(SinkConflict, match=f"It could not be put: {said}"):
        look_for_conflict(path, lambda folder: THERE.get(folder, {}), "It could not be put")


@pytest.mark.parametrize("path", ["new", "file", "folder/new", "elsewhere/new"])
def test_what_is_in_nobodys_way_is_no_conflict(path: str) -> None:
    look_for_conflict(path, lambda folder: THERE.get(folder, {}), "It could not be put")


def test_a_server_that_does_not_answer_leaves_the_first_error_to_be_told() -> None:
    def children(folder: str) -> dict[str, bool]:
        raise TransientSinkError("could not be listed")

    look_for_conflict("a/b", children, "It could not be put")
