"""``stagesink restore``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stagesink.cli import options
from stagesink.cli.options import examples
from stagesink.cli.output import Output, count, human_size, table
from stagesink.errors import ArtifactNotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stagesink.manifest import Manifest
    from stagesink.transfer import Restored

EPILOG = examples(
    "stagesink restore --to ./restored -r run1",
    "stagesink restore checkpoint --to ./restored --exclude 'optimizer*' -r run1",
    "stagesink restore best_trial_checkpoint.tar.gz --to ./restored --unpack -r run1",
)


def restore(
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="DIR",
            help="Folder to restore into; made when missing.",
            show_default=False,
            callback=options.not_empty,
        ),
    ],
    path: options.PathInRun = None,
    unpack: Annotated[
        bool, typer.Option("--unpack", help="Unpack archives too, each into a folder beside it, without its suffix.")
    ] = False,
    sink: options.Sink = None,
    run_id: options.RunId = None,
    config_dir: options.ConfigDir = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    workers: options.Workers = None,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Download what a run holds, each file checked against its sha256 before it appears.

    Files that are there already with the same bytes are left as they are, so a stopped restore goes on where it was.
    """
    from stagesink.transfer import list_committed, select
    from stagesink.transfer import restore as fetch

    out, folder = Output(as_json, quiet, verbose), Path(to)
    run = options.named_run(run_id)
    with options.open_uploader(sink, run, config_dir, workers=workers, quiet=quiet) as uploader:
        there = select(list_committed(uploader.sink, run, uploader.options), path)
        manifests = select(there, None, include=include or (), exclude=exclude or ())
        if not manifests:
            raise ArtifactNotFound(f"Nothing whole lies in the run {run} in {uploader.sink.uri}.")
        document: dict[str, Any] = {"run_id": run, "sink": uploader.sink.uri, "to": str(folder.absolute())}
        if dry_run:
            _show_plan(out, document, folder, manifests, there)
            return
        archives = [manifest for manifest in manifests if unpack and manifest.kind == "archive"]
        for manifest in archives:
            _unpack_folder(folder, manifest)  # what would be refused is refused before anything is fetched
        restored = fetch(uploader.sink, manifests, folder, uploader.options, progress=uploader.progress)
    _show_restored(out, document, folder, restored, _unpack(archives, folder))


def _show_plan(
    out: Output, document: dict[str, Any], to: Path, manifests: Sequence[Manifest], there: Sequence[Manifest]
) -> None:
    wanted = {entry.path: entry.size for manifest in manifests for entry in manifest.objects()}
    skipped = [entry.path for manifest in there for entry in manifest.objects() if entry.path not in wanted]
    size = sum(wanted.values())
    document |= {
        "dry_run": True,
        "files": [{"path": path, "target": str((to / path).absolute()), "size": n} for path, n in wanted.items()],
        "size": size,
        "skipped": skipped,
    }
    rows = [(str(to / path), human_size(size)) for path, size in wanted.items()]
    rows += [(path, "skipped") for path in skipped]
    last = f"{count(len(wanted), 'file')}, {human_size(size)}: would be restored from {document['sink']}"
    out.show(document, table(("Would land as", "Size"), rows), last)


def _unpack_folder(to: Path, archive: Manifest) -> Path:
    """Return the folder that an archive is unpacked into.

    Raises
    ------
    RestoreError
        A symbolic link leads it out of ``to``.
    """
    from stagesink.archive import ARCHIVE_SUFFIXES
    from stagesink.transfer.restore import check_inside

    suffix = next((each for each in ARCHIVE_SUFFIXES if archive.path.endswith(each)), "")
    folder = to / (archive.path.removesuffix(suffix) if suffix else f"{archive.path}.unpacked")
    check_inside(to, folder)
    return folder


def _unpack(archives: Sequence[Manifest], to: Path) -> dict[str, list[str]]:
    """Unpack the archives; return the files of each by the folder they lie in."""
    from stagesink.archive import extract_checkpoint_archive

    unpacked = {}
    for manifest in archives:
        folder = _unpack_folder(to, manifest)
        # An older program's manifest lists no files: then the archive's own sha256 has to do.
        contents = manifest.to_dict() if manifest.files else None
        unpacked[str(folder)] = extract_checkpoint_archive(to / manifest.path, folder, manifest=contents)
    return unpacked


def _show_restored(
    out: Output, document: dict[str, Any], to: Path, restored: Sequence[Restored], unpacked: dict[str, list[str]]
) -> None:
    size = sum(file.size for file in restored)
    unchanged = sum(file.status == "unchanged" for file in restored)
    document |= {
        "files": [
            {"path": str(file.path), "size": file.size, "sha256": file.sha256, "status": file.status}
            for file in restored
        ],
        "size": size,
        "unpacked": unpacked,
    }
    human: list[Any] = []
    if out.verbose:
        rows = [(str(file.path), human_size(file.size), file.status, file.sha256) for file in restored]
        human.append(table(("File", "Size", "Status", "sha256"), rows))
    already = f", {unchanged} of them there already" if unchanged else ""
    human.append(f"{count(len(restored), 'file')}, {human_size(size)} in {to}, each with the sha256 it had{already}")
    human += [f"{count(len(files), 'file')} unpacked into {folder}" for folder, files in unpacked.items()]
    out.show(document, *human)
