"""``mlflow.yaml`` and the environment, read once into one frozen object.

Two sections of the file are ours, ``tracking:`` and ``artifacts:``; all others belong to other programs and are left
alone. Precedence: argument, then ``STAGESINK_*`` variable, then file, then default. A missing file means defaults; an
unreadable or broken one is a :class:`~stagesink.errors.ConfigError` with every problem on a line of its own, each with
file, line and key.
"""

from stagesink.config.load import load_config, skip_artifact_logging
from stagesink.config.model import Artifacts, Compression, Config, Retries, Setting
from stagesink.config.schema import variables

__all__ = [
    "Artifacts",
    "Compression",
    "Config",
    "Retries",
    "Setting",
    "load_config",
    "skip_artifact_logging",
    "variables",
]
