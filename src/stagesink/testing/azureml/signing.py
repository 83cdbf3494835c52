"""Shared access signatures for a blob, a container or an account, made with the account's key.

The text that is signed is laid down in Azure's documentation:
https://learn.microsoft.com/rest/api/storageservices/create-service-sas and ``create-account-sas``.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import datetime, timedelta, timezone
from urllib.parse import urlencode

VERSION = "2021-12-02"


def blob_sas(
    account: str, key: str, container: str, blob: str, permissions: str, expires_in: float, valid_in: float = 0.0
) -> str:
    """Return the query that gives access to one blob.

    Parameters
    ----------
    account, key, container, blob : str
    permissions : str
        Letters in the order ``racwdxltmeop``.
    expires_in : float
        Seconds from now; less than zero for one that has expired.
    valid_in : float
        Seconds from now; more than zero for one that is not valid yet.
    """
    return _service_sas(account, key, f"{container}/{blob}", "b", permissions, expires_in, valid_in)


def container_sas(account: str, key: str, container: str, permissions: str, expires_in: float) -> str:
    """Return the query that gives access to a container and all blobs in it."""
    return _service_sas(account, key, container, "c", permissions, expires_in)


def account_sas(account: str, key: str, permissions: str, expires_in: float) -> str:
    """Return the query that gives access to the account's blob service."""
    expiry = _time(expires_in)
    services, kinds = "b", "sco"
    lines = [account, permissions, services, kinds, "", expiry, "", "", VERSION, "", ""]
    return urlencode(
        {"sv": VERSION, "ss": services, "srt": kinds, "se": expiry, "sp": permissions, "sig": _signature(key, lines)}
    )


def _service_sas(
    account: str, key: str, path: str, kind: str, permissions: str, expires_in: float, valid_in: float = 0.0
) -> str:
    start, expiry = _time(valid_in) if valid_in > 0 else "", _time(expires_in)
    resource = f"/blob/{account}/{path}"
    # Empty: identifier, address and protocol; then snapshot, encryption scope and five headers of the answer.
    lines = [permissions, start, expiry, resource, "", "", "", VERSION, kind, *[""] * 7]
    times = {"st": start, "se": expiry} if start else {"se": expiry}
    return urlencode({"sv": VERSION, **times, "sr": kind, "sp": permissions, "sig": _signature(key, lines)})


def _signature(key: str, lines: list[str]) -> str:
    return base64.b64encode(hmac.digest(base64.b64decode(key), "\n".join(lines).encode(), hashlib.sha256)).decode()


def _time(seconds: float) -> str:
    return (datetime.now(timezone.utc) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
