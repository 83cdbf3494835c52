"""``stagesink ls`` and ``stagesink verify``: what a run holds, and whether it still holds it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stagesink.artifacts import ArtifactKey, lies_under
from stagesink.cli import options
from stagesink.cli.options import examples
from stagesink.cli.output import Output, count, human_size, table
from stagesink.errors import ArtifactNotFound

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from stagesink.artifacts import StoredArtifact
    from stagesink.manifest import Manifest
    from stagesink.transfer import Check
    from stagesink.uploader import ArtifactUploader

LS_EPILOG = examples(
    "stagesink ls -r run1 --sink s3://bucket/runs",
    "stagesink ls checkpoint --objects -r run1",
    "stagesink ls -r run1 --json | jq '.uploads[].path'",
)
VERIFY_EPILOG = examples(
    "stagesink verify -r run1", "stagesink verify checkpoint -r run1", "stagesink verify --sizes -r run1 --json"
)


def ls(
    path: options.PathInRun = None,
    objects: Annotated[bool, typer.Option("--objects", help="List the stored objects, one by one.")] = False,
    sink: options.Sink = None,
    run_id: options.RunId = None,
    config_dir: options.ConfigDir = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """List what a run holds: every upload that is whole.

    What lies there without a manifest was not committed; a note says so.
    """
    out = Output(as_json, quiet, verbose)
    run = options.named_run(run_id)
    with options.open_uploader(sink, run, config_dir) as uploader:
        found = _Run(uploader, run, path)
        document: dict[str, Any] = {"run_id": run, "sink": uploader.sink.uri}
        if objects:
            _show_objects(out, document, found)
        else:
            _show_uploads(out, document, found)


class _Run:
    """What lies in a run, or below a path in it.

    Raises
    ------
    ArtifactNotFound
        Nothing.
    """

    def __init__(self, uploader: ArtifactUploader, run_id: str, path: str | None) -> None:
        from stagesink.transfer.read import list_objects, read_committed

        sink, transfer_options = uploader.sink, uploader.options
        prefix = (path or "").rstrip("/")
        ArtifactKey(run_id, prefix or "any")  # refuses a path that would leave the run
        everything = list_objects(sink, run_id, options=transfer_options)
        self.objects = [stored for stored in everything if lies_under(stored.key.path, prefix)]
        committed = read_committed(sink, everything, transfer_options)
        # A path inside a tree stands for the tree: a part of an upload has no manifest of its own.
        self.uploads = tuple(m for m in committed if lies_under(m.path, prefix) or lies_under(prefix, m.path))
        if not self.objects and not self.uploads:
            where = f"at {path!r} in the run {run_id}" if path else f"in the run {run_id}"
            raise ArtifactNotFound(
                f"There is nothing {where} in {sink.uri}.",
                hint="`stagesink config` says which sink and run are used and why; --sink and --run-id name others.",
            )
        self._known = {m.key.path for m in committed} | {entry.path for m in committed for entry in m.objects()}

    def is_committed(self, stored: StoredArtifact) -> bool:
        return stored.key.path in self._known

    @property
    def uncommitted(self) -> list[str]:
        return [stored.key.path for stored in self.objects if not self.is_committed(stored)]

    @property
    def unreadable(self) -> list[str]:
        """Names that only our manifests have, with something else under them."""
        return [path for path in self.uncommitted if path.endswith(".manifest.json")]


def _show_uploads(out: Output, document: dict[str, Any], found: _Run) -> None:
    document["uploads"] = [_upload(manifest) for manifest in found.uploads]
    document["uncommitted"] = found.uncommitted
    rows = [
        (u["path"], u["kind"], str(u["files"]), human_size(u["size"]), u["stage"] or "", u["created_at"] or "")
        for u in document["uploads"]
    ]
    human = [table(("Path", "Kind", "Files", "Size", "Stage", "When"), rows)] if rows else []
    out.show(document, *human)
    _note_uncommitted(out, found.uncommitted)


def _show_objects(out: Output, document: dict[str, Any], found: _Run) -> None:
    document["objects"] = [
        {"path": stored.key.path, "size": stored.size, "uri": stored.uri, "committed": found.is_committed(stored)}
        for stored in found.objects
    ]
    rows = [
        (each["path"], human_size(each["size"]), "" if each["committed"] else "not committed")
        for each in document["objects"]
    ]
    out.show(document, table(("Object", "Size", ""), rows))


def _note_uncommitted(out: Output, paths: Collection[str]) -> None:
    if paths:
        shown = ", ".join(sorted(paths)[:5]) + (" ..." if len(paths) > 5 else "")
        out.note(f"{count(len(paths), 'object')} not committed, being uploaded or left by a stopped upload: {shown}")


def _upload(manifest: Manifest) -> dict[str, Any]:
    return {
        "path": manifest.path,
        "kind": manifest.kind,
        "files": len(manifest.files),
        "size": sum(entry.size for entry in manifest.objects()),
        "stage": manifest.provenance.get("stage"),
        "created_at": manifest.provenance.get("created_at"),
    }


def verify(
    path: options.PathInRun = None,
    sizes: Annotated[bool, typer.Option("--sizes", help="Compare sizes only, without reading the objects.")] = False,
    sink: options.Sink = None,
    run_id: options.RunId = None,
    config_dir: options.ConfigDir = None,
    workers: options.Workers = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Read everything back and hold it against the manifests: sizes and sha256.

    Exits with 1 when something is missing or other than it was sent, with 3 when there is nothing to verify.
    """
    from stagesink.transfer import select
    from stagesink.transfer import verify as check_all

    out = Output(as_json, quiet, verbose)
    run = options.named_run(run_id)
    with options.open_uploader(sink, run, config_dir, workers=workers, quiet=quiet) as uploader:
        found = _Run(uploader, run, path)
        manifests = select(found.uploads, path) if found.uploads else ()
        if not manifests and not found.unreadable:
            raise ArtifactNotFound(f"Nothing whole lies in the run {run} in {uploader.sink.uri}.")
        transfer_options = replace(uploader.options, verify="size" if sizes else "full")
        checks = check_all(uploader.sink, manifests, transfer_options, progress=uploader.progress)
        results = _by_upload(manifests, checks)
        good = all(check.status == "ok" for check in checks) and not found.unreadable
        document = {
            "run_id": run,
            "sink": uploader.sink.uri,
            "ok": good,
            "proof": "size" if sizes else "sha256",
            "uploads": [{**_upload(m), "ok": not bad, "problems": [_problem(c) for c in bad]} for m, bad in results],
            "unreadable_manifests": found.unreadable,
            "uncommitted": found.uncommitted,
        }
        rows = [row for manifest, bad in results for row in _lines(manifest, bad)]
        rows += [(name, "", "", "no manifest that can be read: damaged, moved or newer") for name in found.unreadable]
        out.show(document, table(("Path", "Files", "Size", "Result"), rows))
        _note_uncommitted(out, found.uncommitted)
    if not good:
        raise typer.Exit(1)


def _by_upload(manifests: Sequence[Manifest], checks: Sequence[Check]) -> list[tuple[Manifest, list[Check]]]:
    """Pair each upload with those of its checks that are bad. Checks come in the order of the manifests' objects."""
    in_order = iter(checks)
    own = [(m, [next(in_order) for _ in m.objects()]) for m in manifests]
    return [(m, [check for check in of_m if check.status != "ok"]) for m, of_m in own]


def _problem(check: Check) -> dict[str, Any]:
    return {"path": check.key.path, "status": check.status, "detail": check.detail}


def _lines(manifest: Manifest, bad: Sequence[Check]) -> list[tuple[str, str, str, str]]:
    size = human_size(sum(entry.size for entry in manifest.objects()))
    first = (manifest.path, str(len(manifest.files)), size, f"{count(len(bad), 'object')} bad" if bad else "ok")
    return [first, *((f"  {check.key.path}", "", human_size(check.size), check.detail) for check in bad)]
