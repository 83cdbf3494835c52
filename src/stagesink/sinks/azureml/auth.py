"""Bearer tokens: the job's own, or what azure-identity finds; asked for at every call, never used past their end."""

from __future__ import annotations

import base64
import binascii
import copy
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Protocol

from stagesink.errors import MissingExtra, SinkAuthError, SinkError
from stagesink.sinks._backend_errors import translating

SCOPE = "https://management.azure.com/.default"
VARIABLES = ("MLFLOW_TRACKING_TOKEN", "AZUREML_RUN_TOKEN")
"""Where a job finds its token."""

_MARGIN = 60.0  # seconds before its end: another is asked for, since a request must arrive before
_EARLY = 900.0  # seconds before its end: a job's token is renewed, which needs it to hold still
_AGAIN = 30.0  # seconds: what was refused is not asked for again sooner

Renew = Callable[[str], "str | None"]
"""Takes a job's token for a newer one; None where there is none to be had."""
_REFUSED = (
    "Check that the login is of the workspace's tenant and may write there; "
    "`az login` renews it, and MLFLOW_TRACKING_TOKEN goes before it."
)


class Credential(Protocol):
    """What every credential of azure-identity is."""

    def get_token(self, *scopes: str, **kwargs: Any) -> Any: ...


class Tokens:
    """Gives the token for one call.

    The environment's comes first, read anew each time, since somebody may renew it there; shortly before its end the
    service is asked for a newer one. Once it has ended, or where there is none, ``DefaultAzureCredential`` is asked,
    which keeps and renews its own.

    Parameters
    ----------
    credential : Credential, optional
        Asked instead of the environment.
    environ : mapping of str to str
    renew : callable, optional
        Asks the service.
    """

    def __init__(
        self,
        credential: Credential | None = None,
        environ: Mapping[str, str] = os.environ,
        renew: Renew | None = None,
    ) -> None:
        self._given = credential
        self._environ = environ
        self._renew = renew
        self._newer: dict[str, tuple[str, float]] = {}  # by the environment's token
        self._next_try = 0.0
        self._refused: set[str] = set()  # of the environment's
        self._next_anew = 0.0
        self._default: dict[int, Credential] = {}
        self._kept: tuple[str, float] | None = None
        self._failed: tuple[SinkAuthError, float] | None = None
        self._locks: dict[int, threading.Lock] = {}

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

    def other_than(self, headers: Mapping[str, str]) -> bool:
        """Tell whether there is another token than the one that was refused, though it had not ended by its own word.

        It may be revoked, or the service's clock be another. Somebody may have put a new one into the environment, or
        its second variable has another; a credential is asked anew, which helps where it does not keep what it got
        before: those of azure-identity do, for minutes. From now on the other one is given.
        """
        refused = headers.get("Authorization", "").removeprefix("Bearer ")
        try:
            if self._given is None and self._has_other(refused):
                self._refused.add(refused)
            elif self._kept is not None:
                self._ask_anew(self._given or self._identity(), refused)
            return self._token() != refused
        except (SinkError, MissingExtra):
            return False

    def secrets(self) -> frozenset[str]:
        """Collect the environment's tokens, which must not be shown."""
        return frozenset(filter(None, (self._environ.get(name, "") for name in VARIABLES)))

    def _token(self) -> str:
        if self._given is not None:
            return self._ask(self._given)
        ended, last = None, None
        for name, token in self._of_environment():
            until = expiry(token)
            if until is None or until > time.time() + _MARGIN:
                return token
            ended = ended or name
            last = last or (token if until > time.time() else None)
        try:
            return self._ask(self._identity())
        except (SinkAuthError, MissingExtra) as error:
            if last is not None:
                return last
            if ended is None:
                raise
            raise SinkAuthError(
                f"The token in {ended} has ended by this machine's clock, and there is no other: {error.message}",
                hint="Run it inside the job, or log in with `az login` (and install 'stagesink[azureml]').",
            ) from None

    def _of_environment(self) -> Iterator[tuple[str, str]]:
        """Yield its tokens with their variables, one at a time: the second is not looked at where the first will do.

        Those that were refused come only where there are no others.
        """
        refused = []
        for name in VARIABLES:
            if token := self._of_job(name):
                if token in self._refused:
                    refused.append((name, token))
                else:
                    yield name, token
        if len(refused) == sum(bool(self._environ.get(name, "").strip()) for name in VARIABLES):
            yield from refused

    def _of_job(self, name: str) -> str:
        token = self._environ.get(name, "").strip()
        if not token.isascii() or not token.isprintable() or " " in token:
            raise SinkAuthError(
                f"What {name} holds is no token: it has characters that none has.",
                hint=f"Set {name} to the token alone, or take it away.",
            )
        until = expiry(token)
        if self._renew is None or until is None or until > time.time() + _EARLY:
            return token
        with self._lock:
            held, ends = self._newer.get(token, (token, until))
            left = ends - time.time()
            if 0 < left <= _EARLY and self._next_try <= time.monotonic():
                held = self._renew(held) or held
                ends = expiry(held) or ends
                self._newer = {token: (held, ends)}
                self._next_try = time.monotonic() + min(_AGAIN, (ends - time.time()) / 2)
        return held

    def _has_other(self, refused: str) -> bool:
        tokens = (token for _, token in self._of_environment() if token not in {refused, *self._refused})
        return any((ends := expiry(token)) is None or ends > time.time() for token in tokens)

    def _ask(self, credential: Credential) -> str:
        # One at a time: asking may start a process (`az`), and the others are served by what it brings, an error too.
        with self._lock:
            if self._kept is None or self._kept[1] <= time.time() + _MARGIN:
                try:
                    self._kept = self._new(credential)
                except SinkError:
                    if self._kept is None or self._kept[1] <= time.time():
                        raise
                    # What is kept serves until its end.
            return self._kept[0]

    def _ask_anew(self, credential: Credential, refused: str) -> None:
        with self._lock:  # of many threads that were refused with one token, one asks
            if self._kept is not None and self._kept[0] == refused and self._next_anew <= time.monotonic():
                self._next_anew = time.monotonic() + _AGAIN
                self._kept = self._new(credential)

    def _new(self, credential: Credential) -> tuple[str, float]:
        if self._failed is not None and self._failed[1] > time.monotonic():
            raise copy.copy(self._failed[0])
        try:
            return _asked(credential)
        except SinkAuthError as error:
            self._failed = error, time.monotonic() + _AGAIN
            raise

    @property
    def _lock(self) -> threading.Lock:
        # By process id: a fork could copy it taken.
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def _identity(self) -> Credential:
        identity = self._default.get(os.getpid())  # its connections are not to be shared with a fork either
        if identity is None:
            try:
                from azure.identity import DefaultAzureCredential
            except ImportError as error:
                raise MissingExtra(
                    "There is no token for Azure ML, and azure-identity is not installed.",
                    hint="pip install 'stagesink[azureml]', or set MLFLOW_TRACKING_TOKEN.",
                ) from error
            identity = self._default.setdefault(os.getpid(), DefaultAzureCredential())
        return identity


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


def refused(doing: str, name: str, reason: str, date: str | None, hint: str = _REFUSED) -> SinkError:
    """Say why a token was refused, and look at the clock: what is signed for a time holds at that time alone.

    Parameters
    ----------
    doing, name : str
        What could not be done, and by which server.
    reason : str
        Its status and code.
    date : str or None
        The answer's ``Date`` header.
    hint : str, optional
        What to do where the clock is right.
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
        hint=hint,
    )


def _skew(date: str | None) -> float:
    from email.utils import parsedate_to_datetime

    if not date:
        return 0.0
    try:
        return time.time() - parsedate_to_datetime(date).timestamp()
    except ValueError:
        return 0.0
