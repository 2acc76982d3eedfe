"""The HTTP API: OpenAI's routes over one generator.

    GET  /v1/models  /v1/models/{id}           what is served
    POST /v1/completions  /v1/chat/completions
    POST /tokenize  /detokenize
    GET  /health     200 if requests are taken, 503 while loading, shutting down or broken (readiness)
    GET  /live       200 unless broken (liveness)
    GET  /version  /metrics

`create_app` makes a starlette app; `lifecycle.py` runs it. A client that goes away ends its own generation, whether it streams or
not.
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from maskpro_deploy.runtime.generate.generator import TextGenerator
from maskpro_deploy.runtime.http.api_errors import HANDLED, answer_error
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.middleware import REQUEST_ID, Gate
from maskpro_deploy.runtime.http.routes import Routes
from maskpro_deploy.runtime.http.slot import GeneratorSlot


def create_app(generator: TextGenerator | GeneratorSlot, config: ServeConfig | None = None) -> Starlette:
    """The app.

    Args:
        generator: generates; or the slot that it will fill.
        config: key, names and limits (host and port are the business of whoever runs the app).
    """
    config = config or ServeConfig()
    if isinstance(generator, GeneratorSlot):
        slot = generator
    else:
        slot = GeneratorSlot(config.served_model_name or generator.shape.name, generator)
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
    return Starlette(routes=table, middleware=middleware, exception_handlers=dict.fromkeys(HANDLED, answer_error))
