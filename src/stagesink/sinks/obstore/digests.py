"""Which digests of an object a store tells.

S3's ETag is its md5 only where it went in one piece and is not encrypted. Azure computes the MD5 of what comes in one
piece, and of what comes in blocks it keeps the one that the client gave, if any; ours gives none.
"""

from __future__ import annotations

import base64
import re
import threading
import time

from stagesink.errors import SinkError
from stagesink.sinks.obstore.look import Answer, Look

_MD5 = re.compile(r"[0-9a-f]{32}")
_KNOWN_FOR = 60.0  # seconds; a bucket's encryption can be changed


def md5_of(etag: str | None) -> str | None:
    """Return what would be the md5, as hex."""
    value = (etag or "").strip('"')
    return value if _MD5.fullmatch(value) else None


def digests_of_head(answer: Answer) -> dict[str, str]:
    """Return the digests that the answer to a HEAD vouches for."""
    md5 = md5_of(answer.headers.get("etag"))
    return {"md5": md5} if md5 is not None and _keeps_md5(answer) else {}


def md5_of_base64(value: str | None) -> dict[str, str]:
    """Return the digests that a ``Content-MD5`` holds."""
    try:
        md5 = base64.b64decode(value or "", validate=True)
    except ValueError:
        return {}
    return {"md5": md5.hex()} if len(md5) == 16 else {}


class Encryption:
    """How S3 encrypts what is put into this bucket, as far as it matters for the ETag.

    The answer to a put tells it, but obstore does not hand it on; so one object a minute is asked about.
    """

    def __init__(self, look: Look) -> None:
        self._look = look
        self._lock = threading.Lock()
        self._known: tuple[float, bool] | None = None

    def keeps_md5(self, path: str) -> bool:
        """Tell whether the ETag of an object that was just put here is its md5; False where that cannot be asked."""
        with self._lock:
            if self._known is None or time.monotonic() - self._known[0] > _KNOWN_FOR:
                try:
                    answer = self._look.head(path, "its encryption could not be asked for")
                except SinkError:
                    return False
                self._known = time.monotonic(), answer.status == 200 and _keeps_md5(answer)
            return self._known[1]


def _keeps_md5(answer: Answer) -> bool:
    encryption = answer.headers.get("x-amz-server-side-encryption")
    return encryption in (None, "AES256") and "x-amz-server-side-encryption-customer-algorithm" not in answer.headers
