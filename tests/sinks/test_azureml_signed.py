"""Signed URLs, renewed in time and once for all who need them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

import pytest

pytest.importorskip("urllib3", reason="comes with the extra azureml")

from stagesink.sinks.azureml import signed
from stagesink.sinks.azureml.signed import SignedUrl, expiry


def url(seconds: float, name: str = "a") -> str:
    ends = datetime.now(timezone.utc) + timedelta(seconds=seconds)
    return f"https://x.blob.core.windows.net/c/{name}?se={ends:%Y-%m-%dT%H%%3A%M%%3A%SZ}&sig=s3cret"


@pytest.mark.parametrize(
    ("given", "ends"),
    [
        ("https://h/c/b?se=1970-01-01T00%3A01%3A00Z&sig=x", 60.0),
        ("https://h/c/b?sig=x&se=1970-01-01T00:01:00Z", 60.0),
        ("https://h/c/b?se=1970-01-02", None),
        ("https://h/c/b?se=soon", None),
        ("https://h/c/b?sig=x", None),
        ("https://h/c/b", None),
    ],
)
def test_when_a_url_ends(given: str, ends: float | None) -> None:
    found = expiry(given)
    assert found == ends or (given.endswith("02") and found is not None)


@pytest.mark.parametrize(("holds", "old_until"), [(3600, 3530), (60, 25), (10, 4)])
def test_it_is_renewed_shortly_before_its_end(monkeypatch: pytest.MonkeyPatch, holds: float, old_until: float) -> None:
    """With the clock put forward, instead of a wait."""
    old, new = url(holds, "old"), url(9000, "new")
    it, steady = SignedUrl(old, lambda: new), time.monotonic
    assert it.current() == old
    monkeypatch.setattr(signed.time, "monotonic", lambda: steady() + old_until)
    assert it.current() == old
    monkeypatch.setattr(signed.time, "monotonic", lambda: steady() + holds - 1)
    assert it.current() == new


def test_it_is_not_renewed_again_and_again_where_the_clock_is_wrong() -> None:
    """By a clock that is hours ahead every new one has ended already."""
    asked: list[str] = []

    def renew() -> str:
        asked.append("")
        return url(-7200, f"new {len(asked)}")

    it = SignedUrl(url(-7200, "first"), renew)
    first = it.current()
    assert [it.current() for _ in range(5)] == [first] * 5
    assert asked == []
    second = it.after(first)
    assert [it.current() for _ in range(5)] == [second] * 5
    assert len(asked) == 1


def test_many_that_were_refused_with_one_url_renew_it_once() -> None:
    asked: list[str] = []

    def renew() -> str:
        asked.append("")
        return f"new {len(asked)}"

    it = SignedUrl("old", renew)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: it.after("old"), range(32))) == {"new 1"}
    assert it.after("new 1") == "new 2"


def test_what_renewing_raises_is_raised_and_the_next_asks_again() -> None:
    answers = [RuntimeError("no"), None]

    def renew() -> str:
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        return "new"

    it = SignedUrl("old", renew)
    with pytest.raises(RuntimeError):
        it.after("old")
    assert it.after("old") == "new"


def test_its_repr_shows_no_signature() -> None:
    assert "s3cret" not in repr(SignedUrl(url(1), str))


def test_one_that_is_not_here_yet_is_asked_for_once_when_it_is_needed() -> None:
    asked: list[str] = []

    def renew() -> str:
        asked.append("")
        return url(3600)

    it = SignedUrl(None, renew)
    assert repr(it) == "SignedUrl(None)"
    assert asked == []
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: it.current(), range(4)))) == 1
    assert len(asked) == 1
