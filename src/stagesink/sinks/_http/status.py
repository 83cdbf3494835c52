"""What an HTTP answer means for us: one table for every sink that talks HTTP."""

from __future__ import annotations

from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from stagesink.errors import (
    ArtifactNotFound,
    SinkAuthError,
    SinkConflict,
    SinkError,
    SinkQuotaError,
    TransientSinkError,
)

SENT_ELSEWHERE = "Use the address that it redirects to; credentials are not carried to another one."
"""What to do about a redirect."""

_MEANING: dict[int, type[SinkError]] = {
    401: SinkAuthError,
    403: SinkAuthError,
    404: ArtifactNotFound,
    408: TransientSinkError,
    409: SinkConflict,
    410: ArtifactNotFound,
    412: SinkConflict,
    413: SinkQuotaError,
    425: TransientSinkError,
    429: TransientSinkError,
    501: SinkError,
    505: SinkError,
    507: SinkQuotaError,
}


def kind_of_status(status: int) -> type[SinkError] | None:
    """Return the error class for an HTTP status, or None for one that is not an error."""
    if status < 400:
        return None
    return _MEANING.get(status, TransientSinkError if status >= 500 else SinkError)


def retry_after_seconds(value: str | None) -> float | None:
    """Read a ``Retry-After`` header, which holds seconds or a date; None when absent or neither."""
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    return max(0.0, (date - datetime.now(timezone.utc)).total_seconds())
