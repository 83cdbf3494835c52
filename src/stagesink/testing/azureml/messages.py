"""Requests and answers of the service, apart from HTTP."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone

JSON = "application/json; charset=utf-8"


class ServiceError(Exception):
    """What the service answers instead of a result.

    Parameters
    ----------
    status : int
    inner : str
        The inner code, such as ``"NotFoundError"``.
    message : str
    code : str
        ``"UserError"`` or ``"ServiceError"``.
    """

    def __init__(self, status: int, inner: str, message: str, *, code: str = "UserError") -> None:
        super().__init__(message)
        self.status = status
        self.inner = inner
        self.message = message
        self.code = code


@dataclass(frozen=True)
class Request:
    """A request that has been read in full."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = field(default=b"", repr=False)

    def json(self) -> dict[str, object]:
        try:
            value = json.loads(self.body or b"{}")
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ServiceError(400, "BadRequest", "The body is no JSON object.")
        return value

    def needs(self, name: str) -> str:
        """Return what the query says of a name."""
        if not self.query.get(name):
            raise ServiceError(400, "BadRequest", f"The query names no {name}.")
        return self.query[name]


@dataclass(frozen=True)
class Response:
    status: int
    body: bytes
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


def answer(value: object, status: int = 200) -> Response:
    return Response(status, json.dumps(value, separators=(",", ":")).encode())


def error_body(code: str, message: str, inner: str | None) -> dict[str, object]:
    """Return an error as the service words it."""
    return {
        "error": {
            "code": code,
            "severity": None,
            "message": message,
            "messageFormat": None,
            "messageParameters": {},
            "referenceCode": None,
            "detailsUri": None,
            "target": None,
            "details": [],
            "innerError": {"code": inner, "innerError": None} if inner else None,
            "debugInfo": None,
            "additionalInfo": None,
        },
        "correlation": {"operation": uuid.uuid4().hex, "request": uuid.uuid4().hex[:16]},
        "environment": "local",
        "location": "local",
        "time": datetime.now(timezone.utc).isoformat(),
        "componentName": "stagesink.testing.azureml",
    }
