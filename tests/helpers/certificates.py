"""Certificates of an authority that only the tests know, as files."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat, load_pem_private_key

PASSWORD = "of the key"


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody's certificate and key."""

    cert: Path
    key: Path
    encrypted_key: Path  # the same key behind `PASSWORD`
    both: Path  # key and certificate in one file


class Authority:
    """An authority, and what it issues to `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._ca = folder, trustme.CA()
        self.path = folder / "authority.pem"
        self._ca.cert_pem.write_to_path(str(self.path))

    def issue(self, name: str, host: str = "127.0.0.1") -> Identity:
        issued, start = self._ca.issue_cert(host), self._folder / name
        made = Identity(*(start.with_suffix(end) for end in (".crt", ".key", ".locked", ".pem")))
        key = issued.private_key_pem.bytes()
        made.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        made.key.write_bytes(key)
        locked = load_pem_private_key(key, None).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSWORD.encode())
        )
        made.encrypted_key.write_bytes(locked)
        made.both.write_bytes(key + made.cert.read_bytes())
        return made

    def trust(self, client: Identity | None = None) -> ssl.SSLContext:
        """What a client needs that trusts the authority, and shows a certificate."""
        context = ssl.create_default_context(cafile=str(self.path))
        if client is not None:
            context.load_cert_chain(client.cert, client.key)
        return context
