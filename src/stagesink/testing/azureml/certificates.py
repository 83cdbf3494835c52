"""A throw-away certificate authority, for https."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificates:
    """Files of a certificate that a throw-away authority has signed.

    Attributes
    ----------
    authority : Path
        What clients trust: ``REQUESTS_CA_BUNDLE``, ``SSL_CERT_FILE``.
    chain, key : Path
        What servers show.
    """

    authority: Path
    chain: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.chain, self.key)
        return context

    def client_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority))


def make_certificates(folder: Path, *names: str) -> Certificates:
    """Make an authority and a certificate for names and addresses.

    Raises
    ------
    RuntimeError
        The package trustme is not installed.
    """
    try:
        import trustme
    except ImportError:
        raise RuntimeError("https needs the package trustme: pip install trustme, or use plain=True.") from None
    authority = trustme.CA()
    certificate = authority.issue_cert(*names)
    made = Certificates(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    authority.cert_pem.write_to_path(str(made.authority))
    certificate.private_key_pem.write_to_path(str(made.key))
    for number, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(str(made.chain), append=number > 0)
    return made
