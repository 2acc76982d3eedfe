"""The HTTP API: OpenAI's routes over one generator.

    GET  /v1/models  /v1/models/{id}           what is served
    POST /v1/completions  /v1/chat/completions
    POST /tokenize  /detokenize
    GET  /health     200 if requests are taken, 503 while loading, shutting down or broken (readiness)
    GET  /live       200 unless broken (liveness)
    GET  /version  /metrics
    GET  /  /ui/...                            the chat page, unless it is turned off

`create_app` makes a starlette app; `lifecycle.py` runs it. A client that goes away ends its own generation, whether it streams or
not. The gate in front (request ids, the API key) is plain ASGI on purpose: starlette's BaseHTTPMiddleware hides the client's
disconnect from everything behind it.
"""

from __future__ import annotations

import re
import time
import uuid

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maskpro_deploy.runtime.generate.generator import TextGenerator
from maskpro_deploy.runtime.http.api.errors import HANDLED, ApiError, answer_error
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.keys import ApiKeys
from maskpro_deploy.runtime.http.page.routes import page_routes
from maskpro_deploy.runtime.http.request_log import FACTS, RequestLog
from maskpro_deploy.runtime.http.routes import GeneratorSlot, Routes

REQUEST_ID = "X-Request-Id"
_GUARDED = ("/v1/", "/tokenize", "/detokenize")
_LOGGED_PATH = 200  # characters
_PLAIN_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)


class Gate:
    """Gives every answer a request id (the client's own, if it is a plain one), guards the routes that use the model, and logs.

    The guarded routes ask for a key; where there is none, everybody is served.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys, log: RequestLog | None = None) -> None:
        self._app, self._keys, self._log = app, keys, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        request_id = given if _PLAIN_ID.fullmatch(given) else uuid.uuid4().hex
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
                status = message["status"]
            await send(message)

        started, owner = time.perf_counter(), self._find_owner(headers)
        try:
            if not self._asks_for_key(scope) or owner is not None:
                await self._app(scope, receive, send_with_id)
                return
            error = ApiError(401, "the API key is missing or wrong.", "authentication_error", "invalid_api_key")
            await error.response()(scope, receive, send_with_id)
        finally:
            if self._log is not None:
                facts = {
                    "id": request_id, "client": (scope.get("client") or [None])[0], "key": owner, "method": scope["method"],
                    "path": scope["path"][:_LOGGED_PATH], "status": status, "seconds": round(time.perf_counter() - started, 4),
                }  # fmt: skip
                describe = scope.get(FACTS)
                self._log.write(scope["path"], {**facts, **(describe() if describe is not None else {})})

    def _asks_for_key(self, scope: Scope) -> bool:
        return bool(self._keys) and scope["path"].startswith(_GUARDED) and scope["method"] != "OPTIONS"

    def _find_owner(self, headers: Headers) -> str | None:
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        return self._keys.find_owner(token) if scheme.lower() == "bearer" else None


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
        *page_routes(slot, config),
    ]
    log = RequestLog(config.request_log) if config.request_log is not None else None
    middleware = [Middleware(Gate, keys=ApiKeys(config.all_keys), log=log)]
    if config.allowed_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(config.allowed_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[REQUEST_ID, "Retry-After"],
        )
        middleware.insert(0, cors)
    app = Starlette(routes=table, middleware=middleware, exception_handlers=dict.fromkeys(HANDLED, answer_error))
    app.state.request_log = log  # to be closed by whoever runs the app
    app.router.redirect_slashes = False  # a redirect would repeat whatever host a client names
    return app
