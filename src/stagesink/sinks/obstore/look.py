"""A second look over plain HTTP, for what obstore does not say: statuses, error codes, how an object is encrypted."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from stagesink.sinks._http.client import HttpClient
from stagesink.sinks._http.pools import pool_manager
from stagesink.sinks._http.status import retry_after_seconds
from stagesink.sinks.obstore.settings import Settings

if TYPE_CHECKING:
    from urllib3 import PoolManager

_SIGNED_FOR = timedelta(minutes=15)
_CODE = re.compile(rb"<Code>\s*([A-Za-z0-9.]{1,80})\s*</Code>")
_PLAIN_NAME = "stagesink-asks-whether-it-may-read"
_ENOUGH = 1 << 16  # bytes of an error's body
_SECONDS = 30.0  # a question is short
_SKEW = 300.0  # seconds; what the stores allow is 15 minutes, and tokens less


@dataclass(frozen=True, slots=True)
class Answer:
    """What the store says.

    Parameters
    ----------
    status : int
    headers : mapping
        Names in lower case.
    code : str or None
        The store's own name for an error, such as ``NoSuchBucket``.
    """

    status: int
    headers: Mapping[str, str]
    code: str | None = None

    @property
    def is_the_stores(self) -> bool:
        """False for what a proxy made up: every store gives an object an ETag, and has a code for an error."""
        return self.status >= 300 or "etag" in self.headers

    @property
    def retry_after(self) -> float | None:
        return retry_after_seconds(self.headers.get("retry-after"))

    @property
    def skew(self) -> float:
        """Seconds by which this machine's clock is off, 0 for few."""
        try:
            off = time.time() - parsedate_to_datetime(self.headers.get("date", "")).timestamp()
        except ValueError:
            return 0.0
        return off if abs(off) > _SKEW else 0.0


class Look:
    """Asks the store with URLs that are signed on this machine. They stay out of urllib3's log and of ours."""

    def __init__(self, settings: Settings, store: Any, name: str) -> None:
        self._settings = settings
        self._store = store
        self._http = HttpClient(name, self._connect)

    @property
    def can_sign(self) -> bool:
        """Whether a URL can be made at all: Google's need a service account's key."""
        return self._settings.kind != "GCSStore"

    def at(self, path: str, doing: str) -> Answer:
        """Ask for the first byte of an object.

        Raises
        ------
        SinkError
            As :class:`.HttpClient` has it: what is between us and the store.
        """
        return self._ask("GET", self._url("GET", path), doing, Range="bytes=0-0")

    def head(self, path: str, doing: str) -> Answer:
        """Ask what is known of an object."""
        return self._ask("HEAD", self._url("HEAD", path), doing)

    def listing(self, doing: str) -> Answer:
        """Ask for a listing, where that can be signed; for an object that is not there, elsewhere."""
        settings = self._settings
        if settings.kind == "S3Store":
            answer = self._ask("GET", self._url("GET", ""), doing)
        elif "sas_key" in settings.config:
            url = f"{settings.endpoint}/{settings.bucket}?restype=container&comp=list&maxresults=1"
            answer = self._ask("GET", f"{url}&{settings.config['sas_key']}", doing)
        else:
            return self.at(_PLAIN_NAME, doing)
        # A listing has no ETag; that it is one shows by its type.
        made_up = answer.status < 400 and "xml" not in answer.headers.get("content-type", "")
        return answer if made_up else Answer(answer.status, {"etag": "", **answer.headers}, answer.code)

    def _ask(self, method: str, url: str, doing: str, **headers: str) -> Answer:
        response = self._http.request(method, url, doing, headers=headers, stream=True)
        with self._http.translating(doing):
            body = response.read(_ENOUGH)
        if len(body) < _ENOUGH:
            response.release_conn()
        else:
            response.close()  # a proxy may have put anything there
        told = {name.lower(): value for name, value in response.headers.items()}
        found = _CODE.search(body)
        return Answer(response.status, told, told.get("x-ms-error-code") or (found[1].decode() if found else None))

    def close(self) -> None:
        self._http.close()

    def _url(self, method: str, path: str) -> str:
        settings = self._settings
        if settings.kind == "AzureStore" and "sas_key" in settings.config:
            return f"{settings.endpoint}/{settings.bucket}/{quote(path)}?{settings.config['sas_key']}"
        import obstore

        # obstore 0.12 signs encoded names for Azure, which the service decodes first: so a name with nothing to encode.
        # An account key is for every object alike.
        name = _PLAIN_NAME if settings.kind == "AzureStore" else path
        return str(obstore.sign(self._store, method, name, _SIGNED_FOR))

    def _connect(self) -> PoolManager:
        settings = self._settings
        seconds = min(_SECONDS, settings.seconds[1])
        return pool_manager(settings.endpoint, seconds=seconds, authorities=tuple(settings.authorities))
