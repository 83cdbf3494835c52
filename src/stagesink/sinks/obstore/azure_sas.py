"""What may be asked of an Azure container, signed with the account's key on this machine.

obstore signs for one blob at a time, and a name with anything to encode in a way that the service refuses (0.12).
https://learn.microsoft.com/rest/api/storageservices/create-service-sas
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from datetime import datetime, timezone
from urllib.parse import urlencode

_VERSION = "2021-12-02"
_SECONDS, _USED_SECONDS = 3600.0, 900.0  # clocks may differ by as much as an account key's requests bear
_READ_AND_LIST = "rl"


class ContainerSas:
    """A shared access signature that reads and lists one container, made anew before it ends. Never shown.

    Parameters
    ----------
    account, key, container : str
    """

    def __init__(self, account: str, key: str, container: str) -> None:
        self._key = key
        self._resource = f"/blob/{account}/{container}"
        self._made: tuple[str, float, float] | None = None

    def query(self) -> str:
        """Return it as a URL's query."""
        # By both clocks: one stands still while a machine sleeps, the other may be set back.
        made, monotonic, now = self._made, time.monotonic(), time.time()
        if made is None or monotonic - made[1] > _USED_SECONDS or not 0 <= now - made[2] <= _USED_SECONDS:
            made = self._made = self._sign(now), monotonic, now
        return made[0]

    def _sign(self, now: float) -> str:
        # With a start: an account may refuse signatures that have none.
        starts, ends = _time(now - _USED_SECONDS), _time(now + _SECONDS)
        # Empty: identifier, address and protocol; then snapshot, encryption scope and five headers.
        lines = [_READ_AND_LIST, starts, ends, self._resource, "", "", "", _VERSION, "c", *[""] * 7]
        digest = hmac.digest(base64.b64decode(self._key), "\n".join(lines).encode(), hashlib.sha256)
        signature = base64.b64encode(digest).decode()
        return urlencode({"sv": _VERSION, "st": starts, "se": ends, "sr": "c", "sp": _READ_AND_LIST, "sig": signature})


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
