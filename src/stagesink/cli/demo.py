"""``stagesink demo``."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stagesink.cli import options
from stagesink.cli.options import examples
from stagesink.cli.output import Output, console_on

if TYPE_CHECKING:
    from stagesink.pipeline.report import Step

EPILOG = examples(
    "stagesink demo", "stagesink demo --sink s3://bucket/demo", "stagesink demo --workdir ./demo-run --json"
)

DEFAULT_SINK = "file:./demo/artifacts"


def demo(
    sink: Annotated[
        str,
        typer.Option("--sink", "-s", metavar="URI", help="Where to: any sink's URI."),
    ] = DEFAULT_SINK,
    run_id: options.RunId = None,
    workdir: Annotated[
        Path | None,
        typer.Option("--workdir", metavar="DIR", help="Empty folder to work in, kept. Default: a temporary one."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the temporary folder too.")] = False,
    trials: Annotated[int, typer.Option("--trials", min=1, metavar="N", help="Trials of the search.")] = 4,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    r"""Run a real pipeline: search, training, conversion to ONNX, benchmark; then list, verify, restore and compare.

    Needs the extra: pip install 'stagesink\[demo]'. Exits with 1 when anything did not hold.
    """
    from stagesink.pipeline.demo import run_demo
    from stagesink.pipeline.report import print_report, print_step

    out = Output(as_json, quiet, verbose)

    def on_step(step: Step) -> None:
        if not quiet:
            print_step(step, console_on(sys.stderr))

    report = run_demo(sink, workdir, run_id=run_id, n_trials=trials, on_step=on_step)
    if workdir is None and not keep:  # after a failure it stays, to look at
        import shutil

        shutil.rmtree(report.workdir)
        report = replace(report, workdir="", restored="a temporary folder, removed by now; --keep keeps it")
    if as_json:
        out.show(asdict(report))
    else:
        print_report(report, console_on(sys.stdout))
