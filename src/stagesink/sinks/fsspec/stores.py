"""What is known of each fsspec implementation: how it commits, what it needs, which options keep it quiet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from stagesink.errors import ConfigError, MissingExtra, UnknownScheme
from stagesink.redaction import hide_in_logs
from stagesink.sinks.fsspec.redirects import session_without_redirects

Commit = Literal["put", "pipe", "rename"]

_COMMIT: dict[str, Commit] = {
    # An object appears at once, when the store has all of it.
    **dict.fromkeys(("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "tos", "tosfs"), "put"),
    # fsspec's memory shows a file from the moment it is opened for writing, but takes one whole in a single step.
    "memory": "pipe",
    # A file appears while it is written, so it is written under a temporary name in the same folder and renamed.
    **dict.fromkeys(
        ("file", "local", "sftp", "ssh", "ftp", "smb", "hdfs", "arrow_hdfs", "webhdfs", "webdav"), "rename"
    ),
}

_EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "az"),
    **dict.fromkeys(("gs", "gcs"), "gs"),
    **dict.fromkeys(("sftp", "ssh"), "sftp"),
}


def is_local(kind: Any) -> bool:
    """Tell whether a file system class is about this machine's own disk."""
    return bool(getattr(kind, "local_file", False))


def check_form(uri: str, scheme: str, kind: Any) -> None:
    try:
        urlsplit(uri)
        whole = is_local(kind) or uri[len(scheme) :].startswith("://")
    except ValueError:  # brackets that hold no address; the URI may hold a password, so it is not repeated
        whole = False
    if not whole:
        raise ConfigError(
            f"A {scheme}: sink needs a whole URL.", hint=f"Write {scheme}://HOST-OR-BUCKET/FOLDER."
        ) from None


def root_of(uri: str, scheme: str, kind: Any) -> str:
    """Return where ``uri`` lies inside its store, as the implementation reads it."""
    try:
        kind._get_kwargs_from_urls(uri)  # as connecting will do, so that it fails now or never
        return str(kind._strip_protocol(uri)).rstrip("/")
    except ValueError:  # it quotes a piece of the password, taken for a port
        raise ConfigError(
            f"The URI of this {scheme}: sink cannot be taken apart.",
            hint="Percent-encode what is special in user and password ('/' is %2F), or put them into"
            " artifacts.storage_options.",
        ) from None


def filesystem_class(scheme: str) -> Any:
    from fsspec.registry import get_filesystem_class, known_implementations

    try:
        return get_filesystem_class(scheme)
    except ImportError as error:
        if scheme in _EXTRAS:
            hint = f"pip install 'stagesink[{_EXTRAS[scheme]}]'"
        else:
            hint = str(known_implementations.get(scheme, {}).get("err", "Install its package."))
        raise MissingExtra(f"A package for {scheme}: sinks is not installed.", hint=hint) from error


def commit_of(scheme: str, kind: Any) -> Commit:
    from fsspec.spec import AbstractFileSystem

    if scheme in _COMMIT:
        return _COMMIT[scheme]
    if kind.mv is not AbstractFileSystem.mv:
        return "rename"
    raise UnknownScheme(
        f"{scheme}: has neither an atomic put nor a rename, so readers could see half an object.",
        hint="Use s3://, az://, gs://, sftp:// or file:, or write a sink for it.",
    )


def quiet_options(scheme: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Add what switches off the client's own retries, its memory of listings, and going where a store sends it."""
    quiet = dict(options)
    if scheme in ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "ftp"):
        quiet.setdefault("use_listings_cache", False)
    if scheme in ("s3", "s3a"):
        hide_in_logs("botocore.auth", "botocore.endpoint", "aiobotocore.endpoint")
        config = {
            "retries": {"mode": "standard", "total_max_attempts": 1},
            "max_pool_connections": 32,
            "http_session_cls": session_without_redirects(),
        }
        quiet["config_kwargs"] = {**config, **quiet.get("config_kwargs", {})}
    return quiet


def azure_retries(fs: Any) -> Any:
    """Return the retry policy that all requests of an adlfs instance share; None for other implementations."""
    config = getattr(getattr(fs, "service_client", None), "_config", None)
    policy = getattr(config, "retry_policy", None)
    return policy if hasattr(policy, "total_retries") else None
