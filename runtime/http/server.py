"""The HTTP API: OpenAI's routes over one generator.

    GET  /v1/models  /v1/models/{id}           what is served
    POST /v1/completions  /v1/chat/completions
    POST /tokenize  /detokenize
    GET  /health     200 if requests are taken, 503 while loading, shutting down or broken (readiness)
    GET  /live       200 unless broken (liveness)
    GET  /version  /metrics

`create_app` makes a starlette app; `lifecycle.py` runs it. A client that goes away ends its own generation, whether it streams or
not. The gate in front (request ids, the API key) is plain ASGI on purpose: starlette's BaseHTTPMiddleware hides the client's
disconnect from everything behind it.
"""

from __future__ import annotations

import hmac
import re
import uuid

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maskpro_deploy.runtime.generate.generator import TextGenerator
from maskpro_deploy.runtime.http.api_errors import HANDLED, ApiError, answer_error
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.routes import GeneratorSlot, Routes

REQUEST_ID = "X-Request-Id"
_GUARDED = ("/v1/", "/tokenize", "/detokenize")
_PLAIN_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)


class Gate:
    """Gives every answer a request id (the client's own, if it is a plain one), and guards the routes that use the model.

    They ask for the API key; where it is None, everybody is served.
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

        if self._is_allowed(scope, headers):
            await self._app(scope, receive, send_with_id)
            return
        error = ApiError(401, "the API key is missing or wrong.", "authentication_error", "invalid_api_key")
        await error.response()(scope, receive, send_with_id)

    def _is_allowed(self, scope: Scope, headers: Headers) -> bool:
        if self._key is None or not scope["path"].startswith(_GUARDED) or scope["method"] == "OPTIONS":
            return True
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        # the comparison takes the same time wherever the first difference is
        return hmac.compare_digest(token.strip().encode(), self._key) and scheme.lower() == "bearer"


def create_app(generator: TextGenerator | GeneratorSlot, config: ServeConfig | None = None) -> Starlette:
    """The app over a generator, or the slot that it will fill (host and port are the business of whoever runs the app)."""
    config = config or ServeConfig()
    slot = generator
    if not isinstance(slot, GeneratorSlot):
        slot = GeneratorSlot(config.served_model_name or slot.shape.name, slot)
    routes = Routes(slot, config)
    table = [
        Route("/v1/models", routes.models),
        Route("/v1/models/{name:path}", routes.model),
        Route("/v1/completions", routes.completions, methods=["POST"]),
        Route("/v1/chat/completions", routes.chat, methods=["POST"]),
        Route("/tokenize", routes.tokenize, methods=["POST"]),
        Route("/detokenize", routes.detokenize, methods=["POST"]),
        Route("/health", routes.health),
        Route("/live", routes.live),
        Route("/version", routes.version),
        Route("/metrics", routes.metrics),
    ]
    middleware = [Middleware(Gate, api_key=config.api_key)]
    if config.allowed_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(config.allowed_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[REQUEST_ID],
        )
        middleware.insert(0, cors)
    app = Starlette(routes=table, middleware=middleware, exception_handlers=dict.fromkeys(HANDLED, answer_error))
    app.router.redirect_slashes = False  # a redirect would repeat whatever host a client names
    return app
