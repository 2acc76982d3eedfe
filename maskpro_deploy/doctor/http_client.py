"""A small HTTP client for looking at a server, of the standard library alone: a doctor needs no extras.

Every request has a connection of its own, so that each says what a new client would see.
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from maskpro_deploy.errors import InputError

_MOST_BYTES = 1 << 22  # of an answer; what is longer is cut


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer that came whole."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    seconds: float  # from before the connection until it was there
    peer: Mapping[str, Any] | None = None  # the certificate of an https server, as `ssl` describes it

    def json(self) -> dict[str, Any]:
        """The object that it holds; an empty one if it holds none."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


class HttpClient:
    """Asks one server; errors are those of sockets, `ssl` and `http.client`.

    Args:
        url: of the server; a `/v1` at its end, as OpenAI's clients want it, is not part of it.
        key: sent as a bearer token.
        ca_certs: authorities to trust instead of the system's.
        timeout_s: for each wait.

    Raises:
        InputError: `url` is not one of http or https, the key cannot be sent, or the authorities cannot be read.
    """

    def __init__(self, url: str, *, key: str | None = None, ca_certs: Path | None = None, timeout_s: float = 30.0) -> None:
        parts = urlsplit(url.rstrip("/").removesuffix("/v1"))
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise InputError(f"{url[:200]!r} is not a URL of http or https.\nExample: http://127.0.0.1:8000")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise InputError(
                "the API key holds characters that no header can carry.\nGive it as it was issued, without line ends."
            )
        self.secure, self.host = parts.scheme == "https", parts.hostname
        self._port, self._path, self._key, self._timeout_s = port, parts.path, key, timeout_s
        try:
            self._trust = ssl.create_default_context(cafile=ca_certs) if self.secure else None
        except OSError as e:  # ssl's own errors are among them
            raise InputError(
                f"--ca-certs {ca_certs} cannot be read: {e.strerror or 'it holds no certificate in PEM form'}."
            ) from e

    def get(self, path: str, *, with_key: bool = True) -> Reply:
        """The answer to a GET."""
        with self._asking("GET", path, None, with_key) as (answer, started, peer):
            return _whole(answer, started, peer)

    def post(self, path: str, fields: Mapping[str, object]) -> Reply:
        """The answer to a POST of a JSON object."""
        with self._asking("POST", path, fields, True) as (answer, started, peer):
            return _whole(answer, started, peer)

    def stream(self, path: str, fields: Mapping[str, object]) -> tuple[Reply, list[float]]:
        """The answer to a POST, and when each line of server-sent events came, in seconds since the start."""
        arrivals: list[float] = []
        with self._asking("POST", path, fields, True) as (answer, started, peer):
            lines: list[bytes] = []
            for line in iter(answer.readline, b""):
                if line.startswith(b"data: {"):
                    arrivals.append(time.perf_counter() - started)
                lines.append(line)
            return _reply(answer, b"".join(lines), started, peer), arrivals

    @contextmanager
    def _asking(
        self, method: str, path: str, fields: Mapping[str, object] | None, with_key: bool
    ) -> Iterator[tuple[http.client.HTTPResponse, float, Mapping[str, Any] | None]]:
        headers = {"Accept": "*/*", "User-Agent": "maskpro-deploy-doctor"}
        if self._key is not None and with_key:
            headers["Authorization"] = f"Bearer {self._key}"
        body = None if fields is None else json.dumps(fields).encode()
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection = (
            http.client.HTTPConnection(self.host, self._port, timeout=self._timeout_s)
            if self._trust is None
            else http.client.HTTPSConnection(self.host, self._port, timeout=self._timeout_s, context=self._trust)
        )
        started = time.perf_counter()
        try:
            connection.request(method, self._path + path, body, headers)
            peer = connection.sock.getpeercert() if isinstance(connection.sock, ssl.SSLSocket) else None
            yield connection.getresponse(), started, peer
        finally:
            connection.close()


def _whole(answer: http.client.HTTPResponse, started: float, peer: Mapping[str, Any] | None) -> Reply:
    return _reply(answer, answer.read(_MOST_BYTES), started, peer)


def _reply(answer: http.client.HTTPResponse, body: bytes, started: float, peer: Mapping[str, Any] | None) -> Reply:
    headers = {name.lower(): value for name, value in answer.getheaders()}
    return Reply(status=answer.status, headers=headers, body=body, seconds=time.perf_counter() - started, peer=peer)
