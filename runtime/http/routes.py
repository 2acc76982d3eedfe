"""What each route does: check the request, ask the generator, answer."""

from __future__ import annotations

import asyncio
import time

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from maskpro_deploy._version import __version__
from maskpro_deploy.runtime.generate.generator import DEAD, READY, Load, OverloadedError, TextGenerator
from maskpro_deploy.runtime.http.api_errors import ApiError, invalid_request
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.metrics import Metrics
from maskpro_deploy.runtime.http.parsing import parse
from maskpro_deploy.runtime.http.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    GenerationRequest,
    TokenizeRequest,
)
from maskpro_deploy.runtime.http.responses import ChatFormat, CompletionFormat, Format, usage
from maskpro_deploy.runtime.http.streams import EventStream, TokenStream, collect, unless_disconnected


class Routes:
    """The routes over one generator.

    Args:
        slot: the generator, or the place that it will take.
        config: limits.
    """

    def __init__(self, slot: GeneratorSlot, config: ServeConfig) -> None:
        self._slot = slot
        self._max_body_bytes = config.max_body_bytes

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [self._model_card()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{name}."""
        self._generator_for(request.path_params["name"])
        return JSONResponse(self._model_card())

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self._generate(request, CompletionRequest, CompletionFormat)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self._generate(request, ChatRequest, ChatFormat)

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize."""
        asked = parse(TokenizeRequest, await self._body(request))
        generator = self._generator_for(asked.model)
        tokens = await asyncio.to_thread(asked.encode, generator.tokenizer)
        return JSONResponse({"count": len(tokens), "max_model_len": generator.max_model_len, "tokens": tokens})

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize."""
        asked = parse(DetokenizeRequest, await self._body(request))
        generator = self._generator_for(asked.model)
        largest = generator.shape.vocab_size - 1
        if not all(0 <= t <= largest for t in asked.tokens):
            raise invalid_request(f"tokens go from 0 to {largest}.", "invalid_value", "tokens")
        return JSONResponse({"prompt": generator.tokenizer.decode(asked.tokens, skip_special_tokens=False)})

    async def health(self, request: Request) -> Response:
        """GET /health."""
        status = self._slot.status
        if status == READY:
            return JSONResponse({"status": status})
        return ApiError(503, f"the server is not ready: {status}.", "unavailable_error", status).response()

    async def live(self, request: Request) -> Response:
        """GET /live."""
        status = self._slot.status
        return JSONResponse({"status": status}, 503 if status == DEAD else 200)

    async def version(self, request: Request) -> Response:
        """GET /version."""
        return JSONResponse({"version": __version__})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        return Response(self._slot.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _model_card(self) -> dict[str, object]:
        generator = self._slot.get()
        return {
            "id": self._slot.model_name,
            "object": "model",
            "created": self._slot.created,
            "owned_by": "maskpro-deploy",
            "root": generator.shape.name,
            "max_model_len": generator.max_model_len,
        }

    def _generator_for(self, name: str | None) -> TextGenerator:
        """The generator, asked for by the model's name; None takes whatever is served.

        Raises:
            ApiError: another model is served.
            OverloadedError: it is still loading.
        """
        if name is not None and name != self._slot.model_name:
            message = f"the model {name[:100]!r} is not served here; this is {self._slot.model_name!r}."
            raise ApiError(404, message, "not_found_error", "model_not_found", "model")
        return self._slot.get()

    async def _body(self, request: Request) -> bytes:
        """The request's body.

        Raises:
            ApiError: it is too long.
        """
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > self._max_body_bytes:
                message = f"the request is longer than {self._max_body_bytes} bytes."
                raise ApiError(413, message, "invalid_request_error", "request_too_large")
        return bytes(body)

    async def _generate(self, request: Request, kind: type[GenerationRequest], form_of: type[Format]) -> Response:
        """Answers to the prompts of a request, whole or as a stream."""
        asked = parse(kind, await self._body(request))
        generator = self._generator_for(asked.model)
        prompts = await asyncio.to_thread(asked.encode_prompts, generator.tokenizer)
        params = asked.sampling(generator.max_model_len - max(map(len, prompts)))
        form = form_of(
            model=self._slot.model_name,
            tokenizer=generator.tokenizer,
            n=asked.n,
            logprobs=params.logprobs is not None,
            include_usage=asked.include_usage,
            echo=[generator.tokenizer.decode(p) for p in prompts] if asked.repeats_prompt else None,
        )
        try:
            stream = TokenStream(generator, prompts, params, asked.n)
        except OverloadedError as e:
            self._slot.metrics.count_rejected(e.reason)
            raise
        self._slot.metrics.count_accepted(params, asked.n)
        if asked.stream:
            return EventStream(stream, form)
        try:
            answers = await unless_disconnected(request, collect(stream))
        finally:
            stream.close()
        completed = sum(len(a.tokens) for a in answers)
        return JSONResponse(form.whole(answers, usage(stream.prompt_tokens, completed)))


# MERGED runtime/http/slot.py
class GeneratorSlot:
    """A generator, or the fact that it is still loading; with the name and the metrics that clients see meanwhile."""

    def __init__(self, model_name: str, generator: TextGenerator | None = None) -> None:
        self.model_name = model_name
        self.metrics = Metrics(model_name, self._load)
        self._generator: TextGenerator | None = None
        self.created = int(time.time())
        if generator is not None:
            self.fill(generator)

    def fill(self, generator: TextGenerator) -> None:
        """The generator is there."""
        generator.observer = self.metrics
        self._generator = generator

    def get(self) -> TextGenerator:
        """The generator.

        Raises:
            OverloadedError: it is still loading.
        """
        if self._generator is None:
            raise OverloadedError("the model is loading.", "loading")
        return self._generator

    @property
    def status(self) -> str:
        """The generator's status, or "loading"."""  # fmt: skip
        return self._generator.status if self._generator is not None else "loading"

    def _load(self) -> Load:
        return self._generator.load if self._generator is not None else Load()
