"""``stagesink migrate``."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Annotated

import typer

from stagesink.cli import options
from stagesink.cli.options import examples
from stagesink.cli.output import Output, count

EPILOG = examples(
    "stagesink migrate src",
    "stagesink migrate train.py notebooks",
    "stagesink migrate src --json | jq '.findings[].write'",
)

UNREADABLE = 2


def migrate(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Files, and folders with all modules and notebooks below them.",
            show_default=False,
        ),
    ],
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Find uploads that are written by hand, and say what to write instead.

    Finds mlflow's log_artifact and log_artifacts, also of its client, log_artifact_safe and its like, and run ids and
    switches that are looked up by hand. The code is read, never imported, run or changed. Exits with 0 when there is
    nothing to do, with 1 when something was found, with 2 when a file could not be read.
    """
    from stagesink.migration import look_through

    for path in paths:
        if not os.path.exists(path):
            raise typer.BadParameter(f"{path!r} does not exist; name files or folders with code.")
    out = Output(as_json, quiet, verbose)
    report = look_through(paths)
    document = {"files": report.files, "findings": [asdict(finding) for finding in report.findings]}
    out.show(document, *map(str, report.findings))
    places = count(len(report.findings) - report.unreadable, "place")
    missed = f", {report.unreadable} not readable" if report.unreadable else ""
    out.note(f"{count(report.files, 'file')}{missed}: {places} to change.")
    if places[0] != "0":
        out.note("Import ArtifactUploader and get_mlflow_run_id from stagesink; docs/migration.md shows each stage.")
    if report.findings:
        raise typer.Exit(UNREADABLE if report.unreadable else 1)
