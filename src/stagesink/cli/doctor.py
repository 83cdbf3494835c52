"""``stagesink doctor``: what is installed, and whether the sink does what it should."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stagesink._version import __version__
from stagesink.cli import options
from stagesink.cli.errors import describe, exit_code
from stagesink.cli.options import examples
from stagesink.cli.output import Output, table
from stagesink.errors import StagesinkError, VerificationError

if TYPE_CHECKING:
    from stagesink.sinks import ArtifactSink
    from stagesink.sinks.protocol import ScratchRunSink, SweepingSink, TrackedSink

EPILOG = examples("stagesink doctor", "stagesink doctor --sink s3://bucket/runs --json", "stagesink doctor --sweep")

_REQUIREMENT = re.compile(r"""([A-Za-z0-9._-]+).*\bextra\s*==\s*["']([A-Za-z0-9._-]+)["']""")


_ELSEWHERE = (
    "what uploads leave unfinished is looked for on S3 alone. Azure drops it after a week; "
    "on Google a lifecycle rule of the bucket does (AbortIncompleteMultipartUpload)."
)
_UNFINISHED = timedelta(days=1)  # nothing that still goes on takes that long between its parts


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was tried: how long it took in milliseconds, and what went wrong."""

    name: str
    ms: float
    error: StagesinkError | None = None

    def to_dict(self) -> dict[str, Any]:
        problem = {} if self.error is None else {"error": describe(self.error)}
        return {"step": self.name, "ok": self.error is None, "ms": round(self.ms, 1), **problem}


@dataclass(slots=True)
class Sweep:
    """What was removed, or why nothing was looked for."""

    found: list[str] | None = None
    why: str = "there is nothing to sweep in such a store, or it could not be asked."

    def lines(self) -> list[str]:
        if self.found is None:
            return [f"Not swept: {self.why}"]
        return [f"Aborted: {name}" for name in self.found] or ["Nothing unfinished was found."]


def doctor(
    sink: options.Sink = None,
    config_dir: options.ConfigDir = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    sweep: Annotated[
        bool,
        typer.Option(
            "--sweep", help="Also abort uploads in parts (S3) that were begun over a day ago and not finished."
        ),
    ] = False,
) -> None:
    """Show what is installed and which sink is used, then write, read, stat, list and delete a probe object there.

    The probe lies under a run id of its own, and its objects are removed; a root folder that the store did not have
    before stays. Where a server makes the runs, one is started for it and deleted again. Exits with the code of what
    failed first.
    """
    out = Output(as_json, quiet, verbose)
    chosen: dict[str, Any] = {}
    swept = Sweep() if sweep else None
    steps = _examine(sink, config_dir, chosen, swept)
    problem = next((step.error for step in steps if step.error is not None), None)
    installed = _installed()
    document = {"ok": problem is None, **installed, "sink": chosen or None, "probe": [step.to_dict() for step in steps]}
    if swept is not None:
        document["swept"] = swept.found or []
    rows = [(step.name, f"{step.ms:.1f}", "ok" if step.error is None else str(step.error)) for step in steps]
    where = f"Sink: {chosen['uri']} ({chosen['why']})" if chosen else "Sink: none"
    probed = table(("Probe", "ms", "Result"), rows, right=("ms",))
    out.show(document, _packages(installed), where, probed, *(swept.lines() if swept else ()))
    if problem is not None:
        raise typer.Exit(exit_code(problem))


def _installed() -> dict[str, Any]:
    import platform

    return {
        "stagesink": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "gzip": "isal" if _version("isal") else "zlib",
        "extras": _extras(),
    }


def _extras() -> dict[str, dict[str, str | None]]:
    """Return for each extra the version of each of its packages, None for one that is not installed."""
    from importlib import metadata

    extras: dict[str, dict[str, str | None]] = {}
    for requirement in metadata.requires("stagesink") or ():
        match = _REQUIREMENT.match(requirement)
        if match is not None and match[2] != "all":  # which only names the others
            extras.setdefault(match[2], {})[match[1]] = _version(match[1])
    return extras


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _packages(installed: dict[str, Any]) -> Any:
    rows = [
        ("stagesink", installed["stagesink"], ""),
        ("python", f"{installed['python']} on {installed['platform']}", ""),
        ("gzip by", installed["gzip"], "" if installed["gzip"] == "isal" else "slow: pip install 'stagesink[fast]'"),
    ]
    for extra, packages in installed["extras"].items():
        have = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
        missing = ", ".join(name for name, version in packages.items() if not version)
        hint = f"without {missing}: pip install 'stagesink[{extra}]'" if missing else ""
        rows.append((f"extra {extra}", have or "not installed", hint))
    return table(("Part", "Version", ""), rows)


def _examine(sink: str | None, config_dir: Any, chosen: dict[str, Any], swept: Sweep | None) -> list[Step]:
    """Go from the configuration to the probe, as far as it goes.

    ``chosen`` takes the sink as soon as it is known, ``swept`` what was removed; None leaves that out.
    """
    from stagesink.destination import choose_sink

    with options.open_uploader(sink, None, config_dir) as uploader:

        def configure() -> None:
            choice = choose_sink(uploader.config, sink)
            chosen.update(uri=choice.shown, why=choice.why)

        def connect() -> None:
            _ = uploader.sink

        steps = _until_failure([("configuration", configure), ("open", connect)])
        if steps[-1].error is not None:
            return steps
        from stagesink.sinks.protocol import ScratchRunSink, SweepingSink, TrackedSink

        store = uploader.sink
        if isinstance(store, ScratchRunSink):
            return [*steps, *_probe_in_scratch_run(store)]
        if isinstance(store, TrackedSink) and store.tracks_runs:
            return [*steps, *_probe_in_new_run(store)]
        probe = _probe(store, f"stagesink-doctor-{secrets.token_hex(4)}")
        if swept is not None and probe[-1].error is None and isinstance(store, SweepingSink):
            probe += _until_failure([("sweep", lambda: _sweep(store, swept))])
        return [*steps, *probe]


def _sweep(sink: SweepingSink, into: Sweep) -> None:
    into.found = sink.sweep(_UNFINISHED)
    if into.found is None:
        into.why = _ELSEWHERE


def _probe_in_scratch_run(sink: ScratchRunSink) -> list[Step]:
    """Probe a sink that makes a run for it, and deletes it afterwards."""
    runs: list[str] = []
    with ExitStack() as stack:
        steps = _until_failure([("start run", lambda: runs.append(stack.enter_context(sink.scratch_run())))])
        for run_id in runs:
            try:
                steps += _probe(sink, run_id)
            finally:
                steps += _until_failure([("delete run", stack.close)])
    return steps


def _probe_in_new_run(sink: TrackedSink) -> list[Step]:
    """Probe a sink whose runs a server makes, in one that is deleted afterwards."""
    from stagesink.runs.tracked import TrackedRun, start_run

    runs: list[TrackedRun] = []
    steps = _until_failure(
        [("start run", lambda: runs.append(start_run(sink.tracking_uri, run_name="stagesink doctor")))]
    )
    for run in runs:
        try:
            steps += _probe(sink, run.run_id)
        finally:
            steps += _until_failure([("delete run", run.delete)])
    return steps


def _probe(sink: ArtifactSink, run_id: str) -> list[Step]:
    from stagesink.artifacts import ArtifactKey, MemorySource

    key = ArtifactKey(run_id, "probe.bin")
    data = secrets.token_bytes(1024)

    def must(good: bool, message: str) -> None:
        if not good:
            raise VerificationError(f"{sink.uri} {message}.", hint="The store, or what stands before it, is at fault.")

    def write() -> None:
        must(sink.put(key, MemorySource(data)).size == len(data), "says that it stored another number of bytes")

    def read() -> None:
        with sink.open(key) as stream:
            must(stream.read(len(data) + 1) == data, "gives back other bytes than were written")

    def stat() -> None:
        there = sink.stat(key)
        must(there is not None and there.size == len(data), "does not say that it holds what was written")

    def find() -> None:
        must([stored.key for stored in sink.list(key.run_id)] == [key], "does not list what was written")

    def delete() -> None:
        sink.delete(key)
        must(sink.stat(key) is None, "still holds what was deleted")

    try:
        return _until_failure(
            [("write", write), ("read back", read), ("stat", stat), ("list", find), ("delete", delete)]
        )
    finally:
        with suppress(StagesinkError):  # after a failure or Ctrl-C; what went wrong is told already
            sink.delete(key)


def _until_failure(steps: list[tuple[str, Callable[[], None]]]) -> list[Step]:
    done: list[Step] = []
    for name, step in steps:
        start = time.perf_counter()
        error: StagesinkError | None = None
        try:
            step()
        except StagesinkError as raised:
            error = raised
        done.append(Step(name, (time.perf_counter() - start) * 1e3, error))
        if error is not None:
            break
    return done
