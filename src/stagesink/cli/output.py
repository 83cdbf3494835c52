"""What a command prints: tables for people, JSON for programs, and where logs go."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_WIDE = 10_000  # columns: into a file or a pipe nothing is folded or cut

_logger = logging.getLogger("stagesink")


@dataclass(frozen=True, slots=True)
class Output:
    """How one command speaks.

    Parameters
    ----------
    as_json : bool
        One JSON document on stdout instead of tables.
    quiet : bool
        Nothing but errors on stderr.
    verbose : int
        1 shows each object and what is logged, 2 the debug log too.
    """

    as_json: bool = False
    quiet: bool = False
    verbose: int = 0

    def __post_init__(self) -> None:
        _log_to_stderr(self)

    def show(self, document: Mapping[str, Any], *human: RenderableType) -> None:
        """Print the document, or for people what is meant for them."""
        if self.as_json:
            print_json(document)
            return
        console = console_on(sys.stdout)
        for part in human:
            console.print(part, soft_wrap=isinstance(part, str), markup=False, highlight=False)

    def note(self, text: str) -> None:
        """Print a line on stderr that only helps to understand; the JSON has it already."""
        if not (self.quiet or self.as_json):
            console_on(sys.stderr).print(text, style="dim", soft_wrap=True, markup=False, highlight=False)


def console_on(stream: TextIO) -> Console:
    """Return a rich console for the stream, as wide as it takes where no terminal limits it."""
    from rich.console import Console

    return Console(file=stream, width=None if stream.isatty() else _WIDE)


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout; ASCII, so that no locale can spoil it."""
    print(json.dumps(document, indent=2), flush=True)


def print_error(text: str) -> None:
    """Print one message on stderr."""
    from rich.text import Text

    console_on(sys.stderr).print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[str] = ("Files", "Size")) -> Any:
    """Return a table whose cells are plain text; the columns named in ``right`` hold numbers.

    It has no lines where stdout is no terminal, so that `head`, `grep` and `awk` have an easy time.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False, padding=(0, 1))
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def human_size(size: int) -> str:
    """Return bytes for people, in decimal units: ``577.0 MB``."""
    from rich.filesize import decimal

    return decimal(size)


def count(number: int, noun: str) -> str:
    """Return ``1 file`` or ``2 files``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class _Stderr(logging.Handler):
    """Writes to what is stderr at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"{record.levelname.lower()}: {self.format(record)}", file=sys.stderr)


def _log_to_stderr(output: Output) -> None:
    # Our own logger only: the debug logs of backends' clients hold signatures and tokens.
    handler = next((each for each in _logger.handlers if isinstance(each, _Stderr)), None)
    if handler is None:
        handler = _Stderr()
        _logger.addHandler(handler)
    chatty = logging.DEBUG if output.verbose > 1 else logging.INFO if output.verbose else logging.WARNING
    handler.setLevel(logging.ERROR if output.quiet else chatty)
    if output.verbose and not output.quiet:
        _logger.setLevel(chatty)
