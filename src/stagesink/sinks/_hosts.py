"""Which store a URI means, where it does not say: buckets and containers of one name lie in many."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from stagesink.redaction import without_secrets
from stagesink.sinks.registry import scheme_of

Find = Callable[[Mapping[str, Any], Mapping[str, str]], str]


def host_of(uri: str, options: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> str:
    """Return the address of the store that a URI's bucket or container lies in, whichever client carries it.

    Parameters
    ----------
    uri : str
    options : mapping
        As the fsspec implementation names them; they go before the variables.
    environ : mapping of str to str

    Returns
    -------
    str
        No secret is in it. Empty where nothing but the URI says it, or the cloud itself is meant.
    """
    find = _FIND.get(scheme_of(uri))
    return "" if find is None else without_secrets(find(options, environ)).rstrip("/")


def _s3(options: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    client = options.get("client_kwargs")
    named = client.get("endpoint_url") if isinstance(client, Mapping) else None
    variables = (environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
    return str(next(filter(None, (options.get("endpoint_url"), named, *variables)), ""))


def _azure(options: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    text = options.get("connection_string")
    account = options.get("account_name")
    if not text and not account:
        text = environ.get("AZURE_STORAGE_CONNECTION_STRING")
        account = environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    if not text:
        return f"https://{options.get('account_host') or f'{account}.blob.core.windows.net'}" if account else ""
    said = {name.strip().lower(): value for name, _, value in (part.partition("=") for part in str(text).split(";"))}
    if said.get("blobendpoint"):
        return said["blobendpoint"]
    suffix = said.get("endpointsuffix") or "core.windows.net"
    return f"{said.get('defaultendpointsprotocol', 'https')}://{said.get('accountname')}.blob.{suffix}"


def _google(options: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    return str(options.get("endpoint_url") or environ.get("STORAGE_EMULATOR_HOST") or "")


_FIND: dict[str, Find] = {
    **dict.fromkeys(("s3", "s3a"), _s3),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), _azure),
    **dict.fromkeys(("gs", "gcs"), _google),
}
