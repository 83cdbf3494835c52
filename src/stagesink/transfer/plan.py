"""What should land where: worked out before the first byte moves."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stagesink.archive import ArchiveFormat, ArchiveSource
from stagesink.artifacts import ArtifactKey, FileSource, Source, source_error
from stagesink.errors import EmptyTree, ManifestError, SourceKindError
from stagesink.manifest import Kind, Manifest, ManifestEntry, manifest_key
from stagesink.transfer.patterns import Patterns
from stagesink.transfer.share import Share
from stagesink.tree import Tree, scan_tree


@dataclass(frozen=True, slots=True)
class PlannedObject:
    """One object: where it goes, and its bytes. ``size`` in bytes, None when only reading tells."""

    key: ArtifactKey
    source: Source
    size: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """One upload: a file, a tree or an archive, with what its manifest will say besides the files.

    Parameters
    ----------
    run_id, path : str
        Where it goes.
    kind : {"file", "tree", "archive"}
    objects : tuple of PlannedObject
    skipped : tuple of str
        What the folder holds and is left out.
    details, provenance : mapping
        Handed through to the manifest.
    contents : tuple of ManifestEntry or None
        What an archive holds, where it is known before it is read.
    archive_sha256 : str or None
        What that knowledge is about: the digest of the archive it came with.
    adds : bool
        What lies at this path already stays, and the manifest goes on naming it; a file that is a part of another
        upload's tree is replaced in it.
    share : Share or None
        It is one rank's share of a tree.
    landed : tuple of ManifestEntry
        What an attempt at this plan has brought over that did not come to its end: objects, with paths inside the run.
        They are not sent again where they still are what they were.
    """

    run_id: str
    path: str
    kind: Kind
    objects: tuple[PlannedObject, ...]
    skipped: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    contents: tuple[ManifestEntry, ...] | None = None
    archive_sha256: str | None = None
    adds: bool = False
    share: Share | None = None
    landed: tuple[ManifestEntry, ...] = ()

    @property
    def manifest_key(self) -> ArtifactKey:
        return manifest_key(self.run_id, self.path, self.kind)

    @property
    def place(self) -> str:
        """What only a newer upload to the same replaces: the path, or a rank's share of what lies there."""
        return self.path if self.share is None else f"{self.path}/rank-{self.share.rank}"

    @property
    def size(self) -> int | None:
        """Bytes of all objects; None when one is unknown."""
        sizes = [item.size for item in self.objects]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def manifest(self, sent: Mapping[ArtifactKey, tuple[int, str]]) -> Manifest:
        """Return the manifest of what was sent.

        Parameters
        ----------
        sent : mapping of ArtifactKey to (int, str)
            Size in bytes and sha256 of each object.
        """
        strip = len(self.path) + 1
        entries = tuple(
            ManifestEntry(item.key.path[strip:] or item.key.path.rpartition("/")[2], *sent[item.key])
            for item in self.objects
        )
        base = Manifest(self.run_id, self.path, self.kind, entries, None, self.skipped, self.details, self.provenance)
        if self.kind != "archive":
            return base
        source = self.objects[0].source
        contents = self.contents
        if isinstance(source, ArchiveSource):
            contents = tuple(ManifestEntry(entry.path, entry.size, entry.sha256) for entry in source.contents)
        elif self.archive_sha256 not in (None, entries[0].sha256):
            raise ManifestError(
                f"The manifest handed over for {self.path} describes another archive.",
                hint="The archive was written anew since; create it and its manifest together.",
            )
        return replace(base, files=contents or (), archive=entries[0])


def plan_file(
    run_id: str, path: str, file: str | os.PathLike[str], *, provenance: Mapping[str, str] | None = None
) -> Plan:
    """Plan one file, landing exactly at ``path``.

    Raises
    ------
    SourceNotFound, SourceKindError, SourceUnreadable
        There is no such file, it is a folder, or it cannot be read.
    """
    return Plan(run_id, path, "file", (_planned_file(run_id, path, Path(file)),), provenance=provenance or {})


def plan_tree(
    run_id: str,
    path: str,
    folder: str | os.PathLike[str],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    provenance: Mapping[str, str] | None = None,
    share: Share | None = None,
) -> Plan:
    """Plan a folder, its files landing under ``path/``.

    Parameters
    ----------
    include, exclude : sequence of str
        See :class:`stagesink.transfer.patterns.Patterns`. What they leave out is listed as skipped.
    share : Share, optional
        The folder holds what one rank of a job wrote. It may be empty then.

    Raises
    ------
    SourceError
        See :func:`stagesink.tree.scan_tree`.
    EmptyTree
        ``include`` and ``exclude`` leave no file.
    """
    try:
        tree = _wanted(scan_tree(Path(folder)), Patterns(include, exclude))
    except EmptyTree:
        if share is None or share.world_size == 1:
            raise
        tree = Tree(Path(folder), ())  # other ranks have written something
    objects = tuple(
        PlannedObject(ArtifactKey(run_id, f"{path}/{file.path}"), file.source, file.size) for file in tree.files
    )
    if share is not None and share.world_size == 1:
        share = None  # a job of one: what it uploads is the whole
    return Plan(run_id, path, "tree", objects, tree.skipped, provenance=provenance or {}, share=share)


def plan_packed_tree(
    run_id: str,
    path: str,
    folder: str | os.PathLike[str],
    *,
    archive_format: ArchiveFormat,
    level: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    details: Mapping[str, Any] | None = None,
    provenance: Mapping[str, str] | None = None,
) -> Plan:
    """Plan a folder that lands as one archive at ``path``, made while it is sent.

    Parameters
    ----------
    archive_format : {"tar.gz", "tar.zst"}
    level : int, optional
        Of the compression; None is a fast one.
    include, exclude : sequence of str
        As for :func:`plan_tree`.
    """
    tree = _wanted(scan_tree(Path(folder)), Patterns(include, exclude))
    source = ArchiveSource(tree, archive_format, level=level)
    return Plan(
        run_id,
        path,
        "archive",
        (PlannedObject(ArtifactKey(run_id, path), source, None),),
        tree.skipped,
        details={**(details or {}), "archive_format": archive_format, "extracted_path": source.prefix},
        provenance=provenance or {},
    )


def plan_archive(
    run_id: str,
    path: str,
    archive: str | os.PathLike[str],
    *,
    manifest: Mapping[str, Any] | None = None,
    provenance: Mapping[str, str] | None = None,
) -> Plan:
    """Plan an archive that is there already.

    Parameters
    ----------
    manifest : mapping, optional
        What :func:`stagesink.create_checkpoint_archive` returned beside it; older ones without digests serve too, their
        files are then not listed.

    Raises
    ------
    SourceNotFound, SourceKindError, SourceUnreadable
        As for :func:`plan_file`.
    ManifestError
        ``manifest`` says what no stored manifest may: names that leave the archive, or values that are not JSON.
    """
    item = _planned_file(run_id, path, Path(archive))
    contents, skipped, details = _told(run_id, path, manifest or {})
    return Plan(
        run_id,
        path,
        "archive",
        (item,),
        skipped,
        details=details,
        provenance=provenance or {},
        contents=contents,
        archive_sha256=_archive_sha256(manifest or {}),
    )


def _told(
    run_id: str, path: str, manifest: Mapping[str, Any]
) -> tuple[tuple[ManifestEntry, ...], tuple[str, ...], dict[str, Any]]:
    """Take from an archive's own manifest what the stored one will repeat, refusing what could not be read back."""
    details = dict(manifest)
    listed = details.pop("files", None) or ()
    skipped = details.pop("skipped", None) or ()
    for derived in ("file_count", "total_size", "archive"):
        details.pop(derived, None)
    try:
        contents = tuple(ManifestEntry(e["path"], e["size"], e["sha256"]) for e in listed if "sha256" in e)
        trial = Manifest(run_id, path, "archive", contents, ManifestEntry("any", 0, "0" * 64), tuple(skipped), details)
        Manifest.from_bytes(trial.to_bytes())
    except (ManifestError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ManifestError(
            f"The manifest handed over for {path} cannot be stored: {error}",
            hint="Hand over what create_checkpoint_archive returned, with nothing but JSON values added.",
        ) from error
    return contents, tuple(skipped), details


def _archive_sha256(manifest: Mapping[str, Any]) -> str | None:
    archive = manifest.get("archive")
    return archive.get("sha256") if isinstance(archive, Mapping) else None  # older programs do not tell


def _wanted(tree: Tree, patterns: Patterns) -> Tree:
    """Leave out what the patterns do not want, and say so in ``skipped``."""
    files = tuple(file for file in tree.files if patterns.select(file.path))
    if len(files) == len(tree.files):
        return tree
    if not files:
        raise EmptyTree(
            f"include and exclude leave none of the {len(tree.files)} files of {tree.root}.",
            hint="Patterns such as '*.bin' are held against paths relative to that folder.",
        )
    left_out = {file.path for file in tree.files} - {file.path for file in files}
    return replace(tree, files=files, skipped=tuple(sorted({*tree.skipped, *left_out})))


def _planned_file(run_id: str, path: str, file: Path) -> PlannedObject:
    source = FileSource(file)
    try:
        if file.is_dir():
            raise SourceKindError(
                f"{file} is a folder where a file belongs.", hint="Name a file, or upload it as a tree."
            )
        size = source.size
        source.open().close()
    except OSError as error:
        raise source_error(file, error) from error
    return PlannedObject(ArtifactKey(run_id, path), source, size)
