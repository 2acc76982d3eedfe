"""Apps on real sockets, around generators that a test chooses."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import uvicorn

from maskpro_deploy.runtime import TextGenerator
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.listening import base_url, listen
from maskpro_deploy.runtime.http.routes import GeneratorSlot
from maskpro_deploy.runtime.http.server import create_app


@contextmanager
def serving(generator: TextGenerator | GeneratorSlot, config: ServeConfig | None = None) -> Iterator[str]:
    """The URL of an app around a given generator, or the slot that it will fill."""
    with closing(listen("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(create_app(generator, config), log_config=None, lifespan="off"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        try:
            yield base_url(listener)
        finally:
            server.should_exit = True
            thread.join()
