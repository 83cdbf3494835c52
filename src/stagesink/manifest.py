"""The manifest: what an upload holds, and the marker that it is whole.

It is written last and lies beside what it describes, never inside: ``checkpoint/`` has ``checkpoint.manifest.json``.
What has no manifest is not there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from stagesink.artifacts import ArtifactKey
from stagesink.errors import InvalidKey, ManifestError

FORMAT = "stagesink.manifest/1"
_KNOWN_SUFFIX = ".tar.gz"
MAX_MANIFEST_BYTES = 256 << 20
"""Most bytes a manifest may have: about a million files. More is refused before it is parsed."""

Kind = Literal["file", "tree", "archive"]


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One file: its path relative to the tree, its size in bytes, its sha256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one upload consists of.

    Parameters
    ----------
    run_id : str
    path : str
        Where it lies: the tree's folder, the file, or the archive.
    kind : {"file", "tree", "archive"}
    files : tuple of ManifestEntry
        A tree's files; the one file; or what an archive holds.
    archive : ManifestEntry or None
        The archive itself, when ``kind`` is "archive".
    skipped : tuple of str
        What the folder held and was left out on purpose (caches, locks).
    details : mapping
        More about it, as plain JSON: ``trial_number``, ``archive_format``, ``extracted_path``.
    provenance : mapping of str to str
        Where it came from: stage, stagesink version, git commit, time of upload.
    """

    run_id: str
    path: str
    kind: Kind
    files: tuple[ManifestEntry, ...]
    archive: ManifestEntry | None = None
    skipped: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> ArtifactKey:
        """Where this manifest itself lies."""
        return manifest_key(self.run_id, self.path, self.kind)

    @property
    def total_size(self) -> int:
        """Bytes of all files together, unpacked."""
        return sum(entry.size for entry in self.files)

    def objects(self) -> Iterator[ManifestEntry]:
        """Yield what lies in the store, with paths relative to the run."""
        if self.kind == "tree":
            for entry in self.files:
                yield ManifestEntry(f"{self.path}/{entry.path}", entry.size, entry.sha256)
        elif self.kind == "archive":
            assert self.archive is not None
            yield ManifestEntry(self.path, self.archive.size, self.archive.sha256)
        else:
            yield ManifestEntry(self.path, self.files[0].size, self.files[0].sha256)

    def same_content(self, other: Manifest) -> bool:
        """Whether both say the same, but for where it came from."""
        return _content(self) == _content(other)

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as plain JSON values."""
        archive = {"archive": _entry_to_dict(self.archive)} if self.archive else {}
        return {
            "format": FORMAT,
            "run_id": self.run_id,
            "path": self.path,
            "kind": self.kind,
            **{name: value for name, value in self.details.items() if name not in _OWN_FIELDS},
            "file_count": len(self.files),
            "total_size": self.total_size,
            "files": [_entry_to_dict(entry) for entry in self.files],
            **archive,
            "skipped": list(self.skipped),
            "provenance": dict(self.provenance),
        }

    def to_bytes(self) -> bytes:
        """Return the manifest as it is stored: UTF-8 JSON, one line per file so that it can be read and compared."""
        document = self.to_dict()
        files = ",\n    ".join(_entry_to_json(entry) for entry in self.files)
        fields = [
            f"  {json.dumps(name)}: "
            + (f"[\n    {files}\n  ]" if name == "files" else json.dumps(value, ensure_ascii=False))
            for name, value in document.items()
        ]
        return ("{\n" + ",\n".join(fields) + "\n}\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read a stored manifest, distrusting it.

        Raises
        ------
        ManifestError
            It is not one of ours, names a path that would leave its tree, or contradicts itself.
        """
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ManifestError("This is not a manifest: it is not JSON.") from error
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ManifestError(f"This is not a manifest of the format {FORMAT}.")
        try:
            return _from_dict(document)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            # InvalidKey is a ValueError: a name with '..' ends here too.
            raise ManifestError(f"This manifest is damaged or was made to do harm: {error}") from error


def _content(manifest: Manifest) -> tuple[object, ...]:
    return (
        *(manifest.run_id, manifest.path, manifest.kind, manifest.archive, frozenset(manifest.files)),
        *(frozenset(manifest.skipped), dict(manifest.details)),
    )


_OWN_FIELDS = {
    *("format", "run_id", "path", "kind", "file_count", "total_size", "files", "archive", "skipped", "provenance"),
}
_SHA256 = re.compile("[0-9a-f]{64}")
_MAX_SIZE = 1 << 63  # bytes; no file system holds more, and larger numbers cannot even be printed everywhere


def _from_dict(document: dict[str, Any]) -> Manifest:
    kind = document["kind"]
    if kind not in get_args(Kind):
        raise ValueError("its kind is unknown")
    files = tuple(_entry_from_dict(entry) for entry in document["files"])
    manifest = Manifest(
        run_id=_typed(document["run_id"], str),
        path=_typed(document["path"], str),
        kind=cast("Kind", kind),
        files=files,
        archive=_entry_from_dict(document["archive"]) if kind == "archive" else None,
        skipped=tuple(_typed(name, str) for name in document.get("skipped", ())),
        details={name: value for name, value in document.items() if name not in _OWN_FIELDS},
        provenance={_typed(k, str): _typed(v, str) for k, v in document.get("provenance", {}).items()},
    )
    if len({entry.path for entry in files}) != len(files):
        raise ValueError("a file is named twice")
    if kind == "file" and len(files) != 1:
        raise ValueError("a manifest of one file names another number of them")
    if document["file_count"] != len(files) or document["total_size"] != manifest.total_size:
        raise ValueError("its totals do not match its files")
    # Every name it leads to, also when it holds no file: whoever lists manifests must be able to ask each for its key.
    ArtifactKey(manifest.run_id, manifest.path)
    manifest_key(manifest.run_id, manifest.path, manifest.kind)
    for entry in manifest.objects():
        ArtifactKey(manifest.run_id, entry.path)
    return manifest


def _entry_to_dict(entry: ManifestEntry) -> dict[str, Any]:
    return {"path": entry.path, "size": entry.size, "sha256": entry.sha256}


def _entry_to_json(entry: ManifestEntry) -> str:
    # By hand: a third of the time for a tree of thousands. Only the path can hold anything that JSON must escape.
    return f'{{"path": {json.dumps(entry.path, ensure_ascii=False)}, "size": {entry.size}, "sha256": "{entry.sha256}"}}'


def _entry_from_dict(document: Any) -> ManifestEntry:
    entry = ManifestEntry(
        _typed(document["path"], str), _typed(document["size"], int), _typed(document["sha256"], str).lower()
    )
    ArtifactKey("any", entry.path)  # no path leaves its tree, whoever wrote it
    if not 0 <= entry.size < _MAX_SIZE or not _SHA256.fullmatch(entry.sha256):
        raise ValueError(f"{entry.path} has an impossible size or digest")
    return entry


def _typed(value: Any, kind: type[Any]) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"a {type(value).__name__} stands where a {kind.__name__} belongs")
    return value


def manifest_key(run_id: str, path: str, kind: Kind) -> ArtifactKey:
    """Return where the manifest of ``path`` lies.

    ``checkpoint`` has ``checkpoint.manifest.json``; only an archive ``best_trial_checkpoint.tar.gz`` has
    ``best_trial_checkpoint_manifest.json``, the name that readers of such archives know.
    """
    if kind == "archive" and path.endswith(_KNOWN_SUFFIX):
        return ArtifactKey(run_id, f"{path.removesuffix(_KNOWN_SUFFIX)}_manifest.json")
    try:
        return ArtifactKey(run_id, f"{path}.manifest.json")
    except InvalidKey as error:
        raise InvalidKey(
            f"{path[:80]!r} is too long a name: its manifest would have no valid one.", hint="Use a shorter name."
        ) from error


def is_manifest_path(path: str) -> bool:
    """Whether an object of this name may be a manifest, and is worth opening."""
    return path.endswith((".manifest.json", "_manifest.json"))
