"""The fault matrix as a whole: how much it holds, and that the documentation shows it."""

from __future__ import annotations

from faults.page import PAGE, table, written
from faults.table import ROWS, SINKS


def test_it_is_as_large_as_the_documentation_says() -> None:
    assert len(ROWS) >= 40
    assert len({row.what for row in ROWS}) == len(ROWS)


def test_each_cell_says_what_is_logged_or_why_it_cannot_be() -> None:
    for row in ROWS:
        for sink in SINKS:
            cell = row.cell(sink)
            assert cell.says or cell.answer == "True", (row.what, sink)


def test_the_documentation_shows_it() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert table() in page
    assert written(page) == page, "PYTHONPATH=src:tests python -m faults.page writes the page anew"
