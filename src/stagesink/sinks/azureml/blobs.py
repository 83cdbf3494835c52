"""Blobs behind signed URLs: written with checksums that the store checks, read in ranges.

https://learn.microsoft.com/rest/api/storageservices/blob-service-rest-api
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import quote

from stagesink.errors import (
    ArtifactNotFound,
    RunNotFound,
    SinkAuthError,
    SinkConflict,
    SinkError,
    SinkQuotaError,
    SourceChanged,
    TransientSinkError,
    VerificationError,
)
from stagesink.sinks._http.client import HttpClient
from stagesink.sinks._http.parts import PartSender, cut, read
from stagesink.sinks._http.status import kind_of_status, retry_after_seconds
from stagesink.sinks.azureml.auth import refused
from stagesink.sinks.azureml.signed import SignedUrl
from stagesink.sinks.protocol import OnBytes

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

_VERSION = "2021-12-02"  # of the blob service's API
_WHOLE = 4 << 20  # bytes sent in one request
_BLOCK = 8 << 20
_BLOCKS = 50_000  # of one blob
_RESUMED = 2 * _BLOCK  # from here on it is asked what is there: that costs a round trip, and would spare less
_WINDOW = 16 << 20  # bytes asked for at once when reading
# One block of a list. Names are base64, which XML leaves as it is.
_LISTED = re.compile(rb"<Name>([A-Za-z0-9+/=]+)</Name>\s*<Size>(\d+)</Size>")

# What a signature that has ended may be called. AuthorizationFailure is a firewall's word too, and then comes again.
_ENDED = {"AuthenticationFailed", "AuthorizationFailure", "InvalidAuthenticationInfo"}
_KINDS: dict[str, type[SinkError]] = {
    "ContainerNotFound": RunNotFound,
    "ContainerBeingDeleted": RunNotFound,
    "ContainerDisabled": SinkAuthError,
    "AccountIsDisabled": SinkAuthError,
    "InvalidBlockList": TransientSinkError,  # another writer committed, which drops the blocks of all others
    "InvalidBlobOrBlock": TransientSinkError,
    "Md5Mismatch": VerificationError,  # what arrived is not what was sent
    "InvalidMd5": VerificationError,
    "InvalidOperation": VerificationError,  # so Azurite says it
    "LeaseIdMissing": SinkConflict,
    "LeaseIdMismatchWithBlobOperation": SinkConflict,
    "InsufficientAccountPermissions": SinkAuthError,
    "RequestBodyTooLarge": SinkQuotaError,
    "BlockCountExceedsLimit": SinkQuotaError,
    "BlockListTooLong": SinkQuotaError,
    "BlobImmutableDueToPolicy": SinkConflict,
}
_HINTS = {
    "AuthorizationFailure": "Let this machine through the storage account's firewall; where it is through, check that "
    "the workspace knows the account's keys.",
    "AuthorizationPermissionMismatch": "The signature does not allow it: check what the workspace's identity may do.",
    "LeaseIdMissing": "Somebody holds a lease on the blob; break it, or choose another artifact path.",
    "ContainerNotFound": "The workspace's storage has no such container any more: ask whoever runs the workspace.",
    "BlobImmutableDueToPolicy": "The container keeps what is written; choose another artifact path.",
}
_REFUSED = "Check what stands between, the storage account's firewall first, and that the workspace knows its keys."


class Blobs:
    """Puts, describes and reads one blob at a time. Thread-safe.

    Parameters
    ----------
    http : HttpClient
        Carries no credentials: the URL is signed.
    """

    def __init__(self, http: HttpClient) -> None:
        self._http = http
        self._parts = PartSender()

    def put(
        self,
        url: SignedUrl,
        stream: BinaryIO,
        size: int | None,
        what: str,
        on_bytes: OnBytes | None,
        begun: Callable[[], SignedUrl | None] | None = None,
    ) -> tuple[int, dict[str, str]]:
        """Write the whole stream, overwriting; the blob changes at once, when all of it is there.

        Each request carries the MD5 of its bytes, which the store checks. A large blob is committed by one Put Block
        List, and has no MD5 of the whole: the store computes none, and one of ours would prove no more than the others.

        A block is called by its number and its MD5. So one that an upload left which did not come to its end is known
        again and not sent, two writers of the same bytes share theirs, and no writer takes another's for its own.

        Parameters
        ----------
        url : SignedUrl
        stream : BinaryIO
        size : int or None
            Bytes it holds, where it is known.
        what : str
            The object, for messages.
        on_bytes : callable, optional
        begun : callable, optional
            Where an earlier upload may have left blocks: returns the URL to read their list, None when there are none.

        Returns
        -------
        tuple of int and dict
            The bytes that the store took, and the digests that it computed of them.
        """
        doing = f"{what} could not be put"
        if size is not None and size <= _RESUMED:
            begun = None
        if size is None or size <= _WHOLE:
            first = read(stream, _WHOLE + 1 if size is None else size + 1)
            if size is not None and len(first) != size:
                raise SourceChanged(f"The source does not hold the {size} bytes it had when it was opened.")
            if len(first) <= _WHOLE:
                return self._put_whole(url, first, doing, on_bytes)
            pieces, block_bytes = _rest(first, stream), _BLOCK
        else:
            block_bytes = max(_BLOCK, -(-size // _BLOCKS))
            pieces = cut(stream, size, block_bytes)
        return self._put_blocks(url, pieces, block_bytes, doing, on_bytes, begun), {}

    def head(self, url: SignedUrl, what: str) -> tuple[int, dict[str, str]] | None:
        """Return size and digests, None where there is no blob."""
        doing = f"{what} could not be looked up"
        try:
            response = self._request(url, "HEAD", doing)
            self._check(response, doing, 200)
        except ArtifactNotFound:
            return None
        return _size(response, doing), _digests(response)

    def open(self, url: SignedUrl, what: str) -> BinaryIO:
        """Open the blob, asked for in ranges of one version of it.

        Raises
        ------
        ArtifactNotFound
        """
        return cast("BinaryIO", io.BufferedReader(_Reader(self, url, f"{what} could not be read"), 1 << 20))

    # -- requests ------------------------------------------------------------------------------------------------------

    def _put_whole(
        self, url: SignedUrl, data: memoryview, doing: str, on_bytes: OnBytes | None
    ) -> tuple[int, dict[str, str]]:
        if on_bytes is not None and data:
            on_bytes(len(data))  # before they go: whoever is told may stop it
        headers = {**_sum(_md5(data)), "x-ms-blob-type": "BlockBlob", "Content-Type": "application/octet-stream"}
        response = self._request(url, "PUT", doing, body=data, headers=headers)
        self._check(response, doing, 201)
        return len(data), _digests(response)

    def _put_blocks(
        self,
        url: SignedUrl,
        pieces: Iterator[memoryview],
        block_bytes: int,
        doing: str,
        on_bytes: OnBytes | None,
        begun: Callable[[], SignedUrl | None] | None,
    ) -> int:
        with ThreadPoolExecutor(1, "stagesink-blocks") as pool:
            asked = pool.submit(self._left, begun, doing) if begun is not None else None
            url.current()  # asked for meanwhile, where it is not here yet

            def put(number: int, piece: memoryview) -> tuple[str, int]:
                md5 = _md5(piece)
                # All names of a blob have one length, those that earlier versions of ours left included.
                name = base64.b64encode(f"{number:016d}{md5.hex()}".encode()).decode()
                if asked is None or asked.result().get(name) != len(piece):
                    query = f"comp=block&blockid={quote(name, safe='')}"
                    self._check(self._request(url, "PUT", doing, query, body=piece, headers=_sum(md5)), doing, 201)
                return name, len(piece)

            blocks = self._parts.send(pieces, put, on_bytes, part_bytes=block_bytes)
        body = "<?xml version='1.0' encoding='utf-8'?><BlockList>"
        body += "".join(f"<Latest>{name}</Latest>" for name, _ in blocks) + "</BlockList>"
        headers = {"x-ms-blob-content-type": "application/octet-stream", **_sum(_md5(body.encode()))}
        response = self._request(url, "PUT", doing, "comp=blocklist", body=body.encode(), headers=headers)
        self._check(response, doing, 201)
        return sum(size for _, size in blocks)

    def _left(self, begun: Callable[[], SignedUrl | None], doing: str) -> dict[str, int]:
        """Return the names and sizes of the blocks that are at the store and in no blob."""
        try:
            url = begun()
            if url is None:
                return {}
            response = self._request(url, "GET", doing, "comp=blocklist&blocklisttype=uncommitted")
            self._check(response, doing, 200)
        except TransientSinkError:
            raise  # what it spares may be large
        except SinkError:
            return {}  # nothing was begun, or who writes may not read: then all of it is sent
        return {name.decode(): int(size) for name, size in _LISTED.findall(response.data)}

    def _range(self, url: SignedUrl, start: int, etag: str | None, doing: str) -> tuple[BaseHTTPResponse, int]:
        """Return the answer that holds a window of the blob, and the blob's size."""
        headers = {"x-ms-range": f"bytes={start}-{start + _WINDOW - 1}", **({"If-Match": etag} if etag else {})}
        response = self._request(url, "GET", doing, headers=headers, stream=True)
        if response.status == 206:
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            if total.isdigit():
                return response, int(total)
        self._finish(response, doing)
        if response.status == 416 and start == 0:  # an empty blob has no ranges
            return response, 0
        if response.status == 412:
            raise TransientSinkError(f"{doing}: it was replaced while it was read.")
        self._check(response, doing, 206)
        raise self._no_store(doing)

    def _request(
        self,
        url: SignedUrl,
        method: str,
        doing: str,
        query: str = "",
        *,
        body: bytes | memoryview | None = None,
        headers: Mapping[str, str] | None = None,
        stream: bool = False,
    ) -> BaseHTTPResponse:
        signed = url.current()
        for last in (False, True):
            response = self._http.request(
                method,
                f"{signed}&{query}" if query else signed,
                doing,
                body=cast("Any", body),
                headers={"x-ms-version": _VERSION, **(headers or {})},
                stream=stream,
            )
            if last or response.status not in (401, 403) or _code(response) not in _ENDED:
                break
            if stream:
                self._finish(response, doing)
            signed = url.after(signed)
        return response

    def _finish(self, response: BaseHTTPResponse, doing: str) -> None:
        """Let go of an answer that was not read: its few bytes are, so that its connection serves again."""
        if 200 <= response.status < 300:
            response.close()  # whatever it holds, it may be long
        with self._http.translating(doing):
            response.drain_conn()
        response.release_conn()

    def _check(self, response: BaseHTTPResponse, doing: str, wanted: int) -> None:
        # What stands between may answer 200 with a page of its own, or 404: nothing of that is believed.
        if response.status in (wanted, 404) and "x-ms-request-id" not in response.headers:
            raise self._no_store(doing)
        if response.status != wanted:
            raise _error_of(response, doing, self._http.name) or self._no_store(doing)

    def _no_store(self, doing: str) -> SinkError:
        return SinkError(
            f"{doing}: {self._http.name} does not answer as Azure's blob store does.",
            hint="Check what stands between: a proxy's page looks like this.",
        )


class _Reader(io.RawIOBase):
    """One version of a blob, from its first byte to its last, a window at a time."""

    def __init__(self, blobs: Blobs, url: SignedUrl, doing: str) -> None:
        self._blobs = blobs
        self._url = url
        self._doing = doing
        self._at = self._left = 0
        self._etag: str | None = None
        self._ask()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        if self._at == self._size or not view:
            return 0
        if not self._left:
            self._response.release_conn()
            self._ask()
        with self._blobs._http.translating(self._doing):
            data = self._response.read(min(len(view), self._left))
        if not data:
            raise TransientSinkError(f"{self._doing}: it ended before all {self._size} bytes had come.")
        view[: len(data)] = data
        self._at += len(data)
        self._left -= len(data)
        return len(data)

    def close(self) -> None:
        # Without a response it was never opened: the interpreter closes what is left of it.
        if not self.closed and hasattr(self, "_response"):
            if self._left:
                self._response.close()  # the rest of the window is still on its way on this connection
            self._response.release_conn()
        super().close()

    def _ask(self) -> None:
        self._response, self._size = self._blobs._range(self._url, self._at, self._etag, self._doing)
        self._etag = self._response.headers.get("ETag")
        self._left = min(_WINDOW, self._size - self._at)


def _rest(first: memoryview, stream: BinaryIO) -> Iterator[memoryview]:
    yield memoryview(b"".join((first, read(stream, _BLOCK - len(first)))))
    yield from cut(stream, None, _BLOCK)


def _md5(data: bytes | memoryview) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _sum(md5: bytes) -> dict[str, str]:
    return {"Content-MD5": base64.b64encode(md5).decode()}


def _digests(response: BaseHTTPResponse) -> dict[str, str]:
    given = response.headers.get("Content-MD5", "")
    try:
        return {"md5": base64.b64decode(given, validate=True).hex()} if given else {}
    except ValueError:
        return {}


def _size(response: BaseHTTPResponse, doing: str) -> int:
    size = response.headers.get("Content-Length", "")
    if not size.isdigit():
        raise VerificationError(f"{doing}: the store gives no size.")
    return int(size)


def _code(response: BaseHTTPResponse) -> str:
    code = response.headers.get("x-ms-error-code", "")
    return code if code.isalnum() and len(code) < 64 else ""


def _error_of(response: BaseHTTPResponse, doing: str, name: str) -> SinkError | None:
    status, code = response.status, _code(response)
    kind = _KINDS.get(code) or kind_of_status(status)
    if kind is None:
        return None
    reason = f"{status} ({code})" if code else str(status)
    message = f"{doing}: {name} answered {reason}."
    if kind is SinkAuthError:
        return refused(doing, name, reason, response.headers.get("Date"), _HINTS.get(code, _REFUSED))
    if code in _HINTS:
        return kind(message, hint=_HINTS[code])
    if issubclass(kind, TransientSinkError):
        return kind(message, retry_after=retry_after_seconds(response.headers.get("Retry-After")))
    return kind(message, hint="Check what stands between, such as a proxy." if kind is SinkError else None)
