"""Which store a URI means, where it does not say: buckets and containers of one name lie in many."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from stagesink.redaction import without_secrets
from stagesink.sinks.registry import scheme_of

Find = Callable[[Mapping[str, Any], Mapping[str, str]], str]

PROTOCOLS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("s3", "s3a"), ("s3", "s3a")),
    **dict.fromkeys(("az", "abfs", "abfss"), ("abfs", "az", "abfss")),
    **dict.fromkeys(("gs", "gcs"), ("gs", "gcs")),
}
"""By scheme, the names under which fsspec's configuration may speak of its implementation, in fsspec's order."""


def host_of(uri: str, options: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> str:
    """Return the address of the store that a URI's bucket or container lies in, whichever client carries it.

    Parameters
    ----------
    uri : str
    options : mapping
        As the fsspec implementation names them; they go before fsspec's configuration, and that before the variables.
    environ : mapping of str to str

    Returns
    -------
    str
        No secret is in it. Empty where nothing but the URI says it, or the cloud itself is meant.
    """
    find = _FIND.get(scheme_of(uri))
    if find is None:
        return ""
    return without_secrets(find({**configured(uri), **options}, environ)).rstrip("/")


def configured(uri: str) -> dict[str, Any]:
    """Return the options that fsspec's own configuration adds: its files, and the variables ``FSSPEC_...``.

    https://filesystem-spec.readthedocs.io/en/latest/features.html#configuration
    """
    from fsspec.config import conf

    return {
        name: value for protocol in PROTOCOLS.get(scheme_of(uri), ()) for name, value in conf.get(protocol, {}).items()
    }


def s3_endpoint(options: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """Return the endpoint that an option or a variable names, in the order of s3fs; "" is AWS itself."""
    given = options.get("client_kwargs")
    client = given if isinstance(given, Mapping) else {}
    return str(
        options.get("endpoint_url")
        or client.get("endpoint_url")
        or environ.get("AWS_ENDPOINT_URL_S3")
        or environ.get("AWS_ENDPOINT_URL")
        or ""
    )


def pairs_of(connection_string: str) -> dict[str, str]:
    """Take an Azure connection string apart; names in small letters."""
    pairs = [part.partition("=") for part in connection_string.split(";") if part.strip()]
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def blob_endpoint(pairs: Mapping[str, str]) -> str:
    """Return where a connection string's blobs are, without a slash at its end; "" where it does not say."""
    endpoint, account = pairs.get("blobendpoint", "").rstrip("/"), pairs.get("accountname")
    if endpoint or not account:
        return endpoint
    protocol, suffix = pairs.get("defaultendpointsprotocol", "https"), pairs.get("endpointsuffix")
    return f"{protocol}://{account}.blob.{suffix or 'core.windows.net'}"


def _azure(options: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    # A connection string goes before an account, as in adlfs, wherever either is from.
    if text := options.get("connection_string") or environ.get("AZURE_STORAGE_CONNECTION_STRING"):
        return blob_endpoint(pairs_of(str(text)))
    account = options.get("account_name") or environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    return f"https://{options.get('account_host') or f'{account}.blob.core.windows.net'}" if account else ""


def _google(options: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    return str(options.get("endpoint_url") or environ.get("STORAGE_EMULATOR_HOST") or "")


_FIND: dict[str, Find] = {
    **dict.fromkeys(("s3", "s3a"), s3_endpoint),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), _azure),
    **dict.fromkeys(("gs", "gcs"), _google),
}
