"""Checkpoint archives, out and in."""

from __future__ import annotations

from stagesink.archive.formats import ARCHIVE_SUFFIXES, TOP_FOLDER, ArchiveFormat, archive_format_of
from stagesink.archive.pack import ArchivedFile, ArchiveSource, create_checkpoint_archive
from stagesink.archive.unpack import extract_checkpoint_archive

__all__ = [
    "ARCHIVE_SUFFIXES",
    "TOP_FOLDER",
    "ArchiveFormat",
    "ArchiveSource",
    "ArchivedFile",
    "archive_format_of",
    "create_checkpoint_archive",
    "extract_checkpoint_archive",
]
