"""What mlflow's own client reads from the environment: credentials, certificates, headers, time limits, proxies.

The variables and their meaning are those of ``mlflow.utils.credentials``, ``mlflow.utils.rest_utils`` and
``mlflow.tracking.request_header`` (2.9 to 3.x); credentials are read at each request, as there, so that a token that
is renewed in the environment is used.
"""

from __future__ import annotations

import configparser
import logging
import math
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from urllib3.util import make_headers

from stagesink._version import __version__
from stagesink.errors import ConfigError, SinkAuthError, SinkError
from stagesink.sinks._backend_errors import translating
from stagesink.sinks._http import pools
from stagesink.sinks._http.client import Hints
from stagesink.sinks.mlflow import netrc_file
from stagesink.sinks.mlflow.address import Address

if TYPE_CHECKING:
    from urllib3 import PoolManager

_log = logging.getLogger("stagesink")
_warned: dict[str, object] = {}
"""The plug-ins that were spoken of."""

SECONDS = 120.0
"""mlflow's own default for ``MLFLOW_HTTP_REQUEST_TIMEOUT``."""

HINTS = Hints(
    timeout="Try again; MLFLOW_HTTP_REQUEST_TIMEOUT is the limit in seconds.",
    certificate="Check the host name, or name its authority in MLFLOW_TRACKING_SERVER_CERT_PATH.",
    client_certificate="If it wants a client certificate, name it in MLFLOW_TRACKING_CLIENT_CERT_PATH.",
    scheme="If it goes on, the server may speak {other}: write {other}:// in its address.",
)
"""What to do about connections, in mlflow's terms."""

STORE_HINTS = replace(HINTS, scheme="")
"""The same about a store whose address the server gives."""


def needs_own_client(environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether requests are signed by a plug-in of mlflow's, which works with mlflow's own client alone."""
    return bool(environ.get("MLFLOW_TRACKING_AUTH")) or _is_true("MLFLOW_TRACKING_AWS_SIGV4", environ)


def seconds(environ: Mapping[str, str] = os.environ) -> float:
    """Return how long one answer may take."""
    return _number("MLFLOW_HTTP_REQUEST_TIMEOUT", SECONDS, environ)


def bytes_from(variable: str, default: int, environ: Mapping[str, str] = os.environ) -> int:
    """Read a size in bytes."""
    return int(_number(variable, default, environ))


def switch(variable: str, environ: Mapping[str, str] = os.environ) -> bool | None:
    """Read a variable that is true, false, or None when it is not set."""
    return _is_true(variable, environ) if environ.get(variable) else None


def headers(address: Address, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return what goes with each request to the server: who we are, and what mlflow's header plug-ins add.

    ``~/.netrc`` speaks where nobody else does. With mlflow's own client it goes before all others, which requests'
    users take for a defect: a token that was set for this server counts for more than a file for every program.
    """
    found = {"User-Agent": f"stagesink/{__version__}", **_plugin_headers()}
    if workspace := environ.get("MLFLOW_WORKSPACE", "").strip():
        found["X-MLFLOW-WORKSPACE"] = workspace
    if authorization := _authorization(address, environ):
        found["Authorization"] = authorization
    elif not any(name.lower() == "authorization" for name in found) and (login := _login_of_netrc(address, environ)):
        found["Authorization"] = _basic(*login)
    return found


def secrets(address: Address, environ: Mapping[str, str] = os.environ) -> frozenset[str]:
    """Collect what must not be shown: passwords and tokens, as they are and as they are sent."""
    token = environ.get("MLFLOW_TRACKING_TOKEN", "")
    found = {token, token.strip(), environ.get("MLFLOW_TRACKING_PASSWORD", "")}
    with suppress(ConfigError):  # whoever sends it says so
        found.add(_credentials_file().get("mlflow_tracking_password", ""))
    if address.login is not None:
        found |= {address.login[1], unquote(address.login[1])}
    if login := _login_of_netrc(address, environ):
        found |= {login[1], _basic(*login).partition(" ")[2]}
    with suppress(SinkAuthError, ConfigError, UnicodeError):
        if sent := _authorization(address, environ):
            found.add(sent.partition(" ")[2])
    return frozenset(secret for secret in found if len(secret) >= 4)


def pool_manager(address: Address, environ: Mapping[str, str] = os.environ) -> PoolManager:
    """Make the connections: kept alive, as many as there may be workers, without retries and redirects of their own.

    Raises
    ------
    ConfigError
        A certificate cannot be read, or a number is none.
    MissingExtra
        The proxy speaks SOCKS and PySocks is not installed.
    """
    context = _ssl_context(environ) if address.server.startswith("https:") else None
    return pools.pool_manager(address.server, seconds=seconds(environ), context=context)


def presigned_pool() -> pools.PoolsByHost:
    """Make the connections to stores that the server sends us to. They carry no credentials: the URL is signed."""
    context = None
    if _is_true("MLFLOW_S3_IGNORE_TLS", os.environ):
        context = pools.default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return pools.PoolsByHost(seconds=seconds(), context=context)


def _authorization(address: Address, environ: Mapping[str, str]) -> str | None:
    """Choose as mlflow does: the URL's login, then user and password, then the token."""
    if address.login is not None:
        name, password = map(unquote, address.login)
    else:
        from_file = _credentials_file()
        name = environ.get("MLFLOW_TRACKING_USERNAME") or from_file.get("mlflow_tracking_username", "")
        password = environ.get("MLFLOW_TRACKING_PASSWORD") or from_file.get("mlflow_tracking_password", "")
    if name and password:
        return _basic(name, password)
    token = environ.get("MLFLOW_TRACKING_TOKEN", "").strip()  # files of secrets often end in a line break
    if not token.isascii() or not token.isprintable() or " " in token:
        raise SinkAuthError(
            "What MLFLOW_TRACKING_TOKEN holds is no token: it has characters that none has.",
            hint="Set MLFLOW_TRACKING_TOKEN to the token alone, or take it away.",
        )
    return f"Bearer {token}" if token else None


def _login_of_netrc(address: Address, environ: Mapping[str, str]) -> tuple[str, str] | None:
    host = urlsplit(address.server).hostname if address.is_http else None
    return netrc_file.login_for(host, environ) if host else None


def _basic(name: str, password: str) -> str:
    # mlflow sends the UTF-8 of it, urllib3 encodes as latin-1: spelled so that the same bytes go out.
    return make_headers(basic_auth=f"{name}:{password}".encode().decode("latin-1"))["authorization"]


def _credentials_file() -> Mapping[str, str]:
    path = os.path.expanduser("~/.mlflow/credentials")
    if not os.path.exists(path):
        return {}
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, OSError, UnicodeDecodeError) as error:
        # Without its message, which quotes the line.
        raise ConfigError(
            f"{path} cannot be read ({type(error).__name__}).", hint="Mend it, or set MLFLOW_TRACKING_USERNAME."
        ) from None
    return dict(parser["mlflow"]) if parser.has_section("mlflow") else {}


@cache
def _plugins() -> tuple[tuple[str, Any], ...]:
    """Load other packages' request header providers; mlflow's own only tell its version."""
    found = []
    for entry in entry_points(group="mlflow.request_header_provider"):
        with _going_on_without(entry.name):
            found.append((entry.name, entry.load()()))
    return tuple(found)


def _plugin_headers() -> dict[str, str]:
    found: dict[str, str] = {}
    for plugin, provider in _plugins():
        with _going_on_without(plugin):
            added = dict(provider.request_headers()) if provider.in_context() else {}
            for name, value in added.items():
                found[name] = f"{found[name]} {value}" if name in found else value
    return found


@contextmanager
def _going_on_without(plugin: str) -> Iterator[None]:
    """Warn once of a plug-in that fails, as mlflow does: what it adds is seldom what an upload depends on."""
    try:
        with translating(f"mlflow's header plug-in {plugin!r} failed"):
            yield
    except SinkError as error:
        warned = object()
        if _warned.setdefault(plugin, warned) is warned:
            _log.warning("%s Requests go without what it adds.", error.message)


def _ssl_context(environ: Mapping[str, str]) -> ssl.SSLContext:
    authorities = environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH")
    insecure = _is_true("MLFLOW_TRACKING_INSECURE_TLS", environ)
    if insecure and authorities:
        raise ConfigError(
            "MLFLOW_TRACKING_INSECURE_TLS and MLFLOW_TRACKING_SERVER_CERT_PATH contradict each other.",
            hint="Unset one of them.",
        )
    # In place of what is trusted otherwise, as in mlflow: who names an authority may mean to shut out the others.
    named = "MLFLOW_TRACKING_SERVER_CERT_PATH"
    context = pools.context_of(authorities, named) if authorities else pools.default_context()
    if own := environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH"):
        with pools.reading_certificates("MLFLOW_TRACKING_CLIENT_CERT_PATH"):
            context.load_cert_chain(own)
    if insecure:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _is_true(variable: str, environ: Mapping[str, str]) -> bool:
    return environ.get(variable, "").lower() in ("true", "1")


def _number(variable: str, default: float, environ: Mapping[str, str]) -> float:
    text = environ.get(variable, "")
    if not text:
        return default
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise ConfigError(f"{variable} is {text!r}, which is no number above zero.", hint="Correct it or unset it.")
    return number
