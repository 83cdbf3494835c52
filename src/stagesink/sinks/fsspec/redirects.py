"""S3 by aiobotocore without redirects: aiohttp would take a session token along to whatever host it is sent to."""

from __future__ import annotations

from functools import cache
from typing import Any


class _StaysHere:
    """An aiohttp session that returns a redirect as the answer that it is, as botocore's own session does."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def request(self, method: str, **request: Any) -> Any:
        return self._session.request(method, **request, allow_redirects=False)


@cache
def session_without_redirects() -> type:
    """Return the class for botocore's option ``http_session_cls``, once: fsspec tells its instances apart by options.

    botocore knows by itself where to go when S3 names another region for a bucket.
    """
    from aiobotocore.httpsession import AIOHTTPSession

    class Session(AIOHTTPSession):  # type: ignore[misc]
        async def _get_session(self, proxy_url: str | None) -> Any:
            return _StaysHere(await super()._get_session(proxy_url))

    return Session
