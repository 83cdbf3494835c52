"""One server over HTTP: pooled connections, and every failure as one of our errors."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import BadStatusLine
from json import loads
from typing import TYPE_CHECKING, Any

from urllib3 import exceptions

from stagesink.errors import SinkError, TransientSinkError
from stagesink.redaction import causes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from urllib3 import BaseHTTPResponse, PoolManager

    from stagesink.sinks._http.pools import PoolsByHost

Body = bytes | Iterable[Any]  # of what a socket can send

_TLS_ALERT = "\x15\x03"  # how a record begins that says why a server will not go on: RFC 8446, 5.1


@dataclass(frozen=True, slots=True)
class Hints:
    """What to do about a connection that fails, in the words of the backend's own settings."""

    timeout: str = "Try again."
    certificate: str = "Check the host name, or name its authority in REQUESTS_CA_BUNDLE."
    client_certificate: str = "Ask whoever runs it how clients show who they are."
    scheme: str = ""
    """Where the address may be somebody's slip of the pen. Most that speak TLS hang up on plain HTTP without a word,
    and some that do not speak it wait for its end; ``{other}`` stands for the other scheme."""


class HttpClient:
    """Sends requests on kept-alive connections. Thread-safe; each process has connections of its own.

    Parameters
    ----------
    name : str
        The server as it is called in messages.
    connect : callable
        Makes the connections.
    headers : callable
        Returns what goes with each request. May hold secrets, and is asked anew each time.
    hints : Hints, optional
    other_login : callable, optional
        Asked after a 401, with the headers that it was the answer to: True when ``headers`` has other credentials now.
        The request is sent once more then.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], PoolManager | PoolsByHost],
        headers: Callable[[], Mapping[str, str]] = dict,
        hints: Hints | None = None,
        other_login: Callable[[Mapping[str, str]], bool] | None = None,
    ) -> None:
        self.name = name
        self._other_login = other_login
        self._hints = hints or Hints()
        self._connect = connect
        self._headers = headers
        self._answered = False  # once: then the scheme is the right one
        self._pools: dict[
            int, PoolManager | PoolsByHost
        ] = {}  # by process id: a fork's child must not speak on its parent's

    def request(
        self,
        method: str,
        url: str,
        doing: str,
        *,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
        json: Mapping[str, Any] | None = None,
        stream: bool = False,
    ) -> BaseHTTPResponse:
        """Send one request and return the answer, whatever its status.

        Parameters
        ----------
        method, url : str
        doing : str
            What fails if this does, as the start of a sentence.
        body : bytes or iterable of bytes, optional
            An iterable comes with its Content-Length in ``headers``.
        headers : mapping, optional
        json : mapping, optional
            The body, as an object.
        stream : bool
            Leave the answer's body to be read; then it has to be released.

        Raises
        ------
        TransientSinkError
            The server could not be reached, hung up, or took too long.
        SinkError
            Its certificate does not hold, or it does not speak TLS, or nothing else.
        """
        own = headers or {}
        sent = {**self._headers(), **own}
        response = self._send(method, url, doing, body, sent, json, stream)
        again = body is None or isinstance(body, bytes)  # else it has been read
        if response.status == 401 and again and self._other_login is not None and self._other_login(sent):
            response.close()
            response = self._send(method, url, doing, body, {**self._headers(), **own}, json, stream)
        if response.status >= 500:
            self._pool().clear()  # uvicorn cuts the connection on which its application failed, a moment later
        return response

    def _send(
        self,
        method: str,
        url: str,
        doing: str,
        body: Body | None,
        headers: Mapping[str, str],
        json: Mapping[str, Any] | None,
        stream: bool,
    ) -> BaseHTTPResponse:
        with self.translating(doing, url):
            response = self._pool().request(
                method,
                url,
                body=body,
                json=json,
                headers=headers,
                redirect=False,  # a token must not travel to another host
                preload_content=not stream,
                decode_content=not stream,  # an artifact's bytes are its bytes, whatever a server says of them
            )
        self._answered = True
        return response

    @contextmanager
    def translating(self, doing: str, url: str = "") -> Iterator[None]:
        """Turn what urllib3 raises into our errors; what a body's own iterator raises passes.

        Parameters
        ----------
        doing : str
            What fails if this does, as the start of a sentence.
        url : str
            Where a request goes; not for the body of an answer.
        """
        try:
            yield
        except exceptions.SSLError as error:
            raise self._tls_error(error, f"{doing}: {self.name}", url) from None
        except (exceptions.ConnectTimeoutError, exceptions.NewConnectionError, exceptions.ProxyError) as error:
            raise TransientSinkError(
                f"{doing}: {self.name} cannot be reached ({_reason(error)}).",
                hint="Check the address and port, and that the server runs.",
            ) from None
        except exceptions.ReadTimeoutError:
            raise TransientSinkError(
                f"{doing}: {self.name} took too long to answer.",
                hint=self._or_the_scheme(self._hints.timeout, url),
            ) from None
        except exceptions.HTTPError as error:
            # Protocol errors: a connection that was cut, an answer that is none, a body shorter than announced.
            if any(map(_is_alert, _inner(error))):
                raise SinkError(
                    f"{doing}: {self.name} speaks TLS, and was spoken to without.",
                    hint="Write https:// instead of http://, or check the port.",
                ) from None
            raise TransientSinkError(
                f"{doing}: the connection to {self.name} broke ({_reason(error)}).",
                hint=self._or_the_scheme(TransientSinkError.default_hint, url),
            ) from None

    def close(self) -> None:
        """Let go of this process's connections."""
        pool = self._pools.pop(os.getpid(), None)
        if pool is not None:
            pool.clear()

    def _pool(self) -> PoolManager | PoolsByHost:
        pool = self._pools.get(os.getpid())
        return pool if pool is not None else self._pools.setdefault(os.getpid(), self._connect())

    def _tls_error(self, error: exceptions.SSLError, what: str, url: str) -> SinkError:
        cause = error.args[0] if error.args else None
        if isinstance(cause, ssl.SSLCertVerificationError):
            return SinkError(
                f"{what} shows a certificate that does not hold ({cause.verify_message}).",
                hint=self._hints.certificate,
            )
        if getattr(cause, "reason", None) in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL"):
            return SinkError(
                f"{what} does not speak TLS.", hint="Write http:// instead of https://, or check the port."
            )
        if isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError):
            return TransientSinkError(
                f"{what} hung up.", hint=self._or_the_scheme(TransientSinkError.default_hint, url)
            )
        return SinkError(
            f"{what} refuses our TLS ({getattr(cause, 'reason', None) or _name(error)}).",
            hint=self._hints.client_certificate,
        )

    def _or_the_scheme(self, hint: str, url: str) -> str:
        if self._answered or not url or not self._hints.scheme:
            return hint
        other = "https" if url.startswith("http:") else "http"
        return f"{hint} {self._hints.scheme.format(other=other)}"


def json_of(response: BaseHTTPResponse) -> dict[str, Any]:
    """Return the object that the answer's body is; an empty one where it is none, such as a page of HTML."""
    try:
        found = loads(response.data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_alert(error: BaseException) -> bool:
    """Tell whether the server answered in TLS; http.client hands over what it took for the first line of an answer."""
    return isinstance(error, BadStatusLine) and str(error.args[0]).startswith(_TLS_ALERT)


def _name(error: BaseException) -> str:
    return type(error).__name__


def _reason(error: BaseException) -> str:
    """Say it in the operating system's words where they are known; urllib3's own quote the URL."""
    if isinstance(error, exceptions.NameResolutionError):
        return "its name is not known"
    number = next((cause.errno for cause in _inner(error) if isinstance(cause, OSError) and cause.errno), None)
    return os.strerror(number) if number is not None and number > 0 else _name(error)


def _inner(error: BaseException) -> Iterator[BaseException]:
    yield from causes_of(error)
    yield from (inner for inner in error.args if isinstance(inner, BaseException))
