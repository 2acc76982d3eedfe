"""The gate in front of the app: request ids and the API key.

Plain ASGI on purpose: starlette's BaseHTTPMiddleware hides the client's disconnect from everything behind it.
"""

from __future__ import annotations

import hmac
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maskpro_deploy.runtime.http.api_errors import ApiError

REQUEST_ID = "X-Request-Id"
_GUARDED = ("/v1/", "/tokenize", "/detokenize")
_PLAIN_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)


class Gate:
    """Gives every answer a request id (the client's own, if it is a plain one) and asks for the key where there is one.

    Args:
        app: what lies behind.
        api_key: asked for on the routes that use the model; None serves everybody.
    """

    def __init__(self, app: ASGIApp, api_key: str | None) -> None:
        self._app = app
        self._key = api_key.encode() if api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        request_id = given if _PLAIN_ID.fullmatch(given) else uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        if self._allowed(scope, headers):
            await self._app(scope, receive, send_with_id)
            return
        error = ApiError(401, "the API key is missing or wrong.", "authentication_error", "invalid_api_key")
        await error.response()(scope, receive, send_with_id)

    def _allowed(self, scope: Scope, headers: Headers) -> bool:
        if self._key is None or not scope["path"].startswith(_GUARDED) or scope["method"] == "OPTIONS":
            return True
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        # the comparison takes the same time wherever the first difference is
        return hmac.compare_digest(token.strip().encode(), self._key) and scheme.lower() == "bearer"
