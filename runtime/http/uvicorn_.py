"""uvicorn as this server wants it: quiet, with limits on connections, and stopped by whoever runs it."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import Any

import uvicorn

from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.connections import protocol_with_deadline

_CLOSE_TIMEOUT_S = 5  # for connections to close once all answers are out


def make_uvicorn(app: Any, config: ServeConfig) -> uvicorn.Server:
    """A uvicorn server of an app, for `serve(sockets=[...])` on the running event loop.

    It ends when its `should_exit` is set; it handles no signals.
    """
    quiet: dict[str, Any] = {"log_config": None, "access_log": False, "lifespan": "off", "ws": "none", "server_header": False}
    limits: dict[str, Any] = {
        "http": protocol_with_deadline(config.header_timeout_s), "limit_concurrency": config.max_connections,
        "timeout_graceful_shutdown": _CLOSE_TIMEOUT_S,
    }  # fmt: skip
    settings = uvicorn.Config(app, **limits, **quiet)
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
