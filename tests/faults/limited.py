"""Upload a checkpoint in a process that is short of something: python limited.py SPECIFICATION

It prints the answer, what became of the objects, and what was logged, as JSON. What it needs is imported before.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import stagesink.outbox.store  # noqa: F401  what keeping needs
from stagesink import ArtifactUploader
from stagesink.artifacts import ArtifactKey
from stagesink.errors import TransientSinkError


def open_files() -> None:
    """Leave room for one more open file."""
    least = max(map(int, os.listdir("/proc/self/fd")))
    _limit(resource.RLIMIT_NOFILE, least + 1)


def memory() -> None:
    """Leave room for seven more megabytes: too few for a thread's stack, and enough to keep what cannot be sent."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + (7 << 20))


def file_size() -> None:
    """Let no file be larger than ten thousand bytes."""
    _limit(resource.RLIMIT_FSIZE, 10_000)


def _limit(what: int, value: int) -> None:
    resource.setrlimit(what, (value, resource.getrlimit(what)[1]))


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelno, record.getMessage()))


def main(short_of: str, run_id: str, sink: str, options: dict[str, object], folder: str, path: str) -> None:
    log = _Lines()
    logging.getLogger("stagesink").addHandler(log)
    with ArtifactUploader(run_id, sink=sink, storage_options=options, attempts=3, initial=0.01) as uploader:
        with suppress(TransientSinkError):  # it may be gone
            uploader.sink.stat(ArtifactKey(uploader.run_id, "none"))
        {"open files": open_files, "memory": memory, "file size": file_size}[short_of]()
        answer = uploader.upload_checkpoint(folder, path)
        for what in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_FSIZE):
            _limit(what, resource.getrlimit(what)[1])
        print(json.dumps([answer, [receipt.status for receipt in uploader.receipts], log.lines]))


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
