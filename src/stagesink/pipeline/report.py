"""What a demo came to, and how a person likes to read it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Step:
    """One thing the demo did: its name, what came of it, and the seconds it took."""

    name: str
    result: str
    seconds: float


@dataclass(frozen=True)
class StageRun:
    """The run a stage belongs to, and where a browser shows it, if a server does."""

    stage: str
    run_id: str
    url: str | None


@dataclass(frozen=True)
class Landed:
    """One artifact as it lies in the sink.

    Parameters
    ----------
    stage : str
    path : str
        Inside the run.
    files : int
        Files it holds; those inside an archive are counted too.
    size : int
        Bytes in the sink.
    proof : str
        What was checked after everything had landed.
    """

    stage: str
    path: str
    files: int
    size: int
    proof: str


@dataclass(frozen=True)
class DemoReport:
    """All of a demo that went well, as plain data: ``dataclasses.asdict`` makes JSON of it.

    Parameters
    ----------
    runs : sequence of StageRun
        By stage. All are the same one, unless the sink tracks runs.
    sink : str
    workdir, restored : str
        Folder the stages worked in, and the one everything was restored into.
    steps : sequence of Step
    landed : sequence of Landed
        By stage.
    upload_seconds : dict of str to float
        By stage.
    predictions : int
        Held-back images; the restored model and the trained one agree on each.
    seconds : float
        All of it, the imports included.
    """

    runs: Sequence[StageRun]
    sink: str
    workdir: str
    restored: str
    steps: Sequence[Step]
    landed: Sequence[Landed]
    upload_seconds: dict[str, float]
    predictions: int
    seconds: float


def print_step(step: Step, console: Console) -> None:
    """Print one line for a step that has just ended."""
    console.print(
        Text.assemble(("✓ ", "green"), (f"{step.name:<11}", "bold"), step.result, (f"  {step.seconds:.1f} s", "dim")),
        soft_wrap=True,
    )


def print_report(report: DemoReport, console: Console) -> None:
    """Print the table, where everything is, and what to try next."""
    trained = next(each.run_id for each in report.runs if each.stage == "training")
    run = f"--sink {shlex.quote(report.sink)} --run-id {shlex.quote(trained)}"
    lines = (
        "",
        f"The restored ONNX model gives the trained one's answer on all {report.predictions} held-back images.",
        *_where(report),
        f"Restored into {report.restored}",
        "",
        "Next:",
        f"  stagesink ls {run}",
        f"  stagesink verify {run}",
    )
    console.print()
    console.print(_table(report))
    for line in lines:
        # Unwrapped and uninterpreted: these are for copying, and a '[' in a path is no markup.
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _where(report: DemoReport) -> list[str]:
    pages = {each.run_id: each.url for each in report.runs}
    if len(pages) == 1:
        ((run_id, url),) = pages.items()
        return [f"Everything is in {report.sink}, run {run_id}.", *([f"  {url}"] if url else [])]
    lines = [f"  {each.stage:<10}  {each.url or each.run_id}" for each in report.runs]
    return [f"Everything is in {report.sink}, a run for each stage:", *lines]


def _table(report: DemoReport) -> Table:
    artifacts = report.landed
    table = Table(box=box.SIMPLE_HEAD, show_footer=True, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("Stage", "all", style="bold")
    table.add_column("Landed as", f"{len(artifacts)} artifacts", overflow="fold")
    table.add_column("Files", str(sum(artifact.files for artifact in artifacts)), justify="right")
    table.add_column("Size", decimal(sum(artifact.size for artifact in artifacts)), justify="right")
    table.add_column("Upload", f"{sum(report.upload_seconds.values()):.2f} s", justify="right")
    table.add_column("Read back", "all ok", style="green", footer_style="green")
    stage = ""
    for artifact in artifacts:
        first = artifact.stage != stage
        stage = artifact.stage
        table.add_row(
            stage if first else "",
            Text(artifact.path),
            str(artifact.files),
            decimal(artifact.size),
            f"{report.upload_seconds[stage]:.2f} s" if first else "",
            artifact.proof,
        )
    return table
