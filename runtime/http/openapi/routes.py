"""The routes that describe the API; document and page are made when they are first asked for, and not on the event loop."""

from __future__ import annotations

import asyncio
import json
from functools import cached_property

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from maskpro_deploy.runtime.generate.model_defaults import ModelDefaults
from maskpro_deploy.runtime.http.openapi.document import build_document
from maskpro_deploy.runtime.http.openapi.page import render_page

# the page has styles of its own, and nothing else
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class Description:
    """The description of one server."""

    def __init__(self, *, keys: bool, defaults: ModelDefaults) -> None:
        self._keys, self._defaults = keys, defaults

    def routes(self) -> list[Route]:
        """`/openapi.json` and `/docs`, which are no part of what they describe."""
        return [
            Route("/openapi.json", self._send_document, include_in_schema=False),
            Route("/docs", self._send_page, include_in_schema=False),
        ]

    async def _send_document(self, request: Request) -> Response:
        return Response(await asyncio.to_thread(lambda: self._document), media_type="application/json")

    async def _send_page(self, request: Request) -> Response:
        page = await asyncio.to_thread(lambda: self._page)
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": _POLICY})

    @cached_property
    def _document(self) -> str:
        return json.dumps(build_document(keys=self._keys, defaults=self._defaults), ensure_ascii=False)

    @cached_property
    def _page(self) -> str:
        return render_page(json.loads(self._document))
