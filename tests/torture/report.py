"""The table of what came of the kills."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torture.harness import Row

_BEGIN, _END = "<!-- kills -->", "<!-- /kills -->"
_HEAD = "| store | phase | kills | by the clock | calls that matter | of those hit | lost | half visible | duplicated |"


def table(rows: Sequence[Row]) -> str:
    """Return the figures as Markdown, with a sum for each store."""
    lines = [_HEAD, "|---|---|" + "---:|" * 7]
    for store in dict.fromkeys(row.store for row in rows):
        of_store = [row for row in rows if row.store == store]
        lines += [_line(row.store, row.phase, row) for row in of_store]
        lines.append(_line(f"**{store}**", "**all**", *of_store))
    return "\n".join(lines)


def _line(store: str, phase: str, *rows: Row) -> str:
    names = ("kills", "by_time", "boundaries", "hit", "lost", "half_visible", "duplicated")
    figures = [f"{sum(getattr(row, name) for row in rows):,}" for name in names]
    return f"| {' | '.join([store, phase, *figures])} |"


def write_between_marks(page: Path, text: str) -> None:
    """Replace what stands between the marks of a page."""
    before, _, rest = page.read_text().partition(_BEGIN)
    _, found, after = rest.partition(_END)
    if not found:
        raise SystemExit(f"{page} has no line {_BEGIN} with a line {_END} after it.")
    page.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after}")
