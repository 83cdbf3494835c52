"""Any fsspec URL: ``s3://``, ``az://``, ``gs://``, ``sftp://``, ``ftp://`` and whatever else fsspec knows."""

from __future__ import annotations

from stagesink.sinks.fsspec.sink import FsspecSink, open_fsspec

__all__ = ["FsspecSink", "open_fsspec"]
