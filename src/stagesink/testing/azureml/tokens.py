"""The bearer tokens of the fake service: JWTs that it signs itself, and checks as the real one does."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from secrets import token_bytes

from stagesink.testing.azureml.faults import Faults


class InvalidToken(Exception):
    """A token that the service does not take. The message says why and holds nothing of it."""


@dataclass(frozen=True)
class Tokens:
    """Makes tokens for one tenant, and reads them.

    Attributes
    ----------
    tenant : str
    key : bytes
        What they are signed with.
    faults : Faults
        By its clock they are checked.
    revoked : set of str
        Tokens that are refused before their end.
    """

    tenant: str
    key: bytes = field(default_factory=lambda: token_bytes(32), repr=False)
    faults: Faults = field(default_factory=Faults)
    revoked: set[str] = field(default_factory=set, repr=False)

    def make(
        self, workspace: str, *, expires_in: float = 3600.0, valid_in: float = -5.0, tenant: str | None = None
    ) -> str:
        """Return a token for a workspace (its ARM path).

        Parameters
        ----------
        workspace : str
        expires_in, valid_in : float
            Seconds from now.
        tenant : str, optional
            Default: that of the service.
        """
        now = time.time()
        claims = {
            "aud": "https://management.azure.com/",
            "iss": f"https://sts.windows.net/{tenant or self.tenant}/",
            "tid": tenant or self.tenant,
            "iat": int(now),
            "nbf": now + valid_in,
            "exp": now + expires_in,
            "workspace": workspace,
        }
        signed = f"{_encoded(_json({'alg': 'HS256', 'typ': 'JWT'}))}.{_encoded(_json(claims))}"
        return f"{signed}.{_encoded(self._signature(signed))}"

    def check(self, token: str) -> str:
        """Return the workspace that a token is for.

        Raises
        ------
        InvalidToken
        """
        signed, _, signature = token.rpartition(".")
        try:
            given, claims = _decoded(signature), json.loads(_decoded(signed.partition(".")[2]))
        except ValueError:
            raise InvalidToken("The token is no JWT.") from None
        if not hmac.compare_digest(given, self._signature(signed)):
            raise InvalidToken("The token's signature is not valid.")
        if token in self.revoked:
            raise InvalidToken("The token was revoked.")
        now = time.time() + self.faults.clock_ahead
        if now >= claims["exp"]:
            raise InvalidToken("The token has expired.")
        if now < claims["nbf"]:
            raise InvalidToken("The token is not valid yet.")
        if claims["tid"] != self.tenant:
            raise InvalidToken("The token was issued by another tenant.")
        return str(claims["workspace"])

    def _signature(self, signed: str) -> bytes:
        return hmac.digest(self.key, signed.encode(), hashlib.sha256)


def _json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
