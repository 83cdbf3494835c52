"""The one place where errors become messages and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import typer
from typer.core import TyperGroup

from stagesink.errors import (
    ArtifactNotFound,
    ConfigError,
    InvalidKey,
    KeptInOutbox,
    ManyFailures,
    MissingExtra,
    NameRefused,
    RunNotFound,
    SinkAuthError,
    SourceKindError,
    SourceNotFound,
    StagesinkError,
    UnknownScheme,
)

EXIT_CODES: Mapping[type[StagesinkError], int] = {
    StagesinkError: 1,  # failed, or the bytes are not those that were sent
    ConfigError: 2,  # usage or configuration
    InvalidKey: 2,
    NameRefused: 2,
    UnknownScheme: 2,
    MissingExtra: 2,
    SourceKindError: 2,
    SourceNotFound: 3,  # not found
    ArtifactNotFound: 3,
    RunNotFound: 3,
    SinkAuthError: 4,  # the backend does not let us
    KeptInOutbox: 5,  # it waits on this disk; `stagesink sync` uploads it
}
"""Exit code by class of error; the nearest base class counts. 0 is success, 2 also a wrong option, 130 is Ctrl-C."""

INTERRUPTED = 130
KEPT = EXIT_CODES[KeptInOutbox]

# typer has its own copy of click's exceptions, or click's, depending on its version; this is the right one in both.
UsageError = cast("type[Exception]", typer.BadParameter.__base__)

_JSON = "stagesink.json"


def exit_code(error: StagesinkError) -> int:
    """Return the exit code for an error: for several failures the one they all share, else 1."""
    if failures := _failures(error):
        shared = {exit_code(failure) for failure in failures.values()}
        return shared.pop() if len(shared) == 1 else 1
    return next(EXIT_CODES[cls] for cls in type(error).__mro__ if cls in EXIT_CODES)


def describe(error: StagesinkError) -> dict[str, Any]:
    """Return an error as plain JSON values: ``type``, ``message``, ``hint`` and, for several, ``failures`` by path.

    What is kept in the outbox has the error that it did not land for as its ``cause``.
    """
    document: dict[str, Any] = {"type": type(error).__name__, "message": error.message.strip(), "hint": error.hint}
    if failures := _failures(error):
        document["failures"] = {path: describe(failure) for path, failure in failures.items()}
    if isinstance(error, KeptInOutbox) and isinstance(error.__cause__, StagesinkError):
        document["cause"] = describe(error.__cause__)
    return document


def _failures(error: StagesinkError) -> Mapping[str, StagesinkError]:
    return error.failures if isinstance(error, ManyFailures) else {}


class Commands(TyperGroup):
    """All commands; whatever goes wrong in one ends here, as one message and one exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = args[: args.index("--")] if "--" in args else args
        # Looked for before anything is parsed, so that a wrong option is told in JSON too.
        ctx.meta[_JSON] = "--json" in own
        with _reporting(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _reporting(ctx):
            return super().invoke(ctx)


@contextmanager
def _reporting(ctx: Any) -> Iterator[None]:
    as_json: bool = ctx.meta[_JSON]
    try:
        yield
    except KeyboardInterrupt:
        hint = "Nothing half-written is visible; run it again to go on."
        _report("Stopped.", {"type": "Interrupted", "message": "Stopped.", "hint": hint}, hint, as_json=as_json)
        raise typer.Exit(INTERRUPTED) from None
    except StagesinkError as error:
        _report(error.message, describe(error), error.hint, as_json=as_json)
        raise typer.Exit(exit_code(error)) from error
    except UsageError as error:
        if not as_json or (message := _message(error)) is None:
            raise  # typer shows it, with the usage
        _report(
            message, {"type": "UsageError", "message": message, "hint": "--help shows the options."}, "", as_json=True
        )
        raise typer.Exit(2) from error


def _message(error: Any) -> str | None:
    """Return the sentence of a usage error; None for the one that only asks for the help to be shown."""
    return str(error.format_message()) if type(error).__name__ != "NoArgsIsHelpError" else None


def _report(message: str, document: Mapping[str, Any], hint: str, *, as_json: bool) -> None:
    from stagesink.cli.output import print_error, print_json

    if as_json:
        print_json({"error": document})
    else:
        print_error(f"{message} {hint}".strip())
    sys.stdout.flush()
