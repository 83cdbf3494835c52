"""Keeping secrets out of what is shown: URLs without them, exceptions that quote them recognised, others' logs."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

# Of what follows `://`. Not by urlsplit, which finds no password in one that holds a slash, and raises on others.
_LOGIN = re.compile(r"([^/@?#:]*):(?!\d{1,5}(?:[/?#]|$))(.*)@", re.DOTALL)  # `host:22/a@b` has a port, not a password
_USER = re.compile(r"[^/?#]*@")
_CONTAINER_SCHEMES = ("abfs", "abfss", "wasb", "wasbs")  # `abfs://container@account` holds no user
_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"<>]+", re.IGNORECASE)
_QUERY = re.compile(r"[?#].*", re.DOTALL)  # SAS signatures and tokens live there
_SIGNED = re.compile(
    r"(?:\?|%3F)(?:(?!%3F)[^\s'\"<>?])*?(?<![a-z_-])(?:x-amz-signature|x-goog-signature|signature|sig)(?:=|%3D)"
    r"[^\s'\"<>]+",
    re.IGNORECASE,
)  # from one question mark to the next: a text of nothing else takes no longer than another
_SENT = re.compile(
    r"((?:x-amz-security-token|signature)['\"]?\s*[=:]\s*b?['\"]?)[^'\"\s,]+", re.IGNORECASE
)  # as headers are printed, in the canonical request, and what follows "Signature:"

_SECRET_NAME = re.compile(r"key|secret|token|pass|sas|cred|connection_string|auth", re.IGNORECASE)
_SHORTEST_SECRET = 4  # characters; shorter ones occur in any text


def without_secrets(uri: str) -> str:
    """Return the URI fit for a log: no user, no password, no query.

    Parameters
    ----------
    uri : str
        Any text; what has no ``://`` is a path and stays as it is.

    Returns
    -------
    str
        Only the scheme where a password may hold ``?`` or ``#``: nobody can tell then where the host begins.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    bare = _QUERY.sub("", rest)
    if "@" in rest[len(bare) :] and (_LOGIN.match(rest) or "/" not in bare):
        return f"{scheme}://***"
    login = _LOGIN.match(bare) or (None if scheme.lower() in _CONTAINER_SCHEMES else _USER.match(bare))
    shown = bare if login is None else f"***@{bare[login.end() :]}"
    return f"{scheme}://{shown}" + ("" if bare == rest else "?***")


def without_secrets_in(text: str) -> str:
    """Return a text with its URLs fit for a log: somebody else's error may quote one whole."""
    return _URL.sub(lambda found: without_secrets(found[0]), text)


def address_of(uri: str) -> str:
    """Return the URI fit for a log, and to write names behind: no slash at its end."""
    scheme, separator, rest = without_secrets(uri).partition("://")
    return f"{scheme}{separator}{rest.rstrip('/')}"


def bare_uri(uri: str) -> str:
    """Return the URI fit for the disk: the same store, whoever asks it; login and query come from elsewhere."""
    return without_secrets(uri).replace("://***@", "://", 1).removesuffix("?***")


def secrets_of(uri: str, options: Mapping[str, Any]) -> frozenset[str]:
    """Collect what must not be shown.

    Parameters
    ----------
    uri : str
        Any text. Its user and password count when it has a password.
    options : mapping
        Values whose names tell of a secret count, and so do environment variables of the clouds.

    Returns
    -------
    frozenset of str
        Each whole, in its parts, which clients quote too, and percent-encoded and decoded.
    """
    found = set(_login(uri))
    found.update(value for name, value in os.environ.items() if _is_cloud_secret(name))
    found.update(_secret_values(options))
    pieces = {piece for value in found for piece in re.split(r"[&;=]", value)} | found  # SAS and connection strings
    spelled = {
        spelling for piece in pieces for spelling in (piece, quote(piece, safe="", errors="replace"), unquote(piece))
    }
    return frozenset(value for value in spelled if len(value) >= _SHORTEST_SECRET)


def shows_secret(error: BaseException, secrets: Iterable[str]) -> bool:
    """Tell whether a traceback that prints ``error`` and its causes would print a secret, or any signed URL."""
    text = "\n".join(str(cause) for cause in causes_of(error))
    return _SIGNED.search(text) is not None or any(secret in text for secret in secrets)


def hide_in_logs(*names: str) -> None:
    """Leave signed URLs, signatures and session tokens out of what other packages log: whoever has one can write.

    Parameters
    ----------
    *names : str
        Of their loggers.
    """
    for name in names:
        logging.getLogger(name).addFilter(_without_signatures)


def _without_signatures(record: logging.LogRecord) -> bool:
    try:
        text = record.getMessage()
    except (TypeError, ValueError, LookupError, AttributeError):
        return True  # its handler says that it cannot be formatted
    shown = _SENT.sub(r"\1***", _SIGNED.sub("?***", text))
    if shown != text:
        record.msg, record.args = shown, ()
    return True


def _login(uri: str) -> Iterator[str]:
    """Yield user and password, also as a parser reads them that ends a password at another ``@`` or at a slash."""
    login = _LOGIN.match(uri.partition("://")[2])
    if login is not None:
        user, password = login.groups()
        yield from (user, password, *re.split(r"[/?#@]", password))
        yield from (password[: at.start()] for at in re.finditer("@", password))


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
