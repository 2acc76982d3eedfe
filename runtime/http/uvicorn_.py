"""uvicorn as this server wants it: quiet, with limits on connections, and stopped by whoever runs it."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from maskpro_deploy.runtime.http.api.errors import ApiError
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.connections import protocol_with_deadline

PROBES = ("/live", "/health", "/metrics")  # answered however many connections there are
_CLOSE_TIMEOUT_S = 5  # for connections to close once all answers are out


async def _refuse_connection(scope: Scope, receive: Receive, send: Send) -> None:
    error = ApiError(
        503, "the server holds all the connections it may; try again later.", "overloaded_error", "server_overloaded"
    )
    response = error.response()
    response.headers["Connection"] = "close"
    await response(scope, receive, send)


def make_uvicorn(app: ASGIApp, config: ServeConfig) -> uvicorn.Server:
    """A uvicorn server of an app, for `serve(sockets=[...])` on the running event loop.

    It ends when its `should_exit` is set; it handles no signals. Where there are more connections than the settings allow, every
    request but those of probes gets 503.
    """

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        crowded = len(server.server_state.connections) > config.max_connections
        await (_refuse_connection if crowded and scope["path"] not in PROBES else app)(scope, receive, send)

    quiet: dict[str, Any] = {"log_config": None, "access_log": False, "lifespan": "off", "ws": "none", "server_header": False}
    protocol = protocol_with_deadline(config.header_timeout_s)
    settings = uvicorn.Config(limited, http=protocol, timeout_graceful_shutdown=_CLOSE_TIMEOUT_S, **quiet)
    settings.load()
    if config.tls is not None:
        settings.ssl = config.tls.context
        # a client has as long for the handshake as for its headers; uvicorn does not pass the time on
        loop = asyncio.get_running_loop()
        listen_in_time = partial(loop.create_server, ssl_handshake_timeout=config.header_timeout_s)
        loop.create_server = listen_in_time  # type: ignore[method-assign]
    server = uvicorn.Server(settings)
    # whoever runs it decides when to stop, not uvicorn's own handling of signals
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    return server
