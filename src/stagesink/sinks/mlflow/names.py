"""Names that an MLflow server would take for others."""

from __future__ import annotations

from urllib.parse import unquote

from stagesink.artifacts import ArtifactKey
from stagesink.errors import NameRefused


def check_name(key: ArtifactKey) -> None:
    """Refuse what a server would store under another name, over what lies there.

    ``validate_path_is_safe`` in mlflow/utils/uri.py unquotes again and again, and refuses "#". mlflow's own client
    does not quote that: the rest of the name is lost on the way.

    Raises
    ------
    NameRefused
    """
    if "#" in key.path or unquote(key.path, errors="surrogateescape") != key.path:
        raise NameRefused(
            f"An MLflow server cannot hold an object named {key.path}: it refuses '#' and decodes %-sequences.",
            hint="Choose another file name or artifact path.",
        )
