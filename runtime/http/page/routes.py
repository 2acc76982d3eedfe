"""The routes of the page, and what it asks every other second.

The page has a small JSON object of its own, `/ui/status`, instead of reading `/metrics`: it needs what is not a metric (whether
there is a chat template, the context, the weights), and 300 bytes instead of all histograms as text, which are a hundred times as
many. Like `/metrics` and `/version` it needs no key: it says what is served and how busy that is, and nothing of what is asked.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from maskpro_deploy._version import __version__
from maskpro_deploy.runtime.generate.generator import OverloadedError
from maskpro_deploy.runtime.generate.sampling_params import SamplingParams
from maskpro_deploy.runtime.http.addresses import ServerAddress
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.page.files import INDEX, PageFile, content_policy, read_files
from maskpro_deploy.runtime.http.routes import GeneratorSlot

_SHOWN = ("temperature", "top_p")  # parameters whose defaults and ranges the page shows


def page_routes(slot: GeneratorSlot, config: ServeConfig) -> list[Route]:
    """What to add to the server's routes; nothing if the page is turned off."""
    if not config.ui:
        return []
    page, files = _Page(slot, config), read_files()
    index = partial(page.index, files.pop(INDEX))
    paths = {"/": index, **{f"/ui/{name}": partial(page.asset, file) for name, file in files.items()}}
    compressed = [Middleware(GZipMiddleware)]
    return [Route("/ui/status", page.status), *(Route(path, send, middleware=compressed) for path, send in paths.items())]


class _Page:
    def __init__(self, slot: GeneratorSlot, config: ServeConfig) -> None:
        self._slot = slot
        self._other = ServerAddress.read(config.compare_url) if config.compare_url is not None else None

    async def index(self, file: PageFile, request: Request) -> Response:
        """The page; one that is opened with `?compare=ADDRESS` may talk to that server too."""
        asked = ServerAddress.read(request.query_params.get("compare", ""))
        return file.answer(request, content_policy([a for a in (self._other, asked) if a is not None]))

    async def asset(self, file: PageFile, request: Request) -> Response:
        return file.answer(request, content_policy())

    async def status(self, request: Request) -> Response:
        load = self._slot.load()
        try:
            generator = self._slot.get()
            facts: dict[str, object] = {"context": generator.max_model_len, "chat": generator.tokenizer.has_template}
        except OverloadedError:  # still loading
            facts = {"context": None, "chat": None}
        known = {
            "status": self._slot.status, "model": self._slot.model_name, "weights": self._slot.weights, "version": __version__,
            "compare_url": None if self._other is None else str(self._other), "sampling": _sampling(),
        }  # fmt: skip
        return JSONResponse(known | facts | dataclasses.asdict(load), headers={"Cache-Control": "no-store"})


def _sampling() -> dict[str, dict[str, Any]]:
    """Defaults and ranges of the parameters that the page shows."""
    ranges = {f.name: (f.default, f.metadata["range"]) for f in dataclasses.fields(SamplingParams) if f.name in _SHOWN}
    return {
        name: {"default": default, "low": allowed.low, "high": None if math.isinf(allowed.high) else allowed.high}
        for name, (default, allowed) in ranges.items()
    }
