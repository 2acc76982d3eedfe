"""The static files of the page: read once, each with a tag of its content, so that a browser asks and gets 304."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

from maskpro_deploy.runtime.http.addresses import ServerAddress

INDEX = "index.html"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def content_policy(others: Sequence[ServerAddress] = ()) -> str:
    """What the page may do: run its own files, talk to its own server and to those named, and never read text as HTML."""
    connect = " ".join(["'self'", *dict.fromkeys(a.origin for a in others)])
    return (
        f"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src {connect}; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file as it is sent."""

    body: bytes
    media_type: str
    tag: str  # a weak one: the file may be sent compressed or as it is

    def answer(self, request: Request, policy: str) -> Response:
        """The file, or 304 if the client has it. Browsers ask each time: a new version of the server shows at once."""
        headers = {
            "ETag": self.tag,
            "Cache-Control": "no-cache",
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        known = {tag.strip().removeprefix("W/") for tag in request.headers.get("If-None-Match", "").split(",")}
        if known & {self.tag.removeprefix("W/"), "*"}:
            return Response(status_code=304, headers=headers)
        return Response(self.body, headers=headers, media_type=self.media_type)


def read_files() -> dict[str, PageFile]:
    """All files of the page, by name."""
    files = {}
    for entry in resources.files(__package__).iterdir():
        media_type = _MEDIA_TYPES.get(f".{entry.name.rpartition('.')[2]}")
        if media_type is not None:
            body = entry.read_bytes()
            files[entry.name] = PageFile(body, media_type, f'W/"{hashlib.sha256(body).hexdigest()[:32]}"')
    return files
