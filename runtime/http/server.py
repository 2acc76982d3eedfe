"""The HTTP API: OpenAI's routes over one engine.

    GET  /v1/models  /v1/models/{id}           what is served
    POST /v1/completions  /v1/chat/completions
    POST /tokenize  /detokenize
    GET  /health     200 if requests are taken, 503 while loading, shutting down or broken (readiness)
    GET  /live       200 unless broken (liveness)
    GET  /version  /metrics

`create_app` makes a starlette app; `serving.py` runs it. A client that goes away ends its own generation, whether it streams or
not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from maskpro_deploy._version import __version__
from maskpro_deploy.errors import MaskProError
from maskpro_deploy.runtime.generate.config import ServeConfig
from maskpro_deploy.runtime.generate.generator import DEAD, READY, Engine
from maskpro_deploy.runtime.generate.refusals import OverloadedError
from maskpro_deploy.runtime.generate.sampling import SamplingParams
from maskpro_deploy.runtime.http.answering import EventStream, chunks, collect, unless_disconnected
from maskpro_deploy.runtime.http.middleware import REQUEST_ID, Gate
from maskpro_deploy.runtime.http.protocol import (
    ApiError,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    GenerationRequest,
    TokenizeRequest,
    api_error,
    parse,
)
from maskpro_deploy.runtime.http.responses import ChatFormat, CompletionFormat, Format, usage
from maskpro_deploy.runtime.http.slot import EngineSlot
from maskpro_deploy.runtime.http.streams import TokenStream

_CLIENT_CLOSED = 499  # nobody reads it; it only shows in logs


def create_app(engine: Engine | EngineSlot, config: ServeConfig | None = None) -> Starlette:
    """The app.

    Args:
        engine: generates; or the slot that it will fill.
        config: key, names and limits (host and port are the business of whoever runs the app).
    """
    config = config or ServeConfig()
    slot = engine if isinstance(engine, EngineSlot) else EngineSlot(config.served_model_name or engine.shape.name, engine)
    api = Api(slot, config)
    routes = [
        Route("/v1/models", api.models),
        Route("/v1/models/{name:path}", api.model),
        Route("/v1/completions", api.completions, methods=["POST"]),
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/tokenize", api.tokenize, methods=["POST"]),
        Route("/detokenize", api.detokenize, methods=["POST"]),
        Route("/health", api.health),
        Route("/live", api.live),
        Route("/version", api.version),
        Route("/metrics", api.metrics),
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
    handlers: dict[object, Callable[[Request, Exception], Awaitable[Response]]] = {
        ApiError: _on_api_error,
        MaskProError: _on_library_error,
        HTTPException: _on_http_error,
        ClientDisconnect: _on_disconnect,
        Exception: _on_bug,
    }
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


class Api:
    """The routes."""

    def __init__(self, slot: EngineSlot, config: ServeConfig) -> None:
        self._slot = slot
        self._config = config

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{name}."""
        self._check_model(request.path_params["name"])
        return JSONResponse(self._card())

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        asked = parse(CompletionRequest, await self._body(request))
        self._check_model(asked.model)
        engine = self._slot.get()
        prompts = await asyncio.to_thread(_prompts, engine, asked)
        params = asked.sampling(
            asked.answer_tokens(engine.max_model_len - max(map(len, prompts))),
            asked.logprobs,
            asked.logprobs if asked.echo else None,
        )
        shape = CompletionFormat(
            model=self._slot.model_name,
            tokenizer=engine.tokenizer,
            n=asked.n,
            logprobs=asked.logprobs is not None,
            include_usage=asked.include_usage,
            echo=[engine.tokenizer.decode(p) for p in prompts] if asked.echo else None,
        )
        return await self._answer(request, engine, asked, prompts, params, shape)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        asked = parse(ChatRequest, await self._body(request))
        self._check_model(asked.model)
        engine = self._slot.get()
        prompt = await asyncio.to_thread(_chat_prompt, engine, asked)
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        params = asked.sampling(asked.answer_tokens(engine.max_model_len - len(prompt)), logprobs)
        shape = ChatFormat(
            model=self._slot.model_name,
            tokenizer=engine.tokenizer,
            n=asked.n,
            logprobs=asked.logprobs,
            include_usage=asked.include_usage,
        )
        return await self._answer(request, engine, asked, [prompt], params, shape)

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize."""
        asked = parse(TokenizeRequest, await self._body(request))
        self._check_model(asked.model)
        engine = self._slot.get()
        tokens = await asyncio.to_thread(_tokenized, engine, asked)
        return JSONResponse({"count": len(tokens), "max_model_len": engine.max_model_len, "tokens": tokens})

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize."""
        asked = parse(DetokenizeRequest, await self._body(request))
        self._check_model(asked.model)
        engine = self._slot.get()
        if not all(0 <= t < engine.shape.vocab_size for t in asked.tokens):
            limit = engine.shape.vocab_size - 1
            raise ApiError(400, f"tokens go from 0 to {limit}.", "invalid_request_error", "invalid_value", "tokens")
        return JSONResponse({"prompt": engine.tokenizer.decode(asked.tokens, skip_special_tokens=False)})

    async def health(self, request: Request) -> Response:
        """GET /health."""
        status = self._slot.status
        if status == READY:
            return JSONResponse({"status": status})
        error = ApiError(503, f"the server is not ready: {status}.", "unavailable_error", status)
        return JSONResponse(error.body(), error.status, error.headers())

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

    def _card(self) -> dict[str, object]:
        engine = self._slot.get()
        name = self._slot.model_name
        return {
            "id": name,
            "object": "model",
            "created": self._slot.created,
            "owned_by": "maskpro-deploy",
            "root": engine.shape.name,
            "max_model_len": engine.max_model_len,
        }

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self._slot.model_name:
            raise ApiError(
                404,
                f"the model {name[:100]!r} is not served here; this is {self._slot.model_name!r}.",
                "not_found_error",
                "model_not_found",
                "model",
            )

    async def _body(self, request: Request) -> bytes:
        """The request's body.

        Raises:
            ApiError: it is too long.
        """
        limit = self._config.max_body_bytes
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > limit:
                raise ApiError(413, f"the request is longer than {limit} bytes.", "invalid_request_error", "request_too_large")
        return bytes(body)

    async def _answer(
        self,
        request: Request,
        engine: Engine,
        asked: GenerationRequest,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        shape: Format,
    ) -> Response:
        try:
            stream = TokenStream(engine, prompts, params, asked.n)
        except OverloadedError as e:
            self._slot.metrics.rejected(e.reason)
            raise
        self._slot.metrics.accepted(params, asked.n)
        if asked.stream:
            return EventStream(stream, chunks(stream, shape, include_usage=asked.include_usage))
        try:
            answers = await unless_disconnected(request, collect(stream, len(prompts) * asked.n, prompts, asked.n))
        finally:
            stream.close()
        completed = sum(len(a.tokens) for a in answers)
        return JSONResponse(shape.whole(answers, usage(stream.prompt_tokens, completed)))


def _prompts(engine: Engine, asked: CompletionRequest) -> list[list[int]]:
    """The tokens of each prompt, in whichever of the four forms they came."""
    given = asked.prompt
    if isinstance(given, str):
        given = [given]
    if not given:
        raise ApiError(400, "the prompt is empty.", "invalid_request_error", "invalid_value", "prompt")
    prompts: list[list[int]] = []
    for item in given:
        if isinstance(item, int):  # the list is one prompt's tokens
            return [[t for t in given if isinstance(t, int)]]
        prompts.append(
            engine.tokenizer.encode(item, add_special_tokens=asked.add_special_tokens) if isinstance(item, str) else item
        )
    if not all(prompts):
        raise ApiError(400, "a prompt is empty: it has no tokens.", "invalid_request_error", "invalid_value", "prompt")
    return prompts


def _chat_prompt(engine: Engine, asked: ChatRequest) -> list[int]:
    variables = {"add_generation_prompt": asked.add_generation_prompt, **(asked.chat_template_kwargs or {})}
    text = engine.tokenizer.render([m.for_template() for m in asked.messages], variables)
    return engine.tokenizer.encode(text, add_special_tokens=asked.add_special_tokens)


def _tokenized(engine: Engine, asked: TokenizeRequest) -> list[int]:
    text = asked.prompt or ""
    if asked.messages is not None:
        messages = [m.for_template() for m in asked.messages]
        text = engine.tokenizer.render(messages, {"add_generation_prompt": asked.add_generation_prompt})
    # a template writes its own special tokens
    special = asked.add_special_tokens if asked.add_special_tokens is not None else asked.messages is None
    return engine.tokenizer.encode(text, add_special_tokens=special)


def _render(error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status, error.headers())


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _render(error)


async def _on_library_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, MaskProError)
    return _render(api_error(error))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
    return _render(ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}.", kind))


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED)


async def _on_bug(request: Request, error: Exception) -> Response:
    return _render(ApiError(500, "the server made an error; see its log.", "server_error", "internal_error"))
