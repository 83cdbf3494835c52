"""Which files are looked at, and how they are read: modules, and the code of notebooks."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import tokenize
import warnings
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

from stagesink.migration.findings import Finding
from stagesink.migration.rules import find

_LEFT_OUT = frozenset(
    {".git", ".hg", ".svn", ".venv", "venv", ".tox", ".nox", "site-packages", "__pycache__", "node_modules"}
)
_ENVIRONMENT_MARKER = "pyvenv.cfg"  # a virtual environment by any other name
_SUFFIXES = (".py", ".ipynb")

_MAGIC = re.compile(r"^(\s*)(?:%{1,2}\w|!(?!=)|\?|[\w, ]+=\s*[%!]|[\w.]+\?{1,2}\s*$).*")
_PYTHON_CELL_MAGIC = re.compile(r"%%(?:time|timeit|capture|prun)\b")

_CANNOT_PARSE = (SyntaxError, ValueError, RecursionError, MemoryError)


@dataclass(frozen=True, slots=True)
class Report:
    """What was looked at, and what was found, in the order of the files and their lines."""

    files: int
    findings: tuple[Finding, ...]

    @property
    def unreadable(self) -> int:
        """Files, or cells of notebooks, that could not be read or parsed."""
        return sum(finding.rule == "unreadable" for finding in self.findings)


def look_through(paths: Iterable[str | os.PathLike[str]]) -> Report:
    """Look through files and folders.

    Parameters
    ----------
    paths : iterable of path
        A file is read whatever its name; of a folder all ``.py`` and ``.ipynb`` files below it, environments, caches
        and ``.git`` left out.
    """
    findings: list[Finding] = []
    files = list(dict.fromkeys(file for path in paths for file in _files(os.fspath(path), findings)))
    for file in files:
        findings += _look(file)
    return Report(len(files), tuple(findings))


def _files(path: str, findings: list[Finding]) -> Iterator[str]:
    if not os.path.isdir(path):
        yield os.path.normpath(path)
        return

    def closed(error: OSError) -> None:
        findings.append(_unreadable(os.path.normpath(error.filename), error.strerror or type(error).__name__))

    for folder, below, names in os.walk(path, onerror=closed):
        if _ENVIRONMENT_MARKER in names:
            below.clear()
            continue
        below[:] = sorted(name for name in below if name not in _LEFT_OUT)
        for name in sorted(names):
            file = os.path.normpath(os.path.join(folder, name))
            # A link to nothing is said; a pipe would be waited for.
            if name.endswith(_SUFFIXES) and (os.path.isfile(file) or not os.path.exists(file)):
                yield file


def _look(path: str) -> list[Finding]:
    try:
        with open(path, "rb") as stream:
            data = stream.read()
        if path.endswith(".ipynb"):
            return _look_at_notebook(path, data)
        return _find(_decoded(data), path)
    except OSError as error:
        return [_unreadable(path, error.strerror or type(error).__name__)]
    except _CANNOT_PARSE as error:
        return [_unparsed(path, error)]


def _find(text: str, path: str) -> list[Finding]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # somebody else's escapes
        return find(text, path)


def _decoded(data: bytes) -> str:
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    return io.TextIOWrapper(io.BytesIO(data), encoding).read()


def _unreadable(path: str, why: str, line: int = 1, column: int = 1, cell: int | None = None) -> Finding:
    return Finding(
        path, line, column, "unreadable", why, "mend it and look again: nothing was looked for here", cell=cell
    )


def _unparsed(path: str, error: Exception, cell: int | None = None) -> Finding:
    if isinstance(error, SyntaxError):
        return _unreadable(path, error.msg, error.lineno or 1, max(error.offset or 1, 1), cell)
    if isinstance(error, (RecursionError, MemoryError)):
        return _unreadable(path, "nested too deep", cell=cell)
    return _unreadable(path, " ".join(str(error).split()), cell=cell)


# -- notebooks ---------------------------------------------------------------------------------------------------------


def _look_at_notebook(path: str, data: bytes) -> list[Finding]:
    """Look at the code of a notebook as one module: what one cell imports, the next ones use."""
    findings: list[Finding] = []
    cells: list[tuple[int, str]] = []
    for number, text in _code(json.loads(data)):
        code, error = _parsable(text)
        if error is not None:
            findings.append(_unparsed(path, error, number))
        else:
            cells.append((number, code))
    ends = list(accumulate(code.count("\n") + 1 for _, code in cells))  # each cell's last line in the module
    for finding in _find("\n".join(code for _, code in cells), path):
        index = bisect_left(ends, finding.line)
        start = ends[index - 1] if index else 0
        findings.append(replace(finding, line=finding.line - start, cell=cells[index][0]))
    return sorted(findings, key=lambda finding: (finding.cell or 0, finding.line, finding.column))


def _code(notebook: object) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each cell that holds Python."""
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise ValueError("no notebook of format 4")
    for number, cell in enumerate(notebook["cells"], start=1):
        if not isinstance(cell, dict) or cell.get("cell_type") != "code":
            continue
        source = cell.get("source", "")
        text = "".join(map(str, source)) if isinstance(source, list) else str(source)
        if not text.startswith("%%") or _PYTHON_CELL_MAGIC.match(text):
            yield number, text


def _parsable(text: str) -> tuple[str, Exception | None]:
    """Return the cell as Python takes it, or why it does not."""
    error: Exception | None = None
    # As it is first: only in a cell that is no Python is a line that begins with % a magic, and not an operator.
    for code in (text, "\n".join(_MAGIC.sub(r"\1pass", line) for line in text.split("\n"))):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ast.parse(code)
        except _CANNOT_PARSE as raised:
            error = raised
        else:
            return code, None
    return text, error
