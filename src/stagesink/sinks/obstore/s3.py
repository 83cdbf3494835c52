"""``s3://``: the options of s3fs and the environment of botocore, in obstore's terms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stagesink.errors import TransientSinkError
from stagesink.sinks._hosts import s3_endpoint
from stagesink.sinks.obstore.settings import Settings, authorities_of, folder_of, seconds_of

_OPTIONS = {"key", "secret", "token", "anon", "endpoint_url", "client_kwargs", "config_kwargs", "username", "password"}
_CLIENT = {"region_name", "endpoint_url"}
_CONFIG = {"connect_timeout", "read_timeout", "request_checksum_calculation"}
# Where S3 is under amazonaws.com, which is all that obstore knows: not in China, the European cloud and secret ones.
_REGION = re.compile(r"(?:us-gov|us|eu|ap|sa|ca|me|af|il|mx)-[a-z]+-\d+")
_CHECKSUM_HINT = (
    f"{TransientSinkError.default_hint} If it only speaks like S3, it may refuse checksums: "
    "set AWS_REQUEST_CHECKSUM_CALCULATION=when_required."
)

UNDERSTOOD = frozenset(
    {
        "AWS_ACCESS_KEY_ID",
        "AWS_CA_BUNDLE",
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_REGION",
        "AWS_REQUEST_CHECKSUM_CALCULATION",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
    }
)
"""Variables that are translated."""

HARMLESS = frozenset(
    {
        # How to fetch credentials: of no account where a key is given.
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_IMDSV1_FALLBACK",
        "AWS_METADATA_ENDPOINT",
        "AWS_ROLE_ARN",
        "AWS_ROLE_SESSION_NAME",
        "AWS_STS_ENDPOINT",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        # Set by us, or about what we do not do.
        "AWS_BUCKET",
        "AWS_BUCKET_NAME",
        "AWS_CONDITIONAL_PUT",
        "AWS_COPY_IF_NOT_EXISTS",
        "AWS_DISABLE_BULK_DELETE",
        "AWS_DISABLE_TAGGING",
    }
)
"""Variables that obstore reads and that change nothing."""

FOREIGN = frozenset(
    {
        # obstore reads them, botocore does not: they must not send the objects elsewhere, or store them otherwise.
        "AWS_CHECKSUM_ALGORITHM",
        "AWS_ENDPOINT",
        "AWS_REQUEST_PAYER",
        "AWS_S3_EXPRESS",
        "AWS_SERVER_SIDE_ENCRYPTION",
        "AWS_SKIP_SIGNATURE",
        "AWS_SSE_BUCKET_KEY_ENABLED",
        "AWS_SSE_CUSTOMER_KEY_BASE64",
        "AWS_SSE_KMS_KEY_ID",
        "AWS_TOKEN",
        "AWS_UNSIGNED_PAYLOAD",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
        # botocore reads them, obstore does not.
        "AWS_DEFAULT_PROFILE",
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
        "AWS_PROFILE",
        "AWS_SECURITY_TOKEN",
        "AWS_USE_DUALSTACK_ENDPOINT",
        "AWS_USE_FIPS_ENDPOINT",
    }
)
"""Variables that only one of the two clients reads: fsspec carries the sink where one is set."""


def settings(uri: str, options: Mapping[str, Any], environ: Mapping[str, str]) -> Settings | None:
    """Return what obstore is given for ``uri``, or None where fsspec is to carry it."""
    place = folder_of(uri)
    client, config = options.get("client_kwargs") or {}, options.get("config_kwargs") or {}
    known = options.keys() <= _OPTIONS and client.keys() <= _CLIENT and config.keys() <= _CONFIG
    limits = seconds_of(config.get("connect_timeout"), config.get("read_timeout"))
    if place is None or not known or limits is None or options.get("anon") or _is_elsewhere(environ):
        return None
    bucket, root = place
    credentials = _credentials(options, environ)
    endpoint = s3_endpoint(options, environ)
    region = client.get("region_name") or environ.get("AWS_DEFAULT_REGION") or environ.get("AWS_REGION")
    # Without a region botocore finds the bucket's own; obstore does not. Express buckets have other endpoints.
    known = bool(endpoint) or (isinstance(region, str) and _REGION.fullmatch(region) is not None)
    if credentials is None or not known or bucket.endswith("--x-s3") or not _is_plain(bucket):
        return None
    if endpoint and "session_token" in credentials:
        return None  # obstore follows redirects, and takes the token along; AWS itself sends nobody to other hosts
    told: dict[str, Any] = {**credentials, "region": region or "us-east-1", "disable_bulk_delete": True}
    if endpoint:
        told["endpoint"] = endpoint.rstrip("/")
        told["aws_endpoint_url_s3"] = told["endpoint"]  # else the variable of that name would win
    hint = None
    if _wants_checksums(config, environ):
        # It is the digest that each request is signed with, so it costs nothing; the store keeps it, and checks it.
        told["checksum_algorithm"], hint = "sha256", _CHECKSUM_HINT
    trusted = authorities_of(environ, "AWS_CA_BUNDLE", "SSL_CERT_FILE")
    where = endpoint or f"https://s3.{region}.amazonaws.com"
    return Settings("S3Store", bucket, root, where, told, limits, trusted, hint)


def _wants_checksums(config: Mapping[str, Any], environ: Mapping[str, str]) -> bool:
    """Tell whether what is put carries a checksum: as with botocore, unless one says that only where S3 requires it.

    https://docs.aws.amazon.com/sdkref/latest/guide/feature-dataintegrity.html
    """
    asked = config.get("request_checksum_calculation") or environ.get("AWS_REQUEST_CHECKSUM_CALCULATION") or ""
    return str(asked).lower() != "when_required"


def _credentials(options: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str] | None:
    key, secret = options.get("key") or options.get("username"), options.get("secret") or options.get("password")
    token = options.get("token")
    if key or secret or token:
        if environ.get("AWS_SESSION_TOKEN") and not token:
            return None  # obstore would add it to a key that it does not belong to
    else:
        key, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
        token = environ.get("AWS_SESSION_TOKEN")
    if not (key and secret):
        return None
    return {"access_key_id": key, "secret_access_key": secret, **({"session_token": token} if token else {})}


def _is_elsewhere(environ: Mapping[str, str]) -> bool:
    """Tell whether something is configured that only one of the two clients would heed."""
    if any(environ.get(name) for name in FOREIGN):
        return True
    files = {"AWS_CONFIG_FILE": "~/.aws/config", "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials"}
    return any(Path(environ.get(name) or default).expanduser().is_file() for name, default in files.items())


def _is_plain(bucket: str) -> bool:
    """Tell a bucket from an access point's ARN and the like."""
    return all(char.isalnum() or char in "-._" for char in bucket)
