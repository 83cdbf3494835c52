"""Object stores at the speed of the wire: ``s3://``, ``az://`` and ``gs://`` through obstore, a client in Rust."""

from __future__ import annotations

from stagesink.sinks.obstore.sink import ObstoreSink, open_obstore

__all__ = ["ObstoreSink", "open_obstore"]
