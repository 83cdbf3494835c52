"""The table of what came of the kills."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torture.harness import Row
from torture.phases import PHASES
from torture.stores import STORES

_HEAD = "| store | phase | kills | by the clock | calls that matter | of those hit | lost | half visible | duplicated |"


def table(rows: Sequence[Row]) -> str:
    """Return the figures as Markdown, those of one phase as one, with a sum for each store."""
    by_phase: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (STORES.index(row.store), list(PHASES).index(row.phase))):
        by_phase.setdefault((row.store, row.phase), []).append(row)
    summed = [_summed(same) for same in by_phase.values()]
    lines = [_HEAD, "|---|---|" + "---:|" * 7]
    for store in dict.fromkeys(row.store for row in summed):
        of_store = [row for row in summed if row.store == store]
        lines += [_line(row.store, row.phase, row) for row in of_store]
        lines.append(_line(f"**{store}**", "**all**", *of_store))
    return "\n".join(lines)


def _summed(rows: Sequence[Row]) -> Row:
    """Add up what several runs found of one phase; of the calls, the run that hit most."""
    kinds = ("kills", "by_time", "late", "lost", "half_visible", "duplicated")
    sums = {kind: sum(getattr(row, kind) for row in rows) for kind in kinds}
    return replace(rows[0], **sums, boundaries=max(r.boundaries for r in rows), hit=max(r.hit for r in rows))


def _line(store: str, phase: str, *rows: Row) -> str:
    names = ("kills", "by_time", "boundaries", "hit", "lost", "half_visible", "duplicated")
    figures = [f"{sum(getattr(row, name) for row in rows):,}" for name in names]
    return f"| {' | '.join([store, phase, *figures])} |"


def write_between_marks(page: Path, text: str, mark: str = "kills") -> None:
    """Replace what stands between the marks ``<!-- kills -->`` and ``<!-- /kills -->`` of a page."""
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, _, rest = page.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{page} has no line {begin} with a line {end} after it.")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")
