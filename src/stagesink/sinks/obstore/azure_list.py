"""Azure's listing of a container, which tells the MD5 of each blob; obstore's does not hand it on.

https://learn.microsoft.com/rest/api/storageservices/list-blobs
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote

from stagesink.errors import ArtifactNotFound
from stagesink.sinks._backend_errors import made_up
from stagesink.sinks.obstore.digests import md5_of_base64
from stagesink.sinks.obstore.errors import error_of
from stagesink.sinks.obstore.look import Look

# Cut out and not parsed: an XML parser takes twice as long, and there are thousands. Text has no "<" in it.
_NAME = re.compile(rb'<Name(?: Encoded="(true|false)")?>([^<]*)</Name>')
_SIZE = re.compile(rb"<Content-Length>(\d+)</Content-Length>")
_MD5 = re.compile(rb"<Content-MD5>([^<]+)</Content-MD5>")
_MARKER = re.compile(rb"<NextMarker>([^<]+)</NextMarker>")
_FOLDER = b"<ResourceType>directory</ResourceType>"  # of a hierarchical namespace


class Listed(NamedTuple):
    """One object of a listing.

    Attributes
    ----------
    path : str
        From the container's root.
    size : int
    digests : dict
    """

    path: str
    size: int
    digests: dict[str, str]


def listed(look: Look, prefix: str, doing: str) -> Iterator[Listed]:
    """Yield the blobs whose names begin so.

    Raises
    ------
    SinkError
    """
    marker = ""
    while True:
        answer = look.page(prefix, marker, doing)
        error = error_of(answer, doing, ArtifactNotFound)
        if error is not None:
            raise error
        if answer.status >= 400 or b"<EnumerationResults" not in answer.body:
            raise made_up(doing)
        try:
            found, following = _read(answer.body)
        except ValueError:  # UnicodeDecodeError too
            raise made_up(doing) from None
        yield from found
        if not following:
            return
        if following == marker:
            raise made_up(doing)  # it would go on for ever
        marker = following


def _read(page: bytes) -> tuple[list[Listed], str]:
    """Return a page's objects, and where the next one goes on; raise ValueError where it is none."""
    found = []
    head, *blobs = page.split(b"<Blob>")
    for blob in blobs:
        name, size, md5 = _NAME.match(blob), _SIZE.search(blob), _MD5.search(blob)
        if name is None or size is None:
            raise ValueError("a blob without a name or a size")
        if _FOLDER not in blob:
            found.append(Listed(_path(name), int(size[1]), md5_of_base64(md5[1].decode()) if md5 is not None else {}))
    following = _MARKER.search(blobs[-1] if blobs else head)
    return found, _text(following[1]) if following is not None else ""


def _path(name: re.Match[bytes]) -> str:
    text = _text(name[2])
    return unquote(text) if name[1] == b"true" else text  # it has characters that XML cannot hold


def _text(escaped: bytes) -> str:
    return html.unescape(escaped.decode()) if b"&" in escaped else escaped.decode()
