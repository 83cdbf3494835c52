"""``gs://``: the options of gcsfs and Google's environment, in obstore's terms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stagesink.sinks.obstore.settings import Settings, authorities_of, folder_of

_OPTIONS = {"token", "project", "endpoint_url"}

UNDERSTOOD = frozenset({"GOOGLE_APPLICATION_CREDENTIALS"})
"""Variables that are translated."""

HARMLESS = frozenset({"GOOGLE_BUCKET", "GOOGLE_BUCKET_NAME"})
"""Variables that obstore reads and that change nothing."""

FOREIGN = frozenset(
    {
        "GOOGLE_BASE_URL",
        "GOOGLE_BEARER_TOKEN",
        "GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
        "GOOGLE_SERVICE_ACCOUNT_PATH",
        "GOOGLE_SKIP_SIGNATURE",
        "STORAGE_EMULATOR_HOST",
    }
)
"""Variables that only one of the two clients reads: fsspec carries the sink where one is set."""


def settings(uri: str, options: Mapping[str, Any], environ: Mapping[str, str]) -> Settings | None:
    """Return what obstore is given for ``uri``, or None where fsspec is to carry it."""
    place = folder_of(uri)
    token = options.get("token") or environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    file = isinstance(token, str) and Path(token).expanduser().is_file()
    foreign = any(environ.get(name) for name in FOREIGN)
    if place is None or not file or foreign or not options.keys() <= _OPTIONS:
        return None
    bucket, root = place
    told: dict[str, Any] = {"application_credentials": str(Path(str(token)).expanduser())}
    endpoint = options.get("endpoint_url")
    if endpoint:
        told["base_url"] = endpoint
    trusted = authorities_of(environ, "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
    return Settings("GCSStore", bucket, root, endpoint or "https://storage.googleapis.com", told, authorities=trusted)
