"""``stagesink sync``, ``stagesink status`` and ``stagesink outbox``: what waits on this disk, and getting it away."""

from __future__ import annotations

import signal
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stagesink.cli import options
from stagesink.cli.errors import KEPT
from stagesink.cli.options import examples
from stagesink.cli.output import Output, count, human_size, table
from stagesink.errors import ArtifactNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stagesink.config import Config
    from stagesink.outbox.index import Row
    from stagesink.outbox.store import Outbox
    from stagesink.outbox.sync import Outcome
    from stagesink.runs.sync import RunOutcome, RunSync

SYNC_EPILOG = examples("stagesink sync", "stagesink sync -r run1 --sink s3://bucket/runs", "stagesink sync --watch")
STATUS_EPILOG = examples("stagesink status", "stagesink status --json | jq '.waiting'")
LS_EPILOG = examples("stagesink outbox ls", "stagesink outbox ls --json | jq -r '.entries[].id'")
RM_EPILOG = examples("stagesink outbox rm 20260101T120000-0123456789ab", "stagesink outbox rm --all --yes")
GC_EPILOG = examples("stagesink outbox gc")

OutboxPath = Annotated[
    str | None,
    typer.Option(
        "--outbox",
        metavar="DIR",
        help="The outbox. Default: STAGESINK_OUTBOX_PATH, then mlflow.yaml, then ./.stagesink/outbox.",
        rich_help_panel="Where",
    ),
]
OnlySink = Annotated[
    str | None,
    typer.Option("--sink", "-s", metavar="URI", help="Only what waits for this sink.", rich_help_panel="What"),
]
OnlyRun = Annotated[
    str | None,
    typer.Option("--run-id", "-r", metavar="ID", help="Only what waits for this run.", rich_help_panel="What"),
]

_LOOK_EVERY = 1.0  # seconds between two looks of `sync --watch`
_ITS_OWNERS_SECONDS = 5.0  # how long an upload is left to the process that handed it over
_FIRST_WAIT = 5.0  # seconds until what failed is tried again, doubled each time
_LONGEST_WAIT = 300.0
_RUNS_EVERY = 30.0  # seconds until a run that failed is tried again

outbox = typer.Typer(help="What waits on this disk.", no_args_is_help=True)


def sync(
    sink: OnlySink = None,
    run_id: OnlyRun = None,
    outbox: OutboxPath = None,
    config_dir: options.ConfigDir = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait for another sync of this outbox, or say who is at it.")
    ] = True,
    watch: Annotated[bool, typer.Option("--watch", help="Go on with what comes, until Ctrl-C or SIGTERM.")] = False,
    moved: Annotated[
        bool, typer.Option("--moved", help="A store that is at another address now than when it was kept is the same.")
    ] = False,
    workers: options.Workers = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Upload what waits in the outbox.

    Stop it and start it again as often as you like: each upload lands once. What cannot land yet waits on, and the exit
    code is 5.
    """
    out = Output(as_json, quiet, verbose)
    if watch and as_json:
        raise typer.BadParameter("--watch never ends by itself, so it has no JSON document to print.")
    opened = Opened(outbox, config_dir, workers=workers, moved=moved, make=watch)
    if watch:
        _watch(opened, *_wanted(sink, run_id), out, wait=wait)
        return
    if opened.outbox is None:
        out.show(
            {"outbox": str(opened.path), "outcomes": [], "runs": [], "waiting": 0, "waiting_runs": 0}, "Nothing waits."
        )
        return
    from stagesink.runs.sync import RunOutcome

    wanted, wanted_run = _wanted(sink, run_id)
    outcomes: list[Outcome] = []
    told: list[RunOutcome] = []
    runs = opened.runs()
    with opened.outbox.one_sync(wait=wait, notice=out.note), opened.sync(runs, quiet=quiet) as run:
        for outcome in runs.everything(run, wanted, wanted_run):
            if isinstance(outcome, RunOutcome):
                told.append(outcome)
            else:
                outcomes.append(outcome)
            if out.verbose or outcome.error is not None:
                out.note(sentence(outcome))
    waiting = [row for row in opened.outbox.rows() if wanted(row)]
    waiting_runs = [each.run_id for each, uri in opened.outbox.runs.waiting() if wanted_run(uri, each.run_id)]
    document = {
        "outbox": str(opened.path),
        "outcomes": [_outcome(each) for each in outcomes],
        "runs": [_run_outcome(each) for each in told],
        "waiting": len(waiting),
        "waiting_runs": len(waiting_runs),
    }
    landed = [each for each in outcomes if each.status == "landed"]
    size = sum(each.row.bytes for each in landed)
    all_there = not (waiting or waiting_runs)
    lines = [f"Landed: {count(len(landed), 'upload')}, {human_size(size)}"] if landed or all_there else []
    lines += [f"Run {each.run_id} is run {each.server_run_id} of {each.sink}" for each in told if _has_new_name(each)]
    if not all_there:
        left = [count(len(waiting), "upload")] if waiting else []
        left += [count(len(waiting_runs), "run")] if waiting_runs else []
        lines.append(f"Still waiting: {', '.join(left)}. `stagesink status` says why.")
    out.show(document, *lines)
    if not all_there:
        raise typer.Exit(KEPT)


def status(
    outbox: OutboxPath = None,
    config_dir: options.ConfigDir = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Say what waits in the outbox: for where, since when, and why."""
    out = Output(as_json, quiet, verbose)
    opened = Opened(outbox, config_dir)
    rows = [] if opened.outbox is None else opened.outbox.rows()
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.sink, row.run_id), []).append(row)
    runs = {} if opened.outbox is None else {(uri, run.run_id): run for run, uri in opened.outbox.runs.waiting()}
    for place in runs:
        groups.setdefault(place, [])
    document = {
        "outbox": str(opened.path),
        "waiting": len(rows),
        "size": sum(row.bytes for row in rows),
        "runs": [
            {
                "sink": sink,
                "run_id": run_id,
                "uploads": len(group),
                "size": sum(row.bytes for row in group),
                "since": _iso(min([row.created for row in group] or [runs[sink, run_id].start.time / 1000])),
                "attempts": max((row.attempts for row in group), default=0),
                "run_waits": (sink, run_id) in runs,
                "why": _why(group) or (runs[sink, run_id].told(sink).error if (sink, run_id) in runs else None),
            }
            for (sink, run_id), group in groups.items()
        ],
    }
    if not groups:
        out.show(document, f"Nothing waits in {opened.path}.")
        return
    shown = [
        (
            run["sink"] or "damaged",
            run["run_id"],
            str(run["uploads"]),
            human_size(run["size"]),
            _age(run["since"]),
            run["why"] or "not tried yet",
        )
        for run in document["runs"]  # type: ignore[attr-defined]
    ]
    columns = ("Sink", "Run", "Uploads", "Size", "Waits", "Why")
    human = table(columns, shown, right=("Uploads", "Size"))
    out.show(document, human, f"In {opened.path}; `stagesink sync` uploads it.")


@outbox.command("ls", epilog=LS_EPILOG)
def ls(
    outbox: OutboxPath = None,
    config_dir: options.ConfigDir = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """List what waits, upload by upload, oldest first."""
    out = Output(as_json, quiet, verbose)
    opened = Opened(outbox, config_dir)
    rows = [] if opened.outbox is None else opened.outbox.rows()
    document = {"outbox": str(opened.path), "entries": [_row(row) for row in rows]}
    shown = [
        (row.id, row.run_id, row.path, str(row.files), human_size(row.bytes), str(row.attempts), _where(row))
        for row in rows
    ]
    if not rows:
        out.show(document, f"Nothing waits in {opened.path}.")
        return
    out.show(document, table(("Id", "Run", "Path", "Files", "Size", "Attempts", "Sink"), shown))


@outbox.command("rm", epilog=RM_EPILOG)
def rm(
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID...", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything that waits.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    outbox: OutboxPath = None,
    config_dir: options.ConfigDir = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Throw away what waits. It was not uploaded, and is gone then."""
    out = Output(as_json, quiet, verbose)
    if bool(ids) == everything:
        raise typer.BadParameter("name what to remove, or say --all.")
    opened = Opened(outbox, config_dir)
    rows = {} if opened.outbox is None else {row.id: row for row in opened.outbox.rows()}
    unknown = [each for each in ids or () if each not in rows]
    if unknown:
        raise ArtifactNotFound(
            f"{unknown[0]} does not wait in {opened.path}.", hint="`stagesink outbox ls` shows what does."
        )
    chosen = [rows[each] for each in ids] if ids else list(rows.values())
    size = human_size(sum(row.bytes for row in chosen))
    if chosen and not yes:
        typer.confirm(f"Remove {count(len(chosen), 'upload')}, {size}, that never landed?", abort=True, err=True)
    removed, held = [], []
    for row in chosen:
        assert opened.outbox is not None
        with opened.outbox.claim(row.id) as entry:
            if entry is None and opened.outbox.entry(row.id) is not None:
                held.append(row)
                continue
            opened.outbox.remove(row.id)
            removed.append(row)
    document = {"removed": [row.id for row in removed], "held": [row.id for row in held]}
    lines = [f"Removed: {count(len(removed), 'upload')}"]
    if held:
        lines.append(f"Being uploaded just now, so not removed: {count(len(held), 'upload')}")
    out.show(document, *lines)


@outbox.command("gc", epilog=GC_EPILOG)
def gc(
    outbox: OutboxPath = None,
    config_dir: options.ConfigDir = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Remove what killed processes left half-made, and runs that servers have known for a month. What waits stays."""
    out = Output(as_json, quiet, verbose)
    opened = Opened(outbox, config_dir)
    freed = 0
    if opened.outbox is not None:
        freed = opened.outbox.gc() + opened.outbox.runs.gc({row.run_id for row in opened.outbox.rows()})
    out.show({"outbox": str(opened.path), "freed": freed}, f"Freed: {human_size(freed)}")


def _is_folder(path: Path) -> bool:
    from stagesink.errors import OutboxError

    try:
        return path.is_dir()
    except OSError as error:
        raise OutboxError(
            f"The outbox {path} cannot be used: {error.strerror}.",
            hint="Name another folder: --outbox, or artifacts.outbox.path.",
        ) from error


class Opened:
    """The outbox that is meant; None where there is none, for looking does not make one."""

    def __init__(
        self,
        path: str | None,
        config_dir: Path | None,
        *,
        workers: int | None = None,
        moved: bool = False,
        make: bool = False,
    ) -> None:
        from stagesink.config import load_config
        from stagesink.keeping import open_outbox

        self._moved = moved
        self.config: Config = load_config(config_dir, arguments={"outbox.path": path, "workers": workers})
        settings = self.config.artifacts.outbox
        self.path = Path(settings.path).absolute()
        self.outbox: Outbox | None = open_outbox(settings) if make or _is_folder(self.path) else None

    def runs(self) -> RunSync:
        from stagesink.runs.sync import RunSync

        assert self.outbox is not None
        return RunSync(self.outbox)

    def sync(self, runs: RunSync, *, quiet: bool) -> Any:
        from stagesink.keeping import open_sink_again
        from stagesink.outbox.sync import Sync
        from stagesink.transfer import progress_callback

        settings = self.config.artifacts
        assert self.outbox is not None
        return Sync(
            self.outbox,
            lambda uri: open_sink_again(self.config, uri),
            settings.transfer_options,
            progress=progress_callback("none" if quiet else settings.progress),
            run_of=runs.run_of,
            moved=self._moved,
        )


def _watch(
    opened: Opened,
    wanted: Callable[[Row], bool],
    wanted_run: Callable[[str, str], bool],
    out: Output,
    *,
    wait: bool,
) -> None:
    """Upload what comes. A signal ends it at any moment: each upload waits until it has landed."""
    from stagesink.runs.sync import RunOutcome

    assert opened.outbox is not None
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    not_before: dict[tuple[str, str], float] = {}

    def is_due(sink: str, run_id: str) -> bool:
        return wanted_run(sink, run_id) and time.monotonic() >= not_before.get((sink, run_id), 0.0)

    try:
        with opened.outbox.one_sync(wait=wait, notice=out.note):
            out.note(f"Watching {opened.path}. Ctrl-C stops it.")
            while True:
                runs = opened.runs()
                with opened.sync(runs, quiet=out.quiet) as run:
                    for outcome in runs.everything(run, lambda row: wanted(row) and _is_due(row), is_due):
                        if isinstance(outcome, RunOutcome):
                            if outcome.error is None and not out.verbose:
                                continue
                            not_before[outcome.sink, outcome.run_id] = time.monotonic() + _RUNS_EVERY
                        out.note(sentence(outcome))
                time.sleep(_LOOK_EVERY)
    except KeyboardInterrupt:
        out.note("Stopped. What has not landed waits on.")


def _is_due(row: Row) -> bool:
    """Tell whether it is time for an upload: what failed waits longer each time, what is new may be in good hands."""
    since, wait = row.created, _ITS_OWNERS_SECONDS
    if row.last_attempt is not None:
        since, wait = row.last_attempt, min(_FIRST_WAIT * 2.0 ** min(row.attempts - 1, 10), _LONGEST_WAIT)
    return not 0 <= time.time() - since < wait  # a clock that was set back must not hold anything up


def _wanted(sink: str | None, run_id: str | None) -> tuple[Callable[[Row], bool], Callable[[str, str], bool]]:
    """Return what tells whether an upload is meant, and whether a run is."""
    from stagesink.redaction import bare_uri
    from stagesink.sinks import open_sink

    uri = None
    if sink is not None:
        with closing(open_sink(sink)) as opened:
            uri = bare_uri(opened.uri)

    def wanted_run(of_sink: str, of_run: str) -> bool:
        return uri in (None, of_sink) and run_id in (None, of_run)

    return lambda row: wanted_run(row.sink, row.run_id), wanted_run


def _where(row: Row) -> str:
    if not row.sink:
        return "damaged"
    return f"{row.sink} at {row.host}" if row.host else row.sink


def _row(row: Row) -> dict[str, Any]:
    return {
        "id": row.id,
        "sink": row.sink,
        "host": row.host or None,
        "run_id": row.run_id,
        "path": row.path,
        "stage": row.stage,
        "slot": row.slot,
        "files": row.files,
        "size": row.bytes,
        "since": _iso(row.created),
        "attempts": row.attempts,
        "last_attempt": None if row.last_attempt is None else _iso(row.last_attempt),
        "error": row.error,
    }


def _outcome(outcome: Outcome) -> dict[str, Any]:
    from stagesink.cli.errors import describe

    error = None if outcome.error is None else describe(outcome.error)
    return {**_row(outcome.row), "status": outcome.status, "error": error}


def _run_outcome(outcome: RunOutcome) -> dict[str, Any]:
    from stagesink.cli.errors import describe

    return {
        "run_id": outcome.run_id,
        "sink": outcome.sink,
        "server_run_id": outcome.server_run_id,
        "status": outcome.status,
        "error": None if outcome.error is None else describe(outcome.error),
    }


def _has_new_name(outcome: RunOutcome) -> bool:
    return outcome.server_run_id not in (None, outcome.run_id)


def sentence(outcome: Outcome | RunOutcome) -> str:
    """Say what came of one upload, or of telling a server about a run."""
    from stagesink.runs.sync import RunOutcome

    if isinstance(outcome, RunOutcome):
        return f"Run {outcome.run_id}: {outcome.error or f'{outcome.sink} knows everything'}"
    what = f"{outcome.row.path} of run {outcome.row.run_id}"
    if outcome.error is not None:
        return f"{what}: {outcome.error}"
    said = {
        "landed": f"landed in {outcome.row.sink}",
        "superseded": "a newer upload to the same place has landed",
        "held": "another process is uploading it",
    }
    return f"{what}: {said[outcome.status]}"


def _why(rows: Sequence[Row]) -> str | None:
    """Return the reason of the last attempt that failed."""
    failed = [row for row in rows if row.error is not None]
    return max(failed, key=lambda row: row.last_attempt or 0).error if failed else None


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def _age(since: str) -> str:
    """Return how long ago that was, for people."""
    seconds = max(0.0, time.time() - datetime.fromisoformat(since).timestamp())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
