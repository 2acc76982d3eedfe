"""The HTTP API: OpenAI's routes over one generator.

    GET  /v1/models  /v1/models/{id}           what is served
    POST /v1/completions  /v1/chat/completions  /v1/responses
    POST /tokenize  /detokenize
    GET  /health     200 if requests are taken, 503 while loading, shutting down or broken (readiness)
    GET  /live       200 unless broken (liveness)
    GET  /version  /metrics
    GET  /openapi.json  /docs                  the description of all this, see `openapi`
    GET  /  /ui/...                            the chat page, unless it is turned off

`create_app` makes a starlette app; `lifecycle.py` runs it. A client that goes away ends its own generation, whether it streams or
not. The gate in front (request ids, the API key) is plain ASGI on purpose: starlette's BaseHTTPMiddleware hides the client's
disconnect from everything behind it.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maskpro_deploy.runtime.generate.generator import TextGenerator
from maskpro_deploy.runtime.generate.model_defaults import ModelDefaults
from maskpro_deploy.runtime.http.api.errors import HANDLED, ApiError, answer_error
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.keys import ApiKeys
from maskpro_deploy.runtime.http.memory import LARGE_REQUEST, MemoryReturn
from maskpro_deploy.runtime.http.openapi.routes import Description
from maskpro_deploy.runtime.http.page.routes import page_routes
from maskpro_deploy.runtime.http.request_log import ERROR, FACTS, RequestLog
from maskpro_deploy.runtime.http.routes import GeneratorSlot, Routes
from maskpro_deploy.runtime.http.traces import Tracer

REQUEST_ID = "X-Request-Id"
_GUARDED = ("/v1/", "/tokenize", "/detokenize")
_MODEL = "/v1/models/{name:path}"
_LOGGED_PATH = 200  # characters
_PLAIN_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)

Count = Callable[[str, str, int | None], None]  # method, path, status


class Gate:
    """Gives every answer a request id (the client's own, if it is a plain one), guards the routes that use the model, and logs.

    The guarded routes ask for a key; where there is none, everybody is served.
    """

    def __init__(
        self, app: ASGIApp, keys: ApiKeys, count: Count, log: RequestLog | None = None, tracer: Tracer | None = None
    ) -> None:
        self._app, self._keys, self._count, self._log, self._tracer = app, keys, count, log, tracer
        self._memory = MemoryReturn()

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

        started, started_ns, owner = time.perf_counter(), time.time_ns(), self._find_owner(headers)
        try:
            if not self._asks_for_key(scope) or owner is not None:
                await self._app(scope, receive, send_with_id)
                return
            error = ApiError(401, "the API key is missing or wrong.", "authentication_error", "invalid_api_key")
            scope[ERROR] = error.code
            await error.response()(scope, receive, send_with_id)
        finally:
            if LARGE_REQUEST in scope:
                self._memory.plan()
            self._count(scope["method"], scope["path"], status)
            if self._log is not None or self._tracer is not None:
                facts: dict[str, Any] = {
                    "id": request_id, "client": (scope.get("client") or [None])[0], "key": owner, "method": scope["method"],
                    "path": scope["path"][:_LOGGED_PATH], "status": status, "seconds": round(time.perf_counter() - started, 4),
                }  # fmt: skip
                self._tell(scope, headers, facts, started_ns)

    def _tell(self, scope: Scope, headers: Headers, facts: dict[str, Any], started_ns: int) -> None:
        """The span and the line of a request that is over."""
        if (error := scope.get(ERROR)) is not None:
            facts["error"] = error
        if (describe := scope.get(FACTS)) is not None:
            facts |= describe()
        if self._tracer is not None:
            ended_ns = started_ns + int(facts["seconds"] * 1e9)  # the clock of the day may be set meanwhile
            if (trace := self._tracer.record(headers, facts, started_ns, ended_ns)) is not None:
                facts["trace"] = trace
        if self._log is not None:
            self._log.write(facts)

    def _asks_for_key(self, scope: Scope) -> bool:
        return bool(self._keys) and scope["path"].startswith(_GUARDED) and scope["method"] != "OPTIONS"

    def _find_owner(self, headers: Headers) -> str | None:
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        return self._keys.find_owner(token) if scheme.lower() == "bearer" else None


def create_app(
    generator: TextGenerator | GeneratorSlot, config: ServeConfig | None = None, defaults: ModelDefaults | None = None
) -> Starlette:
    """The app over a generator, or the slot that it will fill (host and port are the business of whoever runs the app).

    `defaults` are the model's own, where no slot has them: see `ServeConfig.read_defaults`.
    """
    config = config or ServeConfig()
    slot = generator
    if not isinstance(slot, GeneratorSlot):
        slot = GeneratorSlot(config.served_model_name or slot.shape.name, slot, defaults=defaults)
    routes = Routes(slot, config)
    table = [
        Route("/v1/models", routes.models),
        Route(_MODEL, routes.model),
        Route("/v1/completions", routes.completions, methods=["POST"]),
        Route("/v1/chat/completions", routes.chat, methods=["POST"]),
        Route("/v1/responses", routes.responses, methods=["POST"]),
        Route("/tokenize", routes.tokenize, methods=["POST"]),
        Route("/detokenize", routes.detokenize, methods=["POST"]),
        Route("/health", routes.health),
        Route("/live", routes.live),
        Route("/version", routes.version),
        Route("/metrics", routes.metrics),
        *page_routes(slot, config),
    ]
    if config.docs:
        table += Description(keys=bool(config.all_keys), defaults=slot.defaults).routes()
    log = RequestLog(config.request_log) if config.request_log is not None else None
    tracer = Tracer(config.otlp_traces_endpoint, slot.model_name) if config.otlp_traces_endpoint is not None else None
    paths = frozenset(route.path for route in table)

    def count(method: str, path: str, status: int | None) -> None:
        known = path if path in paths else _MODEL if path.startswith("/v1/models/") else "other"
        slot.metrics.count_answer(method, known, status)

    middleware = [Middleware(Gate, keys=ApiKeys(config.all_keys), count=count, log=log, tracer=tracer)]
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
    app.state.request_log, app.state.tracer = log, tracer  # to be closed by whoever runs the app
    app.router.redirect_slashes = False  # a redirect would repeat whatever host a client names
    return app
