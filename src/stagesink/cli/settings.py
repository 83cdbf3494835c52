"""``stagesink config``: what is set, where, and what follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from stagesink.cli import options
from stagesink.cli.errors import describe, exit_code
from stagesink.cli.options import examples
from stagesink.cli.output import Output, table
from stagesink.errors import RunNotFound, StagesinkError

if TYPE_CHECKING:
    from stagesink.config import Config

EPILOG = examples("stagesink config", "STAGESINK_SINK=s3://bucket/runs stagesink config --json")


def config(
    sink: options.Sink = None,
    run_id: options.RunId = None,
    config_dir: options.ConfigDir = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Show every setting with its value and where it came from, which sink and run are used, and why.

    Secrets are not shown. Exits with 2 when the configuration cannot be used.
    """
    from stagesink.config import load_config, skip_artifact_logging

    out = Output(as_json, quiet, verbose)
    loaded = load_config(config_dir)
    chosen, problem = _sink(loaded, sink)
    run = _run(run_id)
    off = skip_artifact_logging()
    document = {
        "file": str(loaded.file.absolute()),
        "file_found": loaded.file_found,
        "settings": {each.key: {"value": each.value, "origin": each.origin} for each in loaded.explain()},
        "sink": chosen,
        "run": run,
        "uploads_switched_off": off,
    }
    rows = [(each.key, _shown(each.value), each.origin) for each in loaded.explain()]
    lines = [
        f"File: {loaded.file}{'' if loaded.file_found else ' (not there: defaults hold)'}",
        f"Sink: {chosen['uri']} ({chosen['why']})" if problem is None else f"Sink: none. {problem}",
        f"Run:  {run['run_id'] or 'none'} ({run['why']})",
    ]
    if off:
        lines.append("MLFLOW_SKIP_ARTIFACT_LOGGING is set: nothing is uploaded.")
    out.show(document, table(("Setting", "Value", "From"), rows), *lines)
    if problem is not None:
        raise typer.Exit(exit_code(problem))


def _sink(config: Config, argument: str | None) -> tuple[dict[str, Any], StagesinkError | None]:
    from stagesink.destination import choose_sink

    try:
        choice = choose_sink(config, argument)
    except StagesinkError as error:
        return {"error": describe(error)}, error
    return {"uri": choice.shown, "why": choice.why}, None


def _run(argument: str | None) -> dict[str, Any]:
    from stagesink.runs import find_run

    try:
        found = find_run(argument, needs_server=True)
    except RunNotFound:
        return {"run_id": None, "why": "none is named: an upload makes one for its process"}
    return {"run_id": found.run_id, "why": f"set by {found.source}"}


def _shown(value: object) -> str:
    """Write a value as it would stand in the YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
