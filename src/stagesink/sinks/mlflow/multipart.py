"""Large objects past the server: it begins an upload in the store behind it, and signs a URL for each part."""

from __future__ import annotations

import base64
import os
import posixpath
import re
import secrets
import threading
from contextlib import suppress
from typing import Any, BinaryIO
from urllib.parse import quote

from stagesink.errors import SinkError, TransientSinkError
from stagesink.sinks._http.client import HttpClient, json_of
from stagesink.sinks._http.parts import PartSender, cut
from stagesink.sinks.mlflow import connection
from stagesink.sinks.mlflow.answers import error_of
from stagesink.sinks.protocol import OnBytes

_LARGE = 64 << 20
_PART = 10 << 20  # mlflow's own default
_PARTS = 10_000  # of S3, the strictest

_BLOCK = re.compile(r"(?<=[?&]blockid=)[^&?]*(?=[^?]*$)")  # in the query: a name may have these letters too


class Multipart:
    """The three requests of a proxied multipart upload, and the parts between them.

    ``POST mlflow-artifacts/mpu/create|complete|abort``: ``mlflow/protos/mlflow_artifacts.proto`` and
    ``mlflow/store/artifact/http_artifact_repo.py``. As mlflow does, it is used where
    ``MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD`` says so, else where ``GET /api/3.0/mlflow/server-info`` offers it.

    Parameters
    ----------
    http : HttpClient
        For the server.
    store : HttpClient
        For the signed URLs: carries no credentials.
    server : str
    """

    def __init__(self, http: HttpClient, store: HttpClient, server: str) -> None:
        self._http = http
        self._store = store
        self._server = server
        self._asking: dict[int, threading.Lock] = {}  # by process id: a fork may come while the parent holds its own
        self._offered: bool | None = None
        self._reached = False
        self._parts = PartSender()

    def takes(self, size: int) -> bool:
        """Tell whether an object of this many bytes goes this way."""
        if size < max(1, connection.bytes_from("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", _LARGE)):
            return False
        with self._asking.setdefault(os.getpid(), threading.Lock()):  # once for all objects that start together
            if self._offered is None:
                asked = connection.switch("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD")
                self._offered = self._ask() if asked is None else asked
            return self._offered

    def put(self, path: str, stream: BinaryIO, size: int, on_bytes: OnBytes | None) -> None:
        """Send the stream in parts; the object appears when the store has all of them.

        Parameters
        ----------
        path : str
            From the server's artifact root.
        stream : BinaryIO
        size : int
            Bytes it holds.
        on_bytes : callable, optional
        """
        part_bytes = max(connection.bytes_from("MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE", _PART), -(-size // _PARTS))
        doing = f"{posixpath.basename(path)} could not be put in parts"
        created = self._call("create", path, doing, num_parts=-(-size // part_bytes))
        upload_id, urls = created.get("upload_id"), created.get("credentials")
        whole = False
        try:
            if not isinstance(urls, list) or len(urls) != -(-size // part_bytes) or not all(map(_is_url, urls)):
                raise SinkError(f"{doing}: {self._http.name} gave no URLs for its parts.", hint="Upgrade the server.")
            urls = _with_own_blocks(urls)
            parts = self._parts.send(
                cut(stream, size, part_bytes),
                lambda number, piece: self._send_one(piece, urls[number], doing),
                on_bytes,
                part_bytes=part_bytes,
            )
            self._call("complete", path, doing, upload_id=upload_id, parts=parts)
            whole = True
        finally:
            if not whole:
                with suppress(SinkError):  # the error that made it necessary is the one to report
                    self._call("abort", path, f"{doing}, nor taken back", upload_id=upload_id)

    def _send_one(self, piece: memoryview, url: dict[str, Any], doing: str) -> dict[str, Any]:
        headers = {**(url.get("headers") or {}), "Content-Length": str(len(piece))}
        try:
            response = self._store.request("PUT", str(url.get("url")), doing, body=[piece], headers=headers)
        except TransientSinkError:
            self._offered = None if self._reached else False  # a store that only the server can reach
            raise
        self._reached = True
        if response.status in (401, 403):  # credentials of ours had no part in it
            self._offered = False
            raise TransientSinkError(
                f"{doing}: {self._store.name} answered {response.status} to a signed URL, whose time may be over. "
                "It goes whole next.",
                hint="Have the server sign for longer, or set MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD=false.",
            )
        error = error_of(response, doing, self._store.name)
        if error is not None:
            raise error
        return {"part_number": url.get("part_number"), "etag": response.headers.get("ETag", ""), "url": url.get("url")}

    def _call(self, what: str, path: str, doing: str, **arguments: Any) -> dict[str, Any]:
        folder, name = posixpath.split(path)
        url = f"{self._server}/api/2.0/mlflow-artifacts/mpu/{what}/{quote(folder, safe='/')}"
        response = self._http.request("POST", url, doing, json={"path": name, **arguments})
        error = error_of(response, doing, self._http.name, missing=SinkError)
        if error is not None:
            if response.status in (404, 405, 501):
                self._offered = False
                raise TransientSinkError(f"{doing}: {self._http.name} does not offer it. It goes whole next.")
            raise error
        return json_of(response)

    def _ask(self) -> bool:
        doing = f"{self._http.name} could not be asked what it offers"
        response = self._http.request("GET", f"{self._server}/api/3.0/mlflow/server-info", doing)
        return response.status == 200 and json_of(response).get("multipart_uploads_enabled") is True


def _with_own_blocks(urls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give the blocks of an Azure blob names of our own; what other stores call their parts stays.

    MLflow names them ``mlflow_block_1`` and so on. Azure wants names of one length, and refuses the tenth; and two
    writers of one blob would each replace the other's blocks, so that what is committed mixes both. The signature is
    for the blob, whatever its blocks are called, and the server commits those of the URLs that it is told in the end.
    As long as MLflow's first nine, since Azure keeps what was sent and never committed for a week.
    """
    upload = secrets.token_hex(5)[:9]

    def named(number: int, url: dict[str, Any]) -> dict[str, Any]:
        block = quote(base64.b64encode(f"{number:05}{upload}".encode()), safe="")
        return {**url, "url": _BLOCK.sub(block, url["url"])}

    return [named(number, url) for number, url in enumerate(urls)]


def _is_url(given: object) -> bool:
    return isinstance(given, dict) and isinstance(given.get("url"), str)
