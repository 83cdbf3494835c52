"""What stands where an object should go: MLflow's servers say of that no more than 400 or 500."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from stagesink.errors import SinkConflict, SinkError

Children = Callable[[str], Mapping[str, bool]]
"""Returns the names in a folder, and of each whether it is one."""


def look_for_conflict(path: str, children: Children, doing: str) -> None:
    """Raise :class:`~stagesink.errors.SinkConflict` for a file where the path has a folder, and the other way round.

    Parameters
    ----------
    path : str
        Where the object should go.
    children : callable
    doing : str
        What could not be done, as the start of a sentence.
    """
    segments = path.split("/")
    for depth, name in enumerate(segments):
        try:
            here = children("/".join(segments[:depth]))
        except SinkError:
            return  # what made us look is the error to tell
        if name not in here:
            return
        last = depth == len(segments) - 1
        if here[name] == last:
            what = "a folder stands there" if last else f"{'/'.join(segments[: depth + 1])} is a file"
            raise SinkConflict(f"{doing}: {what}.", hint="Choose another artifact path.")
