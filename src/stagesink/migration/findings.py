"""One place in somebody's code, and what to write there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rule = Literal[
    "log-artifact",
    "log-artifacts",
    "client-log-artifact",
    "client-log-artifacts",
    "log-artifact-safe",
    "log-artifacts-safe",
    "upload-checkpoint-archive",
    "run-id",
    "skip-variable",
    "unreadable",
]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found where.

    Parameters
    ----------
    path : str
        The file, as it was named or found below a folder that was named.
    line, column : int
        Both from 1; in a notebook of the cell.
    rule : str
    found : str
        The code, on one line; for ``unreadable`` what is wrong with the file.
    write : str
        What to write instead.
    note : str
        What there is to know about it; often empty.
    cell : int or None
        Of a notebook, from 1, cells of text counted too.
    """

    path: str
    line: int
    column: int
    rule: Rule
    found: str
    write: str
    note: str = ""
    cell: int | None = None

    def __str__(self) -> str:
        cell = f"cell {self.cell}:" if self.cell is not None else ""
        note = f" ({self.note})" if self.note else ""
        return f"{self.path}:{cell}{self.line}:{self.column}: {self.rule}: {self.found} -> {self.write}{note}"
