"""Drivers: each gets one object into one kind of backend, and out again."""

from __future__ import annotations

from stagesink.sinks.protocol import ArtifactSink
from stagesink.sinks.registry import open_sink

__all__ = ["ArtifactSink", "open_sink"]
