"""S3 by aiobotocore without redirects: aiohttp would take a session token along to whatever host it is sent to."""

from __future__ import annotations

from functools import cache
from typing import Any

from stagesink.errors import SinkError
from stagesink.sinks._http.status import SENT_ELSEWHERE

_REGION = "x-amz-bucket-region"  # S3's own redirects tell it, and botocore goes by that


class _StaysHere:
    """An aiohttp session that follows nobody, as botocore's own does not.

    A redirect of somebody else's would have botocore ask for the bucket's region, be redirected again, ask again, and
    so on a hundred times: it ends here.
    """

    def __init__(self, session: Any) -> None:
        self._session = session

    async def request(self, method: str, **request: Any) -> Any:
        response = await self._session.request(method, **request, allow_redirects=False)
        if "location" in response.headers and _REGION not in response.headers and 300 <= response.status < 400:
            response.close()
            raise SinkError(f"The store answered {response.status}, which sends us elsewhere.", hint=SENT_ELSEWHERE)
        return response


@cache
def session_without_redirects() -> type:
    """Return the class for botocore's ``http_session_cls``, the same each time: fsspec keeps instances by options."""
    from aiobotocore.httpsession import AIOHTTPSession

    class Session(AIOHTTPSession):  # type: ignore[misc]
        async def _get_session(self, proxy_url: str | None) -> Any:
            return _StaysHere(await super()._get_session(proxy_url))

    return Session
