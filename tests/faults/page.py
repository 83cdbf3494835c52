"""The fault matrix as docs/reliability.md shows it: `PYTHONPATH=src:tests python -m faults.page` writes it there."""

from __future__ import annotations

from pathlib import Path

from faults.table import ROWS, SINKS, Cell, Row

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN = "<!-- the table is made by tests/faults/page.py -->"
END = "<!-- the table ends here -->"

_ANSWERS = {"True": "`True`", "kept": "kept", "False": "`False`"}


def table() -> str:
    """Return the table, in Markdown."""
    lines = [
        "| what happens | file | s3 | azureml | mlflow | you see | lost |",
        "|---|---|---|---|---|---|---|",
        *map(_line, ROWS),
    ]
    return "\n".join(lines)


def written(text: str) -> str:
    """Return the page with the table as it is now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def _line(row: Row) -> str:
    cells = [row.cell(sink) for sink in SINKS]
    said = dict.fromkeys(cell.says for cell in cells if cell.answer != "never" and cell.says)
    seen = ", ".join(f"“{each}”" for each in said) or "nothing"
    return f"| {row.what} | {' | '.join(map(_answer, cells))} | {seen} | nothing |"


def _answer(cell: Cell) -> str:
    return cell.says if cell.answer == "never" else _ANSWERS[cell.answer]


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
