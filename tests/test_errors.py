"""The error tree: each error is one sentence, and says what to do next."""

from __future__ import annotations

import ast
import copy
import inspect
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

import stagesink
from stagesink import errors
from stagesink.artifacts import ArtifactKey, Receipt
from stagesink.errors import (
    InvalidKey,
    ManyFailures,
    MissingExtra,
    RestoreFailed,
    SinkAuthError,
    SinkError,
    SinkQuotaError,
    SourceChanged,
    SourceError,
    StagesinkError,
    TransferError,
    TransientSinkError,
)

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, StagesinkError)]
PLAIN = [kind for kind in CLASSES if not issubclass(kind, ManyFailures)]


@pytest.mark.parametrize("kind", PLAIN)
def test_an_error_is_its_sentence_and_what_to_do(kind: type[StagesinkError]) -> None:
    error = kind("It broke.", hint="Mend it.")
    assert (str(error), error.message, error.hint) == ("It broke. Mend it.", "It broke.", "Mend it.")
    assert str(kind("It broke.", hint="")) == "It broke."
    assert kind("It broke.").hint == kind.default_hint


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("carry", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_an_error_can_be_carried_to_another_process(kind: type[StagesinkError], carry: object) -> None:
    error = kind("It broke.", hint="Mend it.")
    again = carry(error)  # type: ignore[operator]
    assert type(again) is kind
    assert (str(again), again.message, again.hint, again.args) == (str(error), error.message, error.hint, error.args)


def test_what_an_error_carries_besides_is_carried_too() -> None:
    again = pickle.loads(pickle.dumps(TransientSinkError("busy", retry_after=7.5)))
    assert (again.retry_after, again.hint) == (7.5, TransientSinkError.default_hint)


def transfer_error(*failed: str) -> TransferError:
    receipts = [
        Receipt(ArtifactKey("run", path), "memory:", 1, None, 0.0, 1, "failed", "none", "no")
        for path in ("a", "b", "c")
    ]
    return TransferError(receipts, {path: SinkAuthError(f"{path} is not yours.") for path in failed})


def test_one_failure_is_told_in_one_sentence() -> None:
    assert str(transfer_error("a")) == f"a: a is not yours. {SinkAuthError.default_hint}"


def test_many_failures_are_all_told_and_each_hint_once() -> None:
    text = str(transfer_error("a", "b"))
    assert "2 of 3 objects failed" in text
    assert "a: a is not yours." in text
    assert "b: b is not yours." in text
    assert text.count(SinkAuthError.default_hint) == 1


@pytest.mark.parametrize("error", [transfer_error("a", "c"), RestoreFailed({"a": SinkAuthError("no")})])
def test_an_error_of_many_can_be_carried_with_all_of_them(error: TransferError | RestoreFailed) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), list(again.failures)) == (type(error), str(error), list(error.failures))
    assert [type(e) for e in again.failures.values()] == [SinkAuthError] * len(error.failures)
    if isinstance(error, TransferError):
        assert again.receipts == error.receipts


def test_the_tree_keeps_sources_and_sinks_apart() -> None:
    assert all(issubclass(kind, StagesinkError) for kind in CLASSES)
    assert not [kind for kind in CLASSES if issubclass(kind, SourceError) and issubclass(kind, SinkError)]
    assert not issubclass(SourceChanged, SinkError)


def test_errors_that_people_catch_by_their_python_kind_can_be() -> None:
    assert isinstance(InvalidKey("x"), ValueError)
    assert isinstance(MissingExtra("x"), ImportError)


# -- what to do next ---------------------------------------------------------------------------------------------------


_EXEMPT = {
    "errors.py": "makes the classes",
    "config/layers.py": "joins problems that each say what to do",
}


def _raised_without_hint() -> Iterator[str]:
    kinds = {kind.__name__: kind for kind in [*CLASSES, RestoreFailed]}
    root = Path(str(stagesink.__file__)).parent
    for path in sorted(root.rglob("*.py")):
        if str(path.relative_to(root)) in _EXEMPT or path.parent.name == "testing":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kinds):
                continue
            own = kinds[node.func.id] in (TransferError, RestoreFailed)  # made of others, which have theirs
            if not own and not kinds[node.func.id].default_hint and not any(k.arg == "hint" for k in node.keywords):
                yield f"{path.relative_to(root)}:{node.lineno} {node.func.id}"


def test_every_error_raised_anywhere_says_what_to_do_next() -> None:
    assert list(_raised_without_hint()) == []


def test_thousands_of_failures_show_the_first_ones_and_keep_all() -> None:
    failures = {f"part-{n:05}.bin": SinkQuotaError("The disk is full.", hint="Free some space.") for n in range(5000)}
    error = RestoreFailed(failures)
    lines = str(error).splitlines()
    assert lines[0] == "5000 files were not restored:"
    assert lines[1] == "  part-00000.bin: The disk is full."
    assert lines[-2:] == ["  and 4980 more.", "Free some space."]
    assert len(lines) < 30
    assert len(error.failures) == 5000
