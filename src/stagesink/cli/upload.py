"""``stagesink upload``."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from stagesink.cli import options
from stagesink.cli.options import examples
from stagesink.cli.output import Output, count, human_size, table
from stagesink.errors import KeptInOutbox, StagesinkError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stagesink.archive import ArchiveFormat
    from stagesink.artifacts import Receipt
    from stagesink.transfer import Plan
    from stagesink.transfer.share import Share
    from stagesink.uploader import ArtifactUploader

EPILOG = examples(
    "stagesink upload out/checkpoint --stage training",
    "stagesink upload metrics.json --to eval/metrics.json --sink s3://bucket/runs -r run1",
    "stagesink upload out/checkpoint --pack tar.zst --exclude 'optimizer*' --dry-run",
)

# Spelled out once more: importing the engine for them would slow every `--help`. mypy holds them against the originals.
Pack = Literal["none", "tar.gz", "tar.zst"]
Verify = Literal["auto", "full", "size", "none"]

_NEW_RUN = "a-new-run"  # stands for the run id that only an upload makes up


def upload(
    path: Annotated[
        str,
        typer.Argument(metavar="PATH", help="A file or a folder.", show_default=False, callback=options.not_empty),
    ],
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="ARTIFACT_PATH", help="Where in the run it lands. Default: its own name."),
    ] = None,
    pack: Annotated[
        Pack | None,
        typer.Option("--pack", help="Send a folder as one archive. Default: as --to ends, then artifacts.pack."),
    ] = None,
    stage: options.Stage = None,
    sink: options.Sink = None,
    run_id: options.RunId = None,
    config_dir: options.ConfigDir = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    verify: Annotated[
        Verify | None,
        typer.Option("--verify", help="What proves that it landed; full reads back and mends. Default: as configured."),
    ] = None,
    workers: options.Workers = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", help="PATH is this rank's part of a folder that all ranks of a job upload."),
    ] = None,
    world_size: Annotated[int | None, typer.Option("--world-size", help="How many ranks there are.")] = None,
    session: Annotated[
        str | None,
        typer.Option("--session", help="The same on all ranks; another for each checkpoint and each start of the job."),
    ] = None,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Upload a file, or a folder as a tree of the same name.

    What lies there already with the same bytes is not sent again. Nobody sees a part of it: it is there when its
    manifest is, which is written last.
    """
    out = Output(as_json, quiet, verbose)
    share = _share(rank, world_size, session)
    chosen = _Chosen(Path(path), to, pack, tuple(include or ()), tuple(exclude or ()), share)
    with options.open_uploader(
        sink, run_id, config_dir, stage=stage, workers=workers, verify=verify, quiet=quiet
    ) as uploader:
        # Planned before a run is made up and before the backend is touched: what is wrong with PATH is said first.
        plan = chosen.plan(uploader, _known_run(run_id))
        if dry_run:
            _show_plan(out, uploader, plan, sink)
            return
        if share is not None and uploader.named_run_id is None:
            raise typer.BadParameter("With --rank, name one run for all ranks: --run-id or STAGESINK_RUN_ID.")
        plan = _for_run(plan, uploader.run_id)
        start = time.monotonic()
        try:
            landed = uploader.upload_plan(plan)
        except StagesinkError as error:
            raise _kept_instead(uploader, plan, error) from error
        if any(receipt.status == "kept" for receipt in uploader.receipts):  # offline, or its run is on no server yet
            raise KeptInOutbox(f"{plan.path} is kept in {os.path.abspath(uploader.config.artifacts.outbox.path)}.")
        _show_receipts(out, uploader, plan, landed=landed, seconds=time.monotonic() - start)


def _kept_instead(uploader: ArtifactUploader, plan: Plan, error: StagesinkError) -> StagesinkError:
    """Keep what did not land, if it may land later; return what is to be said of it."""
    from stagesink.errors import OutboxError
    from stagesink.keeping import can_wait, what_lands_it

    settings = uploader.config.artifacts.outbox
    if not settings.enabled or not can_wait(error):
        return error
    try:
        uploader.keep_plan(plan, error)
    except OutboxError as second:
        return type(second)(f"{error} It could not be kept either: {second.message}", hint=second.hint)
    what_next = what_lands_it(error)
    where = os.path.abspath(settings.path)
    return KeptInOutbox(f"{plan.path} is kept in {where}: {error}", hint=what_next[0].upper() + what_next[1:])


class _Chosen:
    """What the user wants uploaded, and as what."""

    def __init__(
        self,
        path: Path,
        to: str | None,
        pack: str | None,
        include: Sequence[str],
        exclude: Sequence[str],
        share: Share | None,
    ) -> None:
        self.path, self.pack, self.include, self.exclude, self.share = path, pack, include, exclude, share
        # abspath: "." and "out/.." have names too.
        self.to = os.path.basename(os.path.abspath(path)) if to is None else to

    def plan(self, uploader: ArtifactUploader, run_id: str) -> Plan:
        from stagesink.provenance import provenance
        from stagesink.transfer import plan_file, plan_packed_tree, plan_tree

        origin = provenance(uploader.stage)
        as_folder = os.path.isdir(self.path) or self.pack not in (None, "none")
        if self.share is not None and not as_folder:
            raise typer.BadParameter(f"--rank is for a folder; {self.path} is a file.")
        if not as_folder:
            plan = plan_file(run_id, self.to, self.path, provenance=origin)
            if self.include or self.exclude:
                raise typer.BadParameter(f"--include and --exclude choose files of a folder; {self.path} is a file.")
            return plan
        to, pack = self._landing(uploader.config.artifacts.pack)
        chosen: dict[str, Any] = {"include": self.include, "exclude": self.exclude, "provenance": origin}
        if pack == "none":
            return plan_tree(run_id, to, self.path, share=self.share, **chosen)
        if self.share is not None and self.share.world_size > 1:
            raise typer.BadParameter("Several ranks cannot make one archive: use --pack none with --rank.")
        level = uploader.config.artifacts.compression.level
        return plan_packed_tree(
            run_id, to, self.path, archive_format=cast("ArchiveFormat", pack), level=level, **chosen
        )

    def _landing(self, configured: str) -> tuple[str, str]:
        """Return where the folder lands, and as which kind of archive, or "none"."""
        from stagesink.archive import ARCHIVE_SUFFIXES, archive_format_of

        to = self.to.rstrip("/")
        named = archive_format_of(to) if to.lower().endswith(tuple(ARCHIVE_SUFFIXES)) else None
        pack = self.pack or named or configured
        if pack == "none" or pack == named:
            return to, pack
        if named is not None:
            raise typer.BadParameter(f"--pack {pack} and --to {to} name two formats.")
        return f"{to}.{pack}", pack


def _share(rank: int | None, world_size: int | None, session: str | None) -> Share | None:
    from stagesink.transfer.share import Share

    if rank is None and world_size is None and session is None:
        return None
    if rank is None or world_size is None or session is None:
        # Not asked of the launcher, as in Python: each command is a process of its own and cannot count checkpoints.
        raise typer.BadParameter("--rank, --world-size and --session go together.")
    return Share(rank, world_size, session)


def _known_run(run_id: str | None) -> str:
    from stagesink.errors import RunNotFound
    from stagesink.runs import find_run

    try:
        return find_run(run_id, needs_server=True).run_id
    except RunNotFound:
        return _NEW_RUN


def _for_run(plan: Plan, run_id: str) -> Plan:
    from stagesink.artifacts import ArtifactKey

    if plan.run_id == run_id:
        return plan
    objects = tuple(replace(item, key=ArtifactKey(run_id, item.key.path)) for item in plan.objects)
    return replace(plan, run_id=run_id, objects=objects)


def _switched_off(uploader: ArtifactUploader, plan: Plan) -> str | None:
    from stagesink.config import skip_artifact_logging

    if skip_artifact_logging():
        return "MLFLOW_SKIP_ARTIFACT_LOGGING is set"
    slot = uploader.config.stages.slot_for(uploader.stage, plan.path)
    return uploader.config.switched_off_by(uploader.stage, slot)


def _show_plan(out: Output, uploader: ArtifactUploader, plan: Plan, sink: str | None) -> None:
    from stagesink.destination import choose_sink

    files = _files(plan)
    size = sum(size for _, size in files)
    choice = choose_sink(uploader.config, sink)
    run_id = None if plan.run_id == _NEW_RUN else plan.run_id
    off = _switched_off(uploader, plan)
    document = {
        "dry_run": True,
        "run_id": run_id,
        "sink": choice.shown,
        "path": plan.path,
        "kind": plan.kind,
        "files": [{"path": path, "size": size} for path, size in files],
        "size": size,
        "skipped": list(plan.skipped),
        "switched_off": off,
    }
    rows = [(path, human_size(size)) for path, size in files] + [(path, "skipped") for path in plan.skipped]
    title = "Would pack" if plan.kind == "archive" else "Would land as"
    what = f"{count(len(files), 'file')}, {human_size(size)}"
    where = f"{plan.path} in {choice.shown}, run {run_id or 'made at the upload'}"
    last = f"{what}: would land as {where}" if off is None else f"{what}: would NOT be uploaded, since {off}"
    out.show(document, table((title, "Size"), rows), last)


def _files(plan: Plan) -> list[tuple[str, int]]:
    """Return path and size of every file: in the run, or in the archive that would be made."""
    from stagesink.archive import ArchiveSource

    source = plan.objects[0].source if plan.objects else None
    if isinstance(source, ArchiveSource):
        return [(file.path, file.size) for file in source.tree.files]
    return [(item.key.path, item.size or 0) for item in plan.objects]


def _show_receipts(out: Output, uploader: ArtifactUploader, plan: Plan, *, landed: bool, seconds: float) -> None:
    receipts = uploader.receipts
    document: dict[str, Any]
    if not landed:
        reason = receipts[-1].error or "it is switched off"
        document = {"run_id": plan.run_id, "path": plan.path, "status": "skipped", "reason": reason}
        out.show(document, f"{plan.path} was not uploaded: {reason}.")
        return
    size = sum(receipt.size for receipt in receipts)
    document = {
        "run_id": plan.run_id,
        "sink": uploader.sink.uri,
        "path": plan.path,
        "kind": plan.kind,
        "status": "uploaded" if any(receipt.status == "uploaded" for receipt in receipts) else "unchanged",
        "size": size,
        "seconds": round(seconds, 3),
        "receipts": [_receipt(receipt) for receipt in receipts],
        "skipped": list(plan.skipped),
    }
    summary = (plan.path, plan.kind, str(len(_files(plan))), human_size(size), _sent(receipts), _proofs(receipts))
    human: list[Any] = [table(("Path", "Kind", "Files", "Size", "Sent", "Proof"), [summary])]
    if out.verbose:
        rows = [(r.key.path, human_size(r.size), r.status, r.verified_by, r.sha256 or "") for r in receipts]
        human.insert(0, table(("Object", "Size", "Status", "Proof", "sha256"), rows))
    out.show(document, *human, f"In {uploader.sink.uri}, run {plan.run_id}")
    if plan.skipped:
        out.note(f"Skipped: {', '.join(plan.skipped[:10])}{' ...' if len(plan.skipped) > 10 else ''}")


def _receipt(receipt: Receipt) -> dict[str, Any]:
    return {
        "path": receipt.key.path,
        "uri": receipt.uri,
        "size": receipt.size,
        "sha256": receipt.sha256,
        "status": receipt.status,
        "verified_by": receipt.verified_by,
        "attempts": receipt.attempts,
        "seconds": round(receipt.seconds, 3),
    }


def _sent(receipts: Sequence[Receipt]) -> str:
    unchanged = sum(receipt.status == "unchanged" for receipt in receipts)
    if unchanged == len(receipts):
        return "nothing, unchanged"
    sent = human_size(sum(receipt.size for receipt in receipts if receipt.status == "uploaded"))
    return f"{sent}, {unchanged} unchanged" if unchanged else sent


def _proofs(receipts: Sequence[Receipt]) -> str:
    return ", ".join(sorted({receipt.verified_by for receipt in receipts}))
