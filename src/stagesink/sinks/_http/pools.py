"""Connections: what they trust, which proxy they take, how long they wait, and what they keep out of the log."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import make_headers

from stagesink.errors import ConfigError, MissingExtra
from stagesink.redaction import hide_in_logs

SECONDS = 120.0
"""How long one answer may take unless somebody says otherwise."""

_CONNECT_SECONDS = 15.0  # a server that is there answers the knock sooner; the rest is for its work
_CONNECTIONS = 72  # as many as there may be workers
_SENT_AT_ONCE = 1 << 18  # bytes; urllib3's own 16 KiB cost a system call each
_SMALL = 1 << 16  # bytes that get away in the time of a knock, with 4 KB/s
_SLICE, _SLICE_SECONDS = 1 << 20, 120.0  # bytes of what is larger, and their time, as of an answer: 9 KB/s
_QUICK_ACK: int | None = getattr(socket, "TCP_QUICKACK", None)  # Linux


def pool_manager(
    url: str, *, seconds: float = SECONDS, context: ssl.SSLContext | None = None, authorities: tuple[str, ...] = ()
) -> urllib3.PoolManager:
    """Make connections: kept alive, as many as there may be workers, without retries and redirects of their own.

    Parameters
    ----------
    url : str
        A server's address: the environment's proxy for it is taken.
    seconds : float
        How long one answer may take.
    context : ssl.SSLContext, optional
        What is trusted. Default: what :func:`default_context` trusts, read once in a process.
    authorities : tuple of str
        Files of certificates to trust besides, without ``context``.

    Raises
    ------
    MissingExtra
        The proxy speaks SOCKS and PySocks is not installed.
    """
    hide_in_logs("urllib3.connectionpool")
    settings: dict[str, Any] = {
        "maxsize": _CONNECTIONS,
        "retries": False,
        "timeout": urllib3.Timeout(connect=min(seconds, _CONNECT_SECONDS), read=seconds),
        "blocksize": _SENT_AT_ONCE,
    }
    if context is None and not url.startswith("http://"):  # reading the authorities takes a tenth of a second
        context = _shared_context(_bundle(), os.environ.get("SSL_CERT_FILE"), authorities)
    if context is not None:
        settings["ssl_context"] = context
    proxy = _proxy_for(url)
    if proxy is None:
        return _prompt(urllib3.PoolManager(**settings))
    if proxy.startswith("socks"):
        try:
            from urllib3.contrib.socks import SOCKSProxyManager
        except ImportError as error:
            raise MissingExtra("The proxy speaks SOCKS.", hint="pip install 'urllib3[socks]'") from error
        return SOCKSProxyManager(proxy, **settings)
    login = urlsplit(proxy)
    proxy_headers = None
    if login.username is not None:
        proxy_headers = make_headers(proxy_basic_auth=f"{unquote(login.username)}:{unquote(login.password or '')}")
    return _prompt(urllib3.ProxyManager(proxy, proxy_headers=proxy_headers, **settings))


class PoolsByHost:
    """Connections to servers that are known by the URLs alone that one is given, such as signed ones.

    Each host has its own, since the environment may name a proxy for some and NO_PROXY others.

    Parameters
    ----------
    **settings
        Of :func:`pool_manager`.
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self._pools: dict[tuple[str, str], urllib3.PoolManager] = {}

    def request(self, method: str, url: str, **request: Any) -> urllib3.BaseHTTPResponse:
        """Send one request, as a ``PoolManager`` does."""
        return self.pool_for(url).request(method, url, **request)

    def pool_for(self, url: str) -> urllib3.PoolManager:
        """Return the connections to a URL's host."""
        parts = urlsplit(url)
        host = (parts.scheme, parts.netloc)
        pool = self._pools.get(host)
        # Not `or`: one that holds no connection is false.
        return pool if pool is not None else self._pools.setdefault(host, pool_manager(url, **self._settings))

    def clear(self) -> None:
        """Let go of the connections."""
        for pool in list(self._pools.values()):
            pool.clear()


class _Prompt:
    """Sends what is large in slices, and acknowledges the start of an answer at once.

    Python counts the time of a whole ``sendall``, however much gets away meanwhile, and urllib3 gives it the time of
    making a connection: 8 MiB on each of four connections would need a line of 18 Mbit/s. Slices of 64 KiB, with that
    time, cost 577 MB in 8 files a third.

    For an acknowledgement the system would wait for something to send along. A server that writes the head of an answer
    and its body one after the other, without TCP_NODELAY, holds the body back until the head is acknowledged, and Linux
    takes 40 ms for that on a connection that is kept alive: MLflow's servers do so, at each listing and each removal.
    The option lasts until something is sent, see tcp(7).
    """

    sock: Any

    def send(self, data: Any) -> None:
        if not isinstance(data, bytes | bytearray | memoryview) or len(data) <= _SMALL or self.sock is None:
            super().send(data)  # type: ignore[misc]
            return
        view, before = memoryview(data), self.sock.gettimeout()
        if before is not None:
            self.sock.settimeout(max(before, _SLICE_SECONDS))
        for start in range(0, len(view), _SLICE):
            super().send(view[start : start + _SLICE])  # type: ignore[misc]
        self.sock.settimeout(before)

    def getresponse(self) -> Any:
        if _QUICK_ACK is not None and isinstance(self.sock, socket.socket):
            with suppress(OSError):  # hung up already: reading will say so
                self.sock.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)
        return super().getresponse()  # type: ignore[misc]


class _PromptHttp(_Prompt, HTTPConnection):
    pass


class _PromptHttps(_Prompt, HTTPSConnection):
    pass


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _PromptHttp


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _PromptHttps


def _prompt(manager: urllib3.PoolManager) -> urllib3.PoolManager:
    manager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
    return manager


def default_context() -> ssl.SSLContext:
    """Trust what the system trusts, and what certifi does, which requests and its users go by."""
    context = ssl.create_default_context()
    variable, bundle = _bundle()
    if not bundle:
        try:
            import certifi
        except ImportError:
            return context
        bundle = certifi.where()
    trust(context, bundle, variable)
    return context


def _bundle() -> tuple[str, str]:
    """Return the first of requests' variables that names authorities, and what it names."""
    variables = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    variable = next(filter(os.environ.get, variables), variables[0])
    return variable, os.environ.get(variable, "")


def context_of(authorities: str, named: str) -> ssl.SSLContext:
    """Trust what a PEM file holds, or a folder of them, and nothing else.

    Raises
    ------
    ConfigError
        It cannot be read.
    """
    with reading_certificates(named):
        return ssl.create_default_context(**_where(authorities))


def trust(context: ssl.SSLContext, authorities: str, named: str) -> None:
    """Trust what a PEM file holds too, or a folder of them, as requests does.

    Raises
    ------
    ConfigError
        It cannot be read.
    """
    with reading_certificates(named):
        context.load_verify_locations(**_where(authorities))


def _where(authorities: str) -> dict[str, Any]:
    return {"capath" if os.path.isdir(authorities) else "cafile": authorities}


@contextmanager
def reading_certificates(named: str) -> Iterator[None]:
    """Raise ConfigError for what is no certificate, or cannot be read, with ``named`` for where that was said."""
    try:
        yield
    except OSError as error:  # SSLError too
        raise ConfigError(
            f"{named} has no certificate that can be read ({type(error).__name__}).",
            hint="It takes the path of a PEM file.",
        ) from error


@cache
def _shared_context(bundle: tuple[str, str], system: str | None, authorities: tuple[str, ...]) -> ssl.SSLContext:
    """Make the context once for all connections that trust the same; the variables are here to be told apart by."""
    context = default_context()
    for authority in authorities:
        trust(context, authority, authority)
    return context


def _proxy_for(url: str) -> str | None:
    parts = urlsplit(url)
    proxies = getproxies()
    host = parts.hostname or ""
    with_port = parts.netloc.rpartition("@")[2]
    if proxy_bypass(host) or proxy_bypass(with_port) or _is_in_a_range(host, proxies.get("no", "")):
        return None
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def _is_in_a_range(host: str, ranges: str) -> bool:
    """Tell whether NO_PROXY has an address range that holds this one, as requests reads it and urllib does not."""
    try:
        address = ip_address(host)
    except ValueError:  # a name
        return False
    for each in ranges.split(","):
        with suppress(ValueError):
            if address in ip_network(each.strip(), strict=False):
                return True
    return False
