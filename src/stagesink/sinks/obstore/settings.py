"""What obstore needs to know to mean the same store, with the same credentials, as the fsspec implementation would.

Each provider's module answers with :class:`Settings`, or with None: then obstore cannot do what the URI, an option or
the environment asks for, and fsspec carries the sink. Only secrets that are at hand are taken over; those that have to
be fetched and renewed (profiles, single sign-on, roles, managed identities) are left to the clouds' own packages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

CONNECT_SECONDS = 15.0
ANSWER_SECONDS = 300.0  # the sending of a request counts: 96 MiB at once need a line of 2.7 Mbit/s
"""How long one answer may take, that to a part included, unless an option says otherwise."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One bucket or container, and a folder in it.

    Parameters
    ----------
    kind : {"S3Store", "AzureStore", "GCSStore"}
        obstore's class.
    bucket : str
    root : str
        Folder in it, without slashes around it; may be empty.
    endpoint : str
        URL of the service.
    config : mapping
        As obstore names it. Holds secrets.
    seconds : (float, float)
        How long a connection and an answer may take.
    authorities : tuple of str
        Files with certificates to trust besides the system's.
    hint : str or None
        What to do about a store that fails and does not say why.
    """

    kind: Literal["S3Store", "AzureStore", "GCSStore"]
    bucket: str
    root: str
    endpoint: str
    config: Mapping[str, Any] = field(repr=False)
    seconds: tuple[float, float] = (CONNECT_SECONDS, ANSWER_SECONDS)
    authorities: tuple[str, ...] = ()
    hint: str | None = None


def folder_of(uri: str) -> tuple[str, str] | None:
    """Return host and folder of ``uri``; None for a form that is left to fsspec."""
    host, _, folder = uri.partition("://")[2].partition("/")
    folder = folder.rstrip("/")
    segments = folder.split("/") if folder else []
    plain = host and not any(segment in ("", ".", "..") for segment in segments)
    return (host, folder) if plain and not set("?#\\") & set(uri) and uri.isprintable() else None


def seconds_of(connect: object, answer: object) -> tuple[float, float] | None:
    """Return the limits that options set, defaults where they do not; None for what is no number."""
    found = []
    for value, default in ((connect, CONNECT_SECONDS), (answer, ANSWER_SECONDS)):
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            return None
        found.append(float(value))
    return found[0], found[1]


def authorities_of(environ: Mapping[str, str], *names: str) -> tuple[str, ...]:
    """Return the files that these variables name."""
    return tuple(value for name in names if (value := environ.get(name)) and Path(value).is_file())
