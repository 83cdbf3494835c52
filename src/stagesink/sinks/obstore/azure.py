"""``az://``, ``abfs://`` and ``abfss://``: the options and the environment of adlfs, in obstore's terms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stagesink.sinks._hosts import blob_endpoint, pairs_of
from stagesink.sinks.obstore.settings import Settings, authorities_of, folder_of, seconds_of

_OPTIONS = {
    "account_name",
    "account_key",
    "connection_string",
    "anon",
    "connection_timeout",
    "read_timeout",
    "account_host",
}
_HOST = re.compile(r"(?:(?P<container>[^@]+)@)?(?P<account>[^.@]+)\.(?:dfs|blob)\.core\.windows\.net")
_CONNECTION = {
    "accountname": "account_name",
    "accountkey": "account_key",
    "blobendpoint": "endpoint",
    "defaultendpointsprotocol": "",
    "endpointsuffix": "",
    "queueendpoint": "",
    "tableendpoint": "",
    "fileendpoint": "",
}

UNDERSTOOD = frozenset(
    {
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_ACCOUNT_NAME",
        "AZURE_STORAGE_CONNECTION_STRING",
        "AZURE_STORAGE_SAS_TOKEN",
    }
)
"""Variables that are translated."""

HARMLESS = frozenset(
    {
        # How to fetch a token: of no account where a key is given.
        "AZURE_AUTHORITY_HOST",
        "AZURE_AUTHORITY_ID",
        "AZURE_CLIENT_ID",
        "AZURE_CLIENT_SECRET",
        "AZURE_FABRIC_CLUSTER_IDENTIFIER",
        "AZURE_FABRIC_SESSION_TOKEN",
        "AZURE_FABRIC_TOKEN_SERVICE_URL",
        "AZURE_FABRIC_WORKLOAD_HOST",
        "AZURE_FEDERATED_TOKEN_FILE",
        "AZURE_IDENTITY_ENDPOINT",
        "AZURE_MSI_ENDPOINT",
        "AZURE_MSI_RESOURCE_ID",
        "AZURE_OBJECT_ID",
        "AZURE_STORAGE_AUTHORITY_HOST",
        "AZURE_STORAGE_AUTHORITY_ID",
        "AZURE_STORAGE_CLIENT_ID",
        "AZURE_STORAGE_CLIENT_SECRET",
        "AZURE_STORAGE_TENANT_ID",
        "AZURE_TENANT_ID",
        # Set by us, or about what we do not do.
        "AZURE_CONTAINER_NAME",
        "AZURE_CREDENTIAL_TYPE",
        "AZURE_DISABLE_TAGGING",
        "AZURE_ENDPOINT",
        "AZURE_STORAGE_ENDPOINT",
    }
)
"""Variables that obstore reads and that change nothing."""

FOREIGN = frozenset(
    {
        "AZURE_ENCRYPTION_KEY",
        "AZURE_SKIP_SIGNATURE",
        "AZURE_STORAGE_ACCESS_KEY",
        "AZURE_STORAGE_ANON",
        "AZURE_STORAGE_MASTER_KEY",
        "AZURE_STORAGE_SAS_KEY",
        "AZURE_STORAGE_TOKEN",
        "AZURE_STORAGE_USE_EMULATOR",
        "AZURE_USE_AZURE_CLI",
    }
)
"""Variables that only one of the two clients reads: fsspec carries the sink where one is set."""


def settings(uri: str, options: Mapping[str, Any], environ: Mapping[str, str]) -> Settings | None:
    """Return what obstore is given for ``uri``, or None where fsspec is to carry it."""
    place = folder_of(uri)
    limits = seconds_of(options.get("connection_timeout"), options.get("read_timeout"))
    foreign = any(environ.get(name) for name in FOREIGN) or options.get("anon")
    if place is None or limits is None or foreign or not options.keys() <= _OPTIONS:
        return None
    host, root = place
    account = None
    if "." in host or "@" in host:
        found = _HOST.fullmatch(host)
        if found is None or not found["container"]:
            return None
        host, account = found["container"], found["account"]
    access = _access(account, options, environ)
    if access is None or not re.fullmatch(r"[$a-z0-9-]+", host):
        return None
    trusted = authorities_of(environ, "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
    return Settings("AzureStore", host, root, access["endpoint"], access, limits, trusted)


def _access(account: str | None, options: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str] | None:
    """Return account, secret and endpoint, with what goes first in adlfs first here."""

    def told(option: str) -> Any:
        return options.get(option) or environ.get(f"AZURE_STORAGE_{option.upper()}")

    connection = told("connection_string")
    if connection:
        return _of_connection_string(str(connection))
    name, key = account or told("account_name"), told("account_key")
    if not name or not key:
        return None  # a SAS too: obstore follows redirects, and would tell the other host the URL that it came from
    endpoint = f"https://{options.get('account_host') or f'{name}.blob.core.windows.net'}"
    return _with_key(str(name), endpoint, key)


def _of_connection_string(text: str) -> dict[str, str] | None:
    given = pairs_of(text)
    if not given.keys() <= _CONNECTION.keys():
        return None
    name, endpoint, key = given.get("accountname"), blob_endpoint(given), given.get("accountkey")
    if not (endpoint and name and key):
        return None  # the account's name may be in the endpoint alone
    return _with_key(name, endpoint, key)


def _with_key(name: str, endpoint: str, key: Any) -> dict[str, str]:
    """Say which kind of secret it is: of those that the environment holds, another might win."""
    return {"account_name": name, "endpoint": endpoint, "account_key": str(key), "credential_type": "access_key"}
