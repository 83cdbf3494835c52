"""A signed URL that is renewed before it ends, or once the store says that it has."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime
from urllib.parse import parse_qs, urlsplit

_MARGIN = 60.0  # seconds before its end, or half of a shorter time: what is sent on it must arrive before


class SignedUrl:
    """One blob's URL with its signature. Whoever has it may use it: it is never shown.

    Parameters
    ----------
    url : str or None
        None: it is asked for when it is needed.
    renew : callable
        Asks for a new one; raises what the service says against it.
    """

    def __init__(self, url: str | None, renew: Callable[[], str]) -> None:
        self._renew = renew
        self._lock = threading.Lock()
        self._url: str | None = None
        self._renew_at: float | None = None
        if url is not None:
            self._set(url)

    def __repr__(self) -> str:
        return f"SignedUrl({self._url.partition('?')[0] if self._url else None!r})"

    def current(self) -> str:
        """Return the URL, renewed when it is about to end."""
        url, renew_at = self._url, self._renew_at
        if url is None or (renew_at is not None and renew_at <= time.monotonic()):
            return self.after(url)
        return url

    def after(self, refused: str | None) -> str:
        """Return one that is newer than ``refused``; asked for once, however many parts were refused with it."""
        with self._lock:
            if self._url is None or self._url == refused:
                return self._set(self._renew())
            return self._url

    def _set(self, url: str) -> str:
        self._url = url
        ends = expiry(url)
        left = 0.0 if ends is None else ends - time.time()
        # One that has ended when it comes does so by this machine's clock alone: the store will say when it has.
        self._renew_at = time.monotonic() + max(left - _MARGIN, left / 2) if left > 0 else None
        return url


def expiry(url: str) -> float | None:
    """Return the ``se`` of a shared access signature, in seconds since 1970.

    https://learn.microsoft.com/rest/api/storageservices/create-service-sas
    """
    ends = parse_qs(urlsplit(url).query).get("se", [""])[0]
    try:
        return datetime.fromisoformat(ends.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None
