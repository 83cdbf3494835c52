"""A second look over plain HTTP, for what obstore does not say: statuses, error codes, encryption, digests."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from stagesink.sinks._http.client import HttpClient
from stagesink.sinks._http.pools import pool_manager
from stagesink.sinks._http.status import retry_after_seconds
from stagesink.sinks.obstore.azure_sas import ContainerSas
from stagesink.sinks.obstore.settings import Settings

if TYPE_CHECKING:
    from urllib3 import PoolManager

_SIGNED_FOR = timedelta(minutes=15)
_CODE = re.compile(rb"<Code>\s*([A-Za-z0-9.]{1,80})\s*</Code>")
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
    body : bytes
        Of a page of a listing.
    """

    status: int
    headers: Mapping[str, str]
    code: str | None = None
    body: bytes = field(default=b"", repr=False)

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
        config = settings.config
        self._sas = (
            ContainerSas(config["account_name"], config["account_key"], settings.bucket)
            if settings.kind == "AzureStore"
            else None
        )

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
        """Ask for a listing."""
        if self._sas is not None:
            return self._list(doing, maxresults="1")
        return _as_listing(self._ask("GET", self._url("GET", ""), doing))

    def page(self, prefix: str, marker: str, doing: str) -> Answer:
        """Ask Azure for one page of what has names that begin so, with its body."""
        following = {"marker": marker} if marker else {}
        return self._list(doing, whole=True, prefix=prefix, **following)

    def _list(self, doing: str, *, whole: bool = False, **query: str) -> Answer:
        asked = urlencode({"restype": "container", "comp": "list", **query}, quote_via=quote)
        settings = self._settings
        assert self._sas is not None
        url = f"{settings.endpoint}/{settings.bucket}?{asked}&{self._sas.query()}"
        return _as_listing(self._ask("GET", url, doing, whole=whole))

    def _ask(self, method: str, url: str, doing: str, *, whole: bool = False, **headers: str) -> Answer:
        response = self._http.request(method, url, doing, headers=headers, stream=True)
        told = {name.lower(): value for name, value in response.headers.items()}
        whole = whole and response.status < 300 and _is_xml(told)
        with self._http.translating(doing):
            body = response.read(None if whole else _ENOUGH)
        if whole or len(body) < _ENOUGH:
            response.release_conn()
        else:
            response.close()  # a proxy may have put anything there
        if whole:
            return Answer(response.status, told, body=body)
        found = _CODE.search(body)
        return Answer(response.status, told, told.get("x-ms-error-code") or (found[1].decode() if found else None))

    def close(self) -> None:
        self._http.close()

    def _url(self, method: str, path: str) -> str:
        settings = self._settings
        if self._sas is not None:
            return f"{settings.endpoint}/{settings.bucket}/{quote(path)}?{self._sas.query()}"
        import obstore

        return str(obstore.sign(self._store, method, path, _SIGNED_FOR))

    def _connect(self) -> PoolManager:
        settings = self._settings
        # On Azure these are the sink's own questions, and not second ones alone.
        seconds = settings.seconds[1] if self._sas is not None else min(_SECONDS, settings.seconds[1])
        return pool_manager(settings.endpoint, seconds=seconds, authorities=tuple(settings.authorities))


def _as_listing(answer: Answer) -> Answer:
    # A listing has no ETag; that it is one shows by its type.
    if answer.status < 400 and not _is_xml(answer.headers):
        return answer
    return Answer(answer.status, {"etag": "", **answer.headers}, answer.code, answer.body)


def _is_xml(headers: Mapping[str, str]) -> bool:
    return "xml" in headers.get("content-type", "")
