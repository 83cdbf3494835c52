"""Microsoft's sign-in as far as a service principal needs it, so that azure-identity can be tested with the rest."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from stagesink.testing.azureml.messages import Request, Response, answer
from stagesink.testing.azureml.tokens import Tokens

HOST = "login.microsoftonline.com"

_CALL = re.compile(r"/(?P<tenant>[^/]+)/(?P<call>v2\.0/\.well-known/openid-configuration|oauth2/v2\.0/token)")


@dataclass(frozen=True)
class Identity:
    """Signs one service principal in.

    Attributes
    ----------
    tokens : Tokens
    workspace : str
        What its tokens give access to.
    client_id, client_secret : str
    """

    tokens: Tokens
    workspace: str
    client_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    client_secret: str = field(default_factory=lambda: uuid.uuid4().hex, repr=False)

    def answer(self, request: Request, seconds: float) -> Response | None:
        """Answer a request, or ``None`` where it is none for the sign-in.

        Parameters
        ----------
        request : Request
        seconds : float
            How long a token is valid.
        """
        if request.path == "/common/discovery/instance":
            clouds = [{"preferred_network": HOST, "preferred_cache": HOST, "aliases": [HOST]}]
            discovery = _url("common", "v2.0/.well-known/openid-configuration")
            return answer({"tenant_discovery_endpoint": discovery, "metadata": clouds})
        found = _CALL.fullmatch(request.path)
        if not found:
            return None
        if found["tenant"] != self.tokens.tenant:
            return _refusal(400, "invalid_tenant", 90002, "The tenant was not found.")
        if found["call"].startswith("v2.0"):
            return self._configuration()
        given = dict(parse_qsl(request.body.decode()))
        if given.get("client_id") != self.client_id:
            return _refusal(400, "unauthorized_client", 700016, "The application was not found in the directory.")
        if given.get("client_secret") != self.client_secret:
            return _refusal(401, "invalid_client", 7000215, "Invalid client secret provided.")
        token = self.tokens.make(self.workspace, expires_in=seconds)
        return answer({"token_type": "Bearer", "expires_in": int(seconds), "access_token": token})

    def _configuration(self) -> Response:
        tenant = self.tokens.tenant
        return answer(
            {
                "issuer": _url(tenant, "v2.0"),
                "authorization_endpoint": _url(tenant, "oauth2/v2.0/authorize"),
                "token_endpoint": _url(tenant, "oauth2/v2.0/token"),
            }
        )


def _url(tenant: str, call: str) -> str:
    return f"https://{HOST}/{tenant}/{call}"


def _refusal(status: int, error: str, code: int, message: str) -> Response:
    description = f"AADSTS{code}: {message}"
    return answer({"error": error, "error_description": description, "error_codes": [code]}, status)
