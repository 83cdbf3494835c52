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
_SECONDS = 15 * 60.0
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
        self._made: tuple[str, float] | None = None

    def query(self) -> str:
        """Return it as a URL's query."""
        made = self._made
        if made is None or made[1] < time.monotonic():
            made = self._made = self._sign(), time.monotonic() + _SECONDS / 2
        return made[0]

    def _sign(self) -> str:
        ends = datetime.fromtimestamp(time.time() + _SECONDS, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        # Empty: start; identifier, address and protocol; then snapshot, encryption scope and five headers.
        lines = [_READ_AND_LIST, "", ends, self._resource, "", "", "", _VERSION, "c", *[""] * 7]
        digest = hmac.digest(base64.b64decode(self._key), "\n".join(lines).encode(), hashlib.sha256)
        signature = base64.b64encode(digest).decode()
        return urlencode({"sv": _VERSION, "se": ends, "sr": "c", "sp": _READ_AND_LIST, "sig": signature})
