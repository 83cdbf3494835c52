"""Keeping secrets out of what is shown: URLs without them, and exceptions that quote them recognised."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

_USER = re.compile(r"//(?:[^/@?#]*:(?!\d+/)[^?#]*|[^/?#]*)@")  # `//host:22/a@b` has a port, not a password
_CONTAINER_SCHEMES = ("abfs", "abfss", "wasb", "wasbs")  # `abfs://container@account` holds no user
_QUERY = re.compile(r"[?#].*", re.DOTALL)  # SAS signatures and tokens live there

_SECRET_NAME = re.compile(r"key|secret|token|pass|sas|cred|connection_string|auth", re.IGNORECASE)
_SHORTEST_SECRET = 4  # characters; shorter ones occur in any text


def without_secrets(uri: str) -> str:
    """Return the URI fit for a log: no user, no password, no query."""
    if "://" not in uri:
        return uri
    bare = _QUERY.sub("?***", uri)
    return bare if uri.partition(":")[0].lower() in _CONTAINER_SCHEMES else _USER.sub("//***@", bare, count=1)


def secrets_of(uri: str, options: Mapping[str, Any]) -> frozenset[str]:
    """Collect what must not be shown: the URL's password, options and environment variables with telling names."""
    found = {urlsplit(uri).password or ""}
    found.update(value for name, value in os.environ.items() if _is_cloud_secret(name))
    found.update(_secret_values(options))
    pieces = {piece for value in found for piece in re.split(r"[&;=]", value)} | found  # SAS and connection strings
    spelled = {spelling for piece in pieces for spelling in (piece, quote(piece, safe=""), unquote(piece))}
    return frozenset(value for value in spelled if len(value) >= _SHORTEST_SECRET)


def shows_secret(error: BaseException, secrets: Iterable[str]) -> bool:
    """Tell whether a traceback that prints ``error`` and its causes would print a secret."""
    text = "\n".join(str(cause) for cause in causes_of(error))
    return any(secret in text for secret in secrets)


def _is_cloud_secret(name: str) -> bool:
    return name.startswith(("AWS_", "AZURE_", "GOOGLE_")) and _SECRET_NAME.search(name) is not None


def _secret_values(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _secret_values(value)
        elif isinstance(value, str) and _SECRET_NAME.search(name):
            yield value


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and what a traceback prints as its causes, the nearest first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
