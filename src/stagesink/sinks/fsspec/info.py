"""What a store says of an object: its version and its digests, under the names each implementation gives them."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

# What tells one version of an object from the next, under the names the implementations give it.
_VERSION_FIELDS = ("ETag", "etag", "generation", "md5Hash", "unique", "mtime", "modify", "last_modified", "size")


def version_of(info: Mapping[str, Any]) -> dict[str, str]:
    return {field: str(info[field]) for field in _VERSION_FIELDS if info.get(field) is not None}


def info_of_head(head: Mapping[str, Any], bucket: str) -> dict[str, Any]:
    """Return the answer of S3's HEAD in the form of fsspec's ``info``."""
    return {**head, "type": "file", "size": head["ContentLength"], "bucket": bucket}


def digests_of(info: Mapping[str, Any]) -> dict[str, str]:
    """Read the digests that the store computed, as hex."""
    digests: dict[str, str] = {}
    if (md5 := _etag_md5(info)) is not None:
        digests["md5"] = md5
    for algorithm, field in (("md5", "md5Hash"), ("crc32c", "crc32c")):  # Google: base64
        if isinstance(value := info.get(field), str):
            digests[algorithm] = base64.b64decode(value).hex()
    if content_md5 := getattr(info.get("content_settings"), "content_md5", None):  # Azure: bytes
        digests["md5"] = bytes(content_md5).hex()
    return digests


def _etag_md5(info: Mapping[str, Any]) -> str | None:
    """Return the md5 in an S3 ETag; None for what is none: many parts, KMS, customer keys, express buckets."""
    etag = str(info.get("ETag", "")).strip('"')
    encrypted = info.get("ServerSideEncryption") not in (None, "AES256") or info.get("SSECustomerAlgorithm") is not None
    express = str(info.get("bucket", "")).endswith("--x-s3")
    return etag if re.fullmatch(r"[0-9a-f]{32}", etag) and not encrypted and not express else None
