"""Which tracking server a sink's URI means, and what stands for it where it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from stagesink.errors import ConfigError
from stagesink.redaction import without_secrets

_EXAMPLE = "mlflow+http://host:5000"


@dataclass(frozen=True, slots=True)
class Address:
    """One tracking server.

    Parameters
    ----------
    tracking_uri : str
        As mlflow's own client takes it. May hold a password.
    """

    tracking_uri: str = field(repr=False)

    @property
    def shown(self) -> str:
        """The sink's URI without secrets; what opens the same server again, but for a password."""
        if ":" not in self.tracking_uri:  # a bare word such as `databricks`, or a folder
            return "mlflow:"
        return f"mlflow+{without_secrets(self.tracking_uri)}".rstrip("/")

    @property
    def is_http(self) -> bool:
        """Whether the server can be asked over REST. Databricks, sqlite and plug-ins need mlflow's own client."""
        return self.tracking_uri.startswith(("http://", "https://"))

    @property
    def server(self) -> str:
        """Its URL without user, password and the slash at its end; the part before ``/api/...``."""
        scheme, _, rest = self.tracking_uri.partition("://")
        host, slash, path = rest.partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}".rstrip("/")

    @property
    def login(self) -> tuple[str, str] | None:
        """User and password, if the URL holds them, as they stand there."""
        user, separator, _ = self.tracking_uri.partition("://")[2].partition("/")[0].rpartition("@")
        if not separator:
            return None
        name, _, password = user.partition(":")
        return name, password


def address_of(uri: str, environ: Mapping[str, str]) -> Address:
    """Read ``mlflow:`` and ``mlflow+<tracking URI>``.

    Parameters
    ----------
    uri : str
        Of the sink.
    environ : mapping of str to str
        Its ``MLFLOW_TRACKING_URI`` is what ``mlflow:`` means.

    Raises
    ------
    ConfigError
        It names no server.
    """
    scheme, colon, rest = uri.partition(":")
    _, plus, inner = scheme.partition("+")
    if not plus:
        if rest.strip("/"):
            raise ConfigError(
                f"mlflow: takes the server from MLFLOW_TRACKING_URI, not {without_secrets(uri)!r}.",
                hint=f"Write mlflow+ and the tracking URI, for example {_EXAMPLE}.",
            )
        tracking_uri = environ.get("MLFLOW_TRACKING_URI", "").strip()
        if not tracking_uri:
            raise ConfigError(
                "The sink mlflow: needs MLFLOW_TRACKING_URI, which is not set.",
                hint=f"Set it, or name the server: {_EXAMPLE}.",
            )
    else:
        tracking_uri = f"{inner}{colon}{rest}" if rest else inner  # `mlflow+databricks:` is a bare word there
        if rest.partition("/")[0].isdigit():  # `host:5000`, whose host reads like a scheme
            raise ConfigError(
                f"{without_secrets(uri)} names a server without its scheme.",
                hint=f"Write mlflow+http://{without_secrets(tracking_uri)}, or https.",
            )
    address = Address(tracking_uri)
    if address.is_http:
        _check_server(address)
    elif tracking_uri.partition(":")[0].lower() in ("http", "https"):
        raise ConfigError(f"{address.shown} names no server.", hint=f"Use the form {_EXAMPLE}.")
    return address


def _check_server(address: Address) -> None:
    try:
        parts = urlsplit(address.server)
        whole = bool(parts.hostname) and (parts.port is None or parts.port > 0) and not (parts.query or parts.fragment)
    except ValueError:  # its message may quote a piece of the password
        whole = False
    if not whole:
        raise ConfigError(
            f"{address.shown} is no address of a server.",
            hint=f"Use the form {_EXAMPLE}; percent-encode what is special in user and password.",
        ) from None
