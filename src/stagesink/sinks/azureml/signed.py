"""A signed URL that is renewed before it ends, or once the store says that it has."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime
from urllib.parse import parse_qs, urlsplit

_MARGIN = 60.0  # seconds before its end: what is sent on it must arrive before
_FRESH = 30.0  # seconds: one that was given so lately is not asked for again, whatever this machine's clock says


class SignedUrl:
    """One blob's URL with its signature. Whoever has it may use it: it is never shown.

    Parameters
    ----------
    url : str
    renew : callable
        Asks for a new one; raises what the service says against it.
    """

    def __init__(self, url: str, renew: Callable[[], str]) -> None:
        self._url = url
        self._renew = renew
        self._given = time.monotonic()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"SignedUrl({self._url.partition('?')[0]!r})"

    def current(self) -> str:
        """Return the URL, renewed when it is about to end."""
        url = self._url
        ends = expiry(url)
        about_to_end = ends is not None and ends < time.time() + _MARGIN
        return self.after(url) if about_to_end and self._given + _FRESH < time.monotonic() else url

    def after(self, refused: str) -> str:
        """Return one that is newer than ``refused``; asked for once, however many parts were refused with it."""
        with self._lock:
            if self._url == refused:
                self._url = self._renew()
                self._given = time.monotonic()
            return self._url


def expiry(url: str) -> float | None:
    """Return the ``se`` of a shared access signature, in seconds since 1970.

    https://learn.microsoft.com/rest/api/storageservices/create-service-sas
    """
    ends = parse_qs(urlsplit(url).query).get("se", [""])[0]
    try:
        return datetime.fromisoformat(ends.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None
