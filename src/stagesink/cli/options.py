"""The options that several commands share, and what they open."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stagesink.transfer.options import Verify
    from stagesink.uploader import ArtifactUploader

_WHERE = "Where"
_WHAT = "What"
_HOW = "How it is shown"


def _stages() -> list[str]:
    from stagesink.stages import STAGES

    return list(STAGES)


def not_empty(value: str | None) -> str | None:
    """Refuse an empty path, as an unset variable of a shell gives it: it would mean the working folder.

    Raises
    ------
    typer.BadParameter
        It is empty.
    """
    if value == "":
        raise typer.BadParameter("the path is empty; the working folder is '.'")
    return value


Sink = Annotated[
    str | None,
    typer.Option(
        "--sink",
        "-s",
        metavar="URI",
        help="file:./artifacts, s3://bucket/prefix, any fsspec URL. Default: STAGESINK_SINK, then mlflow.yaml.",
        rich_help_panel=_WHERE,
    ),
]
RunId = Annotated[
    str | None,
    typer.Option(
        "--run-id",
        "-r",
        metavar="ID",
        help="The run. Default: STAGESINK_RUN_ID, MLFLOW_RUN_ID, AZUREML_RUN_ID.",
        rich_help_panel=_WHERE,
    ),
]
ConfigDir = Annotated[
    Path | None,
    typer.Option(
        "--config-dir",
        metavar="DIR",
        help="Folder that holds mlflow.yaml. Default: STAGESINK_CONFIG_DIR, then ./config.",
        rich_help_panel=_WHERE,
    ),
]
Stage = Annotated[
    str | None,
    typer.Option(
        "--stage",
        metavar="STAGE",
        help="The stage it belongs to (training, conversion, benchmark, hpo); its switches apply.",
        autocompletion=_stages,
        rich_help_panel=_WHERE,
    ),
]
PathInRun = Annotated[
    str | None,
    typer.Argument(
        metavar="PATH",
        help="An upload, a part of a tree, or all below this path. Default: all of the run.",
        show_default=False,
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        "--include", metavar="PATTERN", help="Only what matches, as '*.bin'. Repeatable.", rich_help_panel=_WHAT
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="PATTERN",
        help="Not what matches: a file, or a folder by its name. Repeatable.",
        rich_help_panel=_WHAT,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", "-j", min=1, max=64, metavar="N", help="Objects in flight at once. Default: 8."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would go where, and touch nothing.")]
Json = Annotated[
    bool,
    typer.Option("--json", help="One JSON document on stdout, for an error too. Sizes in bytes.", rich_help_panel=_HOW),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress and no notices, only errors.", rich_help_panel=_HOW)
]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose", "-v", count=True, help="More: every object and the log; twice: debug.", rich_help_panel=_HOW
    ),
]


def examples(*lines: str) -> str:
    """Return an epilog that shows commands, one a line."""
    return "\n\n".join(("[bold]Examples[/bold]", *(f"  [cyan]{line}[/cyan]" for line in lines)))


def open_uploader(
    sink: str | None,
    run_id: str | None,
    config_dir: Path | None,
    *,
    stage: str | None = None,
    workers: int | None = None,
    verify: Verify | None = None,
    quiet: bool = False,
) -> ArtifactUploader:
    """Return the facade: it finds configuration, sink and run for every command as it does for every program.

    Raises
    ------
    ConfigError
        The configuration is broken, or does not know the stage.
    """
    from stagesink.uploader import ArtifactUploader

    uploader = ArtifactUploader(
        run_id,
        stage,
        config_dir,
        sink=sink,
        on_failure="raise",
        background=False,  # a command tells what came of it
        workers=workers,
        verify=verify,
        progress="none" if quiet else None,
    )
    if stage is not None:
        _ = uploader.config  # does not know every stage: said before anything else
    return uploader


def named_run(run_id: str | None) -> str:
    """Return the run that the option or the environment names. Only an upload makes up its own.

    Raises
    ------
    ConfigError
        None is named.
    """
    from stagesink.errors import ConfigError, RunNotFound
    from stagesink.runs import find_run

    try:
        return find_run(run_id, needs_server=True).run_id
    except RunNotFound as error:
        raise ConfigError(
            "No run is named.", hint="Pass --run-id or set STAGESINK_RUN_ID; `stagesink upload` says which run it used."
        ) from error
