"""What is uploaded, and what a store may hold of it: judged by sha256, with nothing of stagesink."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORMAT = "stagesink.manifest/1"
NOTES = ".stagesink/"
"""Folder of a run in which writers leave notes for each other; nothing that was uploaded lies there."""

RANKS = 3
"""Ranks among which a checkpoint is divided."""

Version = Mapping[str, str]
"""One state of an upload: digests by the objects' paths in the run."""


@dataclass(frozen=True)
class Upload:
    """What lies, or may lie, at one place of a run.

    Attributes
    ----------
    manifest : str
        Path of its manifest.
    versions : sequence of dict
        Whole states: a manifest speaks of one of them. The last one is what it comes to.
    """

    manifest: str
    versions: Sequence[Version]


@dataclass
class Verdict:
    """What an independent look found. Each a list of sentences; all empty when nothing is wrong."""

    lost: list[str] = field(default_factory=list)
    half_visible: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether something is wrong."""
        return bool(self.lost or self.half_visible or self.duplicated)

    def __str__(self) -> str:
        return "\n".join(
            f"{kind}: {sentence}" for kind in ("lost", "half_visible", "duplicated") for sentence in getattr(self, kind)
        )


def look_at_once(objects: Mapping[str, bytes], uploads: Sequence[Upload]) -> Verdict:
    """Judge a store right after a kill: each object is whole, each manifest true; anything may be missing."""
    verdict = Verdict()
    found = {path: digest(path, data) for path, data in objects.items() if not path.startswith(NOTES)}
    for path, sha256 in found.items():
        allowed = {version[path] for upload in uploads for version in upload.versions if path in version}
        if sha256 not in allowed and path not in {upload.manifest for upload in uploads}:
            kind = verdict.half_visible if allowed else verdict.duplicated
            kind.append(f"{path} ({len(objects[path])} bytes) is nothing that was ever handed over.")
    for upload in uploads:
        if upload.manifest in objects:
            verdict.half_visible += _untruths(upload, objects, found)
    return verdict


def look_at_the_end(objects: Mapping[str, bytes], leftovers: set[str], uploads: Sequence[Upload]) -> Verdict:
    """Judge a store after the work was run to its end: everything is there, once, and nothing else."""
    verdict = look_at_once(objects, [Upload(upload.manifest, upload.versions[-1:]) for upload in uploads])
    wanted = {upload.manifest for upload in uploads}.union(*(upload.versions[-1] for upload in uploads))
    verdict.lost += [f"{path} is not there." for path in sorted(wanted - objects.keys())]
    notes = {path for path, data in objects.items() if path.startswith(NOTES) and data}
    verdict.duplicated += [f"{path} was left behind." for path in sorted(leftovers | notes)]
    return verdict


def look_into_outbox(outbox: Path, uploads: Mapping[str, Upload], verdict: Verdict) -> set[str]:
    """Return which uploads, by destination, wait there; what is there by half goes into the verdict."""
    kept = set()
    entries = outbox / "entries"
    for folder in sorted(entries.iterdir()) if entries.exists() else ():
        if folder.name.startswith("."):
            continue  # being written, or a killed process's
        try:
            plan = json.loads((folder / "plan.json").read_bytes())
            files = {path: (folder / "files" / name).read_bytes() for path, name, *_ in plan["files"]}
        except (OSError, ValueError, KeyError) as error:
            verdict.half_visible.append(f"The outbox's entry {folder.name} is not whole: {error!r}.")
            continue
        name = plan["path"]
        found = {path: digest(path, data) for path, data in files.items()}
        if plan["packed"]:
            found = {name: digest_of_members(files)}
        if found in [dict(version) for version in uploads[name].versions]:
            kept.add(name)
        else:
            verdict.half_visible.append(f"The outbox's entry {folder.name} holds other bytes than were handed over.")
    return kept


def digest(path: str, data: bytes) -> str:
    """Return the sha256 of an object; of an archive that of what it holds, which does not depend on its packer."""
    if not path.endswith(".tar.gz"):
        return hashlib.sha256(data).hexdigest()
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            members = [(member.name, archive.extractfile(member)) for member in archive if member.isfile()]
            return digest_of_members({name.partition("/")[2]: file.read() for name, file in members if file})
    except (tarfile.TarError, EOFError, OSError):
        return "a broken archive"


def digest_of_members(members: Mapping[str, bytes]) -> str:
    """Return the digest of an archive that holds these files."""
    each = sorted((name, hashlib.sha256(data).hexdigest()) for name, data in members.items())
    return hashlib.sha256(repr(each).encode()).hexdigest()


def _untruths(upload: Upload, objects: Mapping[str, bytes], found: Mapping[str, str]) -> list[str]:
    try:
        named = _named(json.loads(objects[upload.manifest]))
    except (ValueError, KeyError, TypeError):
        return [f"{upload.manifest} is no manifest: {objects[upload.manifest][:80]!r}."]
    wrong = [
        f"{upload.manifest} names {path}, which is {'another' if path in objects else 'not there'}."
        for path, (size, sha256) in named.items()
        if path not in objects or (len(objects[path]), hashlib.sha256(objects[path]).hexdigest()) != (size, sha256)
    ]
    if not wrong and {path: found[path] for path in named} not in [dict(version) for version in upload.versions]:
        wrong.append(f"{upload.manifest} names {sorted(named)}, which is no state that was ever handed over.")
    return wrong


def _named(document: Any) -> dict[str, tuple[int, str]]:
    if document["format"] != FORMAT:
        raise ValueError("another format")
    if document["kind"] == "tree":
        entries = [{**entry, "path": f"{document['path']}/{entry['path']}"} for entry in document["files"]]
    elif document["kind"] == "archive":
        entries = [{**document["archive"], "path": document["path"]}]
    else:
        entries = [{**document["files"][0], "path": document["path"]}]
    return {entry["path"]: (entry["size"], entry["sha256"]) for entry in entries}


@dataclass(frozen=True)
class Sources:
    """Two states of a checkpoint, and a file: small files, files that only one state has, and one sent in parts."""

    trees: tuple[Path, Path]
    file: Path

    @classmethod
    def make(cls, folder: Path, seed: int) -> Sources:
        """Write them; the same bytes for the same seed."""
        bytes_of = random.Random(seed).randbytes
        common = {f"shards/{number}.bin": bytes_of(20_000) for number in range(4)} | {"a b/empty": b""}
        trees = (folder / "step-1", folder / "step-2")
        for number, tree in enumerate(trees, 1):
            own = {"shards/0.bin": bytes_of(20_000), "model.bin": bytes_of(2_300_000), f"only/in-{number}": b"x"}
            for path, data in {**common, **own}.items():
                (tree / path).parent.mkdir(parents=True, exist_ok=True)
                (tree / path).write_bytes(data)
            for place, path in enumerate(sorted({**common, **own})):
                part = folder / f"step-{number}-rank-{place % RANKS}" / path
                part.parent.mkdir(parents=True, exist_ok=True)
                part.write_bytes((tree / path).read_bytes())
        (folder / "metrics.json").write_text(json.dumps({"loss": 0.5, "seed": seed}))
        return cls(trees, folder / "metrics.json")

    def of_rank(self, number: int, rank: int) -> Path:
        """Return the folder with one rank's share of a state."""
        tree = self.trees[number]
        return tree.with_name(f"{tree.name}-rank-{rank}")

    def digest_of_file(self) -> str:
        return digest(self.file.name, self.file.read_bytes())

    def tree(self, number: int, at: str) -> dict[str, str]:
        """Digests of one state of the checkpoint, as objects under ``at``."""
        root = self.trees[number]
        return {
            f"{at}/{file.relative_to(root).as_posix()}": digest(file.name, file.read_bytes())
            for file in root.rglob("*")
            if file.is_file()
        }
