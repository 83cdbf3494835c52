"""A workspace's datastore: blob storage that the service names, for what is too large for run history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagesink.errors import ConfigError
from stagesink.sinks.azureml.address import Address
from stagesink.sinks.protocol import ArtifactSink


def open_datastore(address: Address, storage_options: Mapping[str, Any]) -> ArtifactSink:
    raise ConfigError("Datastores are not there yet.", hint="Upload to azureml:.")
