"""An uploading process is killed at any moment: what has a manifest is whole, and the next one sweeps the leftovers."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from outside import files_in, running, said, tell

from stagesink import ArtifactUploader, list_committed, restore, verify
from stagesink.sinks.local import LocalSink

# Forks one uploading process after another, so that each dies as a process of its own and none has to import anything.
UPLOADS = """
    import os, sys
    from stagesink import ArtifactUploader

    store, sources = sys.argv[1], sys.argv[2:]
    # What is imported late is imported here.
    assert ArtifactUploader("warm-up", "training", sink=f"file:{store}").upload_checkpoint(sources[0]) is True
    print("ready", flush=True)
    while sys.stdin.readline():
        child = os.fork()
        if child == 0:
            with ArtifactUploader("run", "training", sink=f"file:{store}") as uploader:
                while True:
                    for source in sources:
                        assert uploader.upload_checkpoint(source, "checkpoint") is True
                        assert uploader.upload_packed_checkpoint(source, "best.tar.gz", trial_number=1) is True
        print(child, flush=True)
        ended = os.waitpid(child, 0)[1]
        print(os.WTERMSIG(ended), flush=True)
"""


def is_whole(root: Path, manifest: str) -> bool:
    """Hold a manifest against what lies there, with nothing of ours."""
    document = json.loads((root / manifest).read_text())
    if document["kind"] == "archive":
        entries = [document["archive"] | {"path": document["path"]}]
    else:
        entries = [entry | {"path": f"{document['path']}/{entry['path']}"} for entry in document["files"]]
    return all(hashlib.sha256((root / each["path"]).read_bytes()).hexdigest() == each["sha256"] for each in entries)


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    """Two states of one checkpoint: files of equal size with other bytes, and files that only one of them has."""
    folders = [tmp_path / "step-1", tmp_path / "step-2"]
    for number, folder in enumerate(folders):
        (folder / "shards").mkdir(parents=True)
        for shard in range(12):
            (folder / "shards" / f"{shard}.bin").write_bytes(os.urandom(40_000))
        (folder / "model.bin").write_bytes(os.urandom(2_000_000))
        (folder / f"only-in-{number}").write_bytes(b"x")
    return folders


def test_a_process_killed_at_any_moment_leaves_nothing_half_visible(tmp_path: Path, sources: list[Path]) -> None:
    store = tmp_path / "store"
    random.seed(20240229)
    moments = seen_committed = seen_leftover = 0
    with running(UPLOADS, store, *sources) as uploads:
        assert said(uploads) == "ready"
        while moments < 25 or not seen_committed or not seen_leftover:  # on a slow machine it takes more of them
            moments += 1
            tell(uploads)
            child = int(said(uploads))
            time.sleep(random.uniform(0, 0.12 * (1 + moments / 25)))  # longer and longer, on a slow disk
            os.kill(child, signal.SIGKILL)
            assert said(uploads) == str(int(signal.SIGKILL))
            if not (store / "run").exists():
                continue
            there = files_in(store / "run")
            manifests = [path for path in there if path.endswith("manifest.json")]
            assert [path for path in manifests if not is_whole(store / "run", path)] == []
            seen_committed += "checkpoint.manifest.json" in there
            seen_leftover += any(path.endswith(".tmp") for path in there)
            sink = LocalSink(store)
            committed = list_committed(sink, "run")
            assert len(committed) == len(manifests)
            assert {check.status for check in verify(sink, committed)} <= {"ok"}
            assert not any(stored.key.path.endswith(".tmp") for stored in sink.list("run"))

    (tmp_path / "step-3").mkdir()
    for path, data in files_in(sources[0]).items():  # every folder is written into once more, so every one is swept
        (tmp_path / "step-3" / path).parent.mkdir(exist_ok=True)
        (tmp_path / "step-3" / path).write_bytes(data[::-1])
    with ArtifactUploader("run", "training", sink=LocalSink(store)) as uploader:
        assert uploader.upload_checkpoint(tmp_path / "step-3", "checkpoint") is True
        assert uploader.upload_packed_checkpoint(tmp_path / "step-3", "best.tar.gz", trial_number=2) is True
    there = files_in(store / "run")
    wanted = files_in(tmp_path / "step-3")
    landed = {path.removeprefix("checkpoint/"): data for path, data in there.items() if path.startswith("checkpoint/")}
    assert {path: data for path, data in landed.items() if path in wanted} == wanted
    # Files of the killed uploads, named by no manifest, may lie beside them; nothing that reads by manifest sees those.
    assert landed.keys() - wanted.keys() <= {"only-in-1"}
    assert not any(path.endswith(".tmp") for path in there)
    sink = LocalSink(store)
    restore(sink, list_committed(sink, "run"), tmp_path / "restored")
    assert files_in(tmp_path / "restored/checkpoint") == wanted
