"""The command line as a whole. Each command imports what it needs when it runs, so that ``--help`` is quick."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from stagesink._version import __version__
from stagesink.cli import demo, doctor, inspect, migrate, outbox, restore, run, settings, upload
from stagesink.cli.errors import Commands

app = typer.Typer(
    name="stagesink",
    cls=Commands,
    help="Hand over a stage's files: they land, whole and proven, in any store; then list, verify and restore them.",
    epilog="Exit codes: 0 ok, 1 failed or mismatch, 2 usage or configuration, 3 not found, 4 not allowed, "
    "5 kept in the outbox, 130 Ctrl-C.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,  # they print local variables, credentials among them
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stagesink {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def _help(command: Callable[..., None]) -> str:
    """Return the docstring with each paragraph on one line, since typer would keep the line breaks of most."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in (command.__doc__ or "").split("\n\n"))


_COMMANDS: tuple[tuple[str, Callable[..., None], str], ...] = (
    ("upload", upload.upload, upload.EPILOG),
    ("ls", inspect.ls, inspect.LS_EPILOG),
    ("verify", inspect.verify, inspect.VERIFY_EPILOG),
    ("restore", restore.restore, restore.EPILOG),
    ("sync", outbox.sync, outbox.SYNC_EPILOG),
    ("status", outbox.status, outbox.STATUS_EPILOG),
    ("config", settings.config, settings.EPILOG),
    ("doctor", doctor.doctor, doctor.EPILOG),
    ("migrate", migrate.migrate, migrate.EPILOG),
    ("demo", demo.demo, demo.EPILOG),
)
for _name, _command, _epilog in _COMMANDS:
    app.command(_name, help=_help(_command), epilog=_epilog)(_command)
app.command(
    "run",
    help=_help(run.run),
    epilog=run.EPILOG,
    context_settings={"allow_interspersed_args": False},  # what follows the command's name is the command's
)(run.run)
app.add_typer(outbox.outbox, name="outbox")
