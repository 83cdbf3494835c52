"""What MLflow's servers answer when they refuse or fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagesink.errors import ArtifactNotFound, SinkAuthError, SinkError, TransientSinkError
from stagesink.sinks._http.client import json_of
from stagesink.sinks._http.status import SENT_ELSEWHERE, kind_of_status, retry_after_seconds

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse


_REFUSED = "Choose another artifact path, or look into the server's log."


def error_of(
    response: BaseHTTPResponse, doing: str, name: str, *, missing: type[SinkError] = ArtifactNotFound
) -> SinkError | None:
    """Return what an answer's status means, None when all is well.

    Parameters
    ----------
    response : urllib3.BaseHTTPResponse
        Read already.
    doing, name : str
        What could not be done, and by which server.
    missing : type of SinkError
        What 404 means here.

    Returns
    -------
    SinkError or None
        Its message holds the status and MLflow's error code, and no text of the server's, which may quote anything.
    """
    status = response.status
    if 200 <= status < 300:
        return None
    if status < 400:
        return SinkError(
            f"{doing}: {name} answered {status}, which sends us elsewhere.",
            hint=SENT_ELSEWHERE,
        )
    kind = kind_of_status(status) or SinkError
    code = error_code(response)
    message = f"{doing}: {name} answered {status}" + (f" ({code})." if code else ".")
    if issubclass(kind, TransientSinkError):
        return kind(message, retry_after=retry_after_seconds(response.headers.get("Retry-After")))
    if kind is ArtifactNotFound:
        kind = missing
    if kind is SinkAuthError:
        return kind(
            message,
            hint="Check MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and _PASSWORD, and what they may do.",
        )
    return kind(message, hint=_REFUSED if kind is SinkError else None)


def error_code(response: BaseHTTPResponse) -> str | None:
    """Return MLflow's error code, for example ``RESOURCE_DOES_NOT_EXIST``; None where the answer holds none."""
    code = json_of(response).get("error_code")
    return code if isinstance(code, str) and code.replace("_", "").isalnum() and len(code) < 64 else None
