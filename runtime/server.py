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
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from maskpro_deploy import __version__
from maskpro_deploy.errors import ConfigError, MaskProError
from maskpro_deploy.runtime.engine import DEAD, READY, Collector, Completion, Engine, Load, OverloadedError, RuntimeConfig
from maskpro_deploy.runtime.metrics import Metrics
from maskpro_deploy.runtime.middleware import REQUEST_ID, Gate
from maskpro_deploy.runtime.protocol import (
    ApiError,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    GenerationRequest,
    TokenizeRequest,
    api_error,
    parse,
)
from maskpro_deploy.runtime.responses import ChatFormat, CompletionFormat, Format, usage
from maskpro_deploy.runtime.sampling import SamplingParams
from maskpro_deploy.runtime.sequence import ABORT, TokenEvent
from maskpro_deploy.runtime.streams import TokenStream

_CLIENT_CLOSED = 499  # nobody reads it; it only shows in logs


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """How a bundle is served.

    Attributes:
        host: address to listen on.
        port: 0 takes a free one.
        runtime: how the bundle is run.
        api_key: clients have to send it as a bearer token; None lets everybody in.
        served_model_name: what clients call the model; None takes the bundle's own name.
        shutdown_timeout_s: how long running requests may go on after a signal to stop.
        max_body_bytes: longest request.
        allowed_origins: web pages that may call the server from a browser; "*" for all.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    api_key: str | None = field(default=None, repr=False)
    served_model_name: str | None = None
    shutdown_timeout_s: float = 30.0
    max_body_bytes: int = 32 << 20
    allowed_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port is {self.port}; allowed: 0 to 65535.")
        if not 0 <= self.shutdown_timeout_s < float("inf"):
            raise ConfigError(f"--shutdown-timeout is {self.shutdown_timeout_s}; allowed: 0 seconds and more.")
        if self.api_key is not None and not self.api_key.strip():
            raise ConfigError("--api-key is empty.\nGive a key, or leave the option (and MASKPRO_API_KEY) away.")
        if self.max_body_bytes < 1:
            raise ConfigError(f"--max-body-bytes is {self.max_body_bytes}; allowed: 1 and more.")


class EngineSlot:
    """The place of an engine that may still be loading."""

    def __init__(self, model_name: str, engine: Engine | None = None) -> None:
        self.model_name = model_name
        self.metrics = Metrics(model_name, self._load)
        self._engine: Engine | None = None
        self.created = int(time.time())
        if engine is not None:
            self.fill(engine)

    def fill(self, engine: Engine) -> None:
        """The engine is there."""
        engine.observer = self.metrics
        self._engine = engine

    def get(self) -> Engine:
        """The engine.

        Raises:
            OverloadedError: it is still loading.
        """
        if self._engine is None:
            raise OverloadedError("the model is loading.", "loading")
        return self._engine

    @property
    def status(self) -> str:
        """The engine's status, or "loading"."""  # fmt: skip
        return self._engine.status if self._engine is not None else "loading"

    def _load(self) -> Load:
        return self._engine.load if self._engine is not None else Load()


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
            return EventStream(stream, _chunks(stream, shape, include_usage=asked.include_usage))
        try:
            answers = await _unless_disconnected(request, _collect(stream, len(prompts) * asked.n, prompts, asked.n))
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


async def _collect(stream: TokenStream, choices: int, prompts: Sequence[Sequence[int]], n: int) -> list[Completion]:
    """All answers of a request, whole."""
    collectors = [Collector(len(prompts[choice // n])) for choice in range(choices)]
    async for event in stream:
        if isinstance(event, TokenEvent) and event.finish_reason == ABORT:
            raise OverloadedError("the server is shutting down; the answer was not finished.", "shutting_down")
        collectors[event.choice].add(event)
    return [c.completion() for c in collectors]


async def _unless_disconnected(request: Request, work: Awaitable[list[Completion]]) -> list[Completion]:
    """The result of `work`, unless the client goes away first.

    Raises:
        ClientDisconnect: it went away.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for pending in (task, watcher):
            pending.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _chunks(stream: TokenStream, shape: Format, *, include_usage: bool) -> AsyncIterator[str]:
    """Server-sent events: one for each token, the token counts if asked for, `[DONE]`; or an error as the last one."""
    generated = 0
    try:
        async for event in stream:
            if isinstance(event, TokenEvent):
                generated += event.score is not None
                if event.finish_reason == ABORT:
                    raise OverloadedError("the server is shutting down; the answer was not finished.", "shutting_down")
            if (chunk := shape.chunk(event)) is not None:
                yield _sse(chunk)
    except MaskProError as e:
        yield _sse(api_error(e).body())
        return
    if include_usage:
        yield _sse(shape.usage_chunk(usage(stream.prompt_tokens, generated)))
    yield "data: [DONE]\n\n"


def _sse(value: dict[str, object]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


class EventStream(StreamingResponse):
    """Server-sent events of one request; however the sending ends, the request's generation ends with it."""

    media_type = "text/event-stream"

    def __init__(self, stream: TokenStream, chunks: AsyncIterator[str]) -> None:
        super().__init__(chunks, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.close()


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
