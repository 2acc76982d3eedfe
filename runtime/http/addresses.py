"""Addresses of other servers, as a user types them and as headers and pages may carry them."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LONGEST = 300  # characters
_NAME = r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?"
_ADDRESS = re.compile(
    rf"(?P<origin>https?://{_NAME}(?::\d{{1,5}})?)(?P<path>(?:/[\w.~-]+)*?)(?:/v1)?/*", re.ASCII | re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a server is: `http://name:8000`, and a path if it is behind one, without `/v1`."""

    origin: str
    path: str = ""

    def __str__(self) -> str:
        return self.origin + self.path

    @classmethod
    def read(cls, text: str) -> ServerAddress | None:
        """The address that a text is; None if it is none.

        Nothing but letters, digits, dots, hyphens, underscores, tildes, slashes and a port gets through: a header can carry it. A
        user's name, a query and a bare IPv6 address (which a Content-Security-Policy cannot name) are refused.
        """
        match = _ADDRESS.fullmatch(text.strip()) if len(text) <= _LONGEST else None
        return cls(match["origin"].lower(), match["path"]) if match else None
