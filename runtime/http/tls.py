"""TLS: the certificate that the server shows, and whose certificates clients have to show.

The files are read when the settings are made, so that what is wrong with them shows before a model is loaded; `reload` reads
them again, as after a renewal, and new connections get the new certificate.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from maskpro_deploy.errors import ConfigError, InputError

PASSWORD_VARIABLE = "MASKPRO_SSL_KEYFILE_PASSWORD"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """The files of a server's identity, all in PEM form.

    Raises:
        ConfigError: a file is missing that another one needs.
        InputError: a file cannot be read, is of another form, or certificate and key do not belong together.
    """

    certfile: Path  # the certificate, and behind it those that lead to a known authority
    keyfile: Path | None = None  # its private key; None if the certificate's file holds it too
    password: str | None = field(default=None, repr=False)  # of an encrypted key
    ca_certs: Path | None = None  # authorities; clients have to show a certificate of one of them. None asks for none
    context: ssl.SSLContext = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "context", self._make())

    @classmethod
    def of(cls, certfile: Path | None, keyfile: Path | None, password: str | None, ca_certs: Path | None) -> Tls | None:
        """The settings of the command line; None without a certificate."""
        if certfile is not None:
            return cls(certfile=certfile, keyfile=keyfile, password=password, ca_certs=ca_certs)
        for flag, value in (("--ssl-keyfile", keyfile), ("--ssl-ca-certs", ca_certs)):
            if value is not None:
                raise ConfigError(f"{flag} needs the server's certificate: give --ssl-certfile too.")
        return None

    def reload(self) -> None:
        """Read certificate and key again, for new connections; errors as above, and then all stays as it was."""
        self._make()
        self._load_identity(self.context)

    def _make(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # TLS 1.2 and 1.3
        self._load_identity(context)
        if self.ca_certs is not None:
            _check_readable("--ssl-ca-certs", self.ca_certs)
            try:
                context.load_verify_locations(self.ca_certs)
            except ssl.SSLError as e:
                raise InputError(f"--ssl-ca-certs {self.ca_certs} holds no certificate in PEM form.") from e
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _load_identity(self, context: ssl.SSLContext) -> None:
        keyfile = self.keyfile or self.certfile
        flag = "--ssl-keyfile" if self.keyfile is not None else "--ssl-certfile"
        _check_readable("--ssl-certfile", self.certfile)
        _check_readable(flag, keyfile)
        asked: list[bool] = []

        def give_password() -> str:  # without it OpenSSL would ask on the terminal
            asked.append(True)
            return self.password or ""

        try:
            context.load_cert_chain(self.certfile, keyfile, give_password)
        except (ssl.SSLError, ValueError) as e:
            if getattr(e, "reason", None) == "KEY_VALUES_MISMATCH":
                raise InputError(f"--ssl-certfile {self.certfile} and the key in {keyfile} do not belong together.") from e
            if asked and not self.password:
                raise InputError(f"{flag} {keyfile} is encrypted.\nGive its password in {PASSWORD_VARIABLE}.") from e
            if asked:
                raise InputError(f"{flag} {keyfile} cannot be decrypted: {PASSWORD_VARIABLE} holds another password.") from e
            raise InputError(_what_is_missing(self.certfile, keyfile, flag)) from e


def _check_readable(flag: str, path: Path) -> None:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as e:
        raise InputError(f"{flag} {path} cannot be read: {e.strerror}.") from e


def _what_is_missing(certfile: Path, keyfile: Path, key_flag: str) -> str:
    """Which of the two OpenSSL could not use."""
    if b"-----BEGIN CERTIFICATE-----" not in certfile.read_bytes():
        return f"--ssl-certfile {certfile} holds no certificate in PEM form."
    if b"PRIVATE KEY-----" not in keyfile.read_bytes():
        return f"{key_flag} {keyfile} holds no private key in PEM form." + (
            " Give the key's own file with --ssl-keyfile." if keyfile == certfile else ""
        )
    return f"OpenSSL cannot use the certificate in {certfile} with the key in {keyfile}: one of them is damaged or too weak."
