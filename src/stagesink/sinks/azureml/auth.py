"""Bearer tokens: the job's own, or what azure-identity finds; asked for at every call, never used past their end."""

from __future__ import annotations

import base64
import binascii
import json
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

from stagesink.errors import MissingExtra, SinkAuthError, SinkError
from stagesink.sinks._backend_errors import translating

SCOPE = "https://management.azure.com/.default"
VARIABLES = ("MLFLOW_TRACKING_TOKEN", "AZUREML_RUN_TOKEN")
"""Where a job finds its token."""

_MARGIN = 60.0  # seconds: a token that ends within a request is none


class Credential(Protocol):
    """What every credential of azure-identity is."""

    def get_token(self, *scopes: str, **kwargs: Any) -> Any: ...


class Tokens:
    """Gives the token for one call.

    The environment's comes first, read anew each time, since somebody may renew it there; once it has ended, or where
    there is none, ``DefaultAzureCredential`` is asked, which keeps and renews its own.

    Parameters
    ----------
    credential : Credential, optional
        Asked instead of the environment.
    environ : mapping of str to str
    """

    def __init__(self, credential: Credential | None = None, environ: Mapping[str, str] = os.environ) -> None:
        self._given = credential
        self._environ = environ
        self._default: Credential | None = None
        self._kept: tuple[str, float] | None = None
        self._lock = threading.Lock()

    def headers(self) -> dict[str, str]:
        """Return the ``Authorization`` header of one call.

        Raises
        ------
        SinkAuthError
            There is no token, or it has ended and nothing can renew it.
        MissingExtra
            There is no token, and azure-identity is not installed.
        """
        return {"Authorization": f"Bearer {self._token()}"}

    def secrets(self) -> frozenset[str]:
        """Collect the environment's tokens, which must not be shown."""
        return frozenset(filter(None, (self._environ.get(name, "") for name in VARIABLES)))

    def _token(self) -> str:
        if self._given is not None:
            return self._ask(self._given)
        ended = None
        for name in VARIABLES:
            if token := self._environ.get(name, ""):
                until = expiry(token)
                if until is None or until > time.time() + _MARGIN:
                    return token
                ended = ended or name
        try:
            return self._ask(self._identity())
        except (SinkAuthError, MissingExtra) as error:
            if ended is None:
                raise
            raise SinkAuthError(
                f"The token in {ended} has ended, and there is no other: {error.message}",
                hint="Run it inside the job, or log in with `az login` (and install 'stagesink[azureml]').",
            ) from None

    def _ask(self, credential: Credential) -> str:
        # One at a time: asking may start a process (`az`), and the others are served by what it brings.
        with self._lock:
            if self._kept is None or self._kept[1] <= time.time() + _MARGIN:
                self._kept = _asked(credential)
            return self._kept[0]

    def _identity(self) -> Credential:
        if self._default is None:
            try:
                from azure.identity import DefaultAzureCredential
            except ImportError as error:
                raise MissingExtra(
                    "There is no token for Azure ML, and azure-identity is not installed.",
                    hint="pip install 'stagesink[azureml]', or set MLFLOW_TRACKING_TOKEN.",
                ) from error
            self._default = DefaultAzureCredential()
        return self._default


def _asked(credential: Credential) -> tuple[str, float]:
    try:
        with translating("Azure gave no token"):
            token = credential.get_token(SCOPE)
    except SinkAuthError as error:
        raise SinkAuthError(
            error.message,
            hint="Log in with `az login`, or set AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET.",
        ) from None
    return token.token, float(token.expires_on)


def expiry(token: str) -> float | None:
    """Return when a JWT ends, in seconds since 1970 (its ``exp``, RFC 7519); None where it does not say."""
    pieces = token.split(".")
    if len(pieces) != 3:
        return None
    with suppress(ValueError, binascii.Error):
        claims = json.loads(base64.urlsafe_b64decode(pieces[1] + "=" * (-len(pieces[1]) % 4)))
        ends = claims.get("exp") if isinstance(claims, dict) else None
        return float(ends) if isinstance(ends, int | float) else None
    return None


def refused(doing: str, name: str, reason: str, date: str | None) -> SinkError:
    """Say why a token was refused, and look at the clock: what is signed for a time holds at that time alone.

    Parameters
    ----------
    doing, name : str
        What could not be done, and by which server.
    reason : str
        Its status and code.
    date : str or None
        The answer's ``Date`` header.
    """
    skew = _skew(date)
    if abs(skew) > 300:
        way = "ahead" if skew > 0 else "behind"
        return SinkAuthError(
            f"{doing}: {name} answered {reason}; this machine's clock is {abs(skew) / 60:.0f} minutes {way}.",
            hint="Set the clock: tokens and signed URLs hold for a time.",
        )
    return SinkAuthError(
        f"{doing}: {name} answered {reason}.",
        hint="Check that the login is of the workspace's tenant and may write there; "
        "`az login` renews it, and MLFLOW_TRACKING_TOKEN goes before it.",
    )


def _skew(date: str | None) -> float:
    from email.utils import parsedate_to_datetime

    if not date:
        return 0.0
    try:
        return time.time() - parsedate_to_datetime(date).timestamp()
    except ValueError:
        return 0.0
