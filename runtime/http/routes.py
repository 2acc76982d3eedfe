"""What each route does: check the request, ask the generator, answer."""

from __future__ import annotations

import asyncio
import time
from typing import TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from maskpro_deploy._version import __version__
from maskpro_deploy.runtime.generate.generator import DEAD, READY, Load, OverloadedError, TextGenerator
from maskpro_deploy.runtime.generate.grammar_compiler import CompiledGrammar
from maskpro_deploy.runtime.generate.grammars import Grammar
from maskpro_deploy.runtime.generate.model_defaults import ModelDefaults
from maskpro_deploy.runtime.http.api.chat import ChatFormat, ChatRequest
from maskpro_deploy.runtime.http.api.completions import CompletionFormat, CompletionRequest
from maskpro_deploy.runtime.http.api.errors import ApiError, invalid_request
from maskpro_deploy.runtime.http.api.formats import AnswerFormat, usage
from maskpro_deploy.runtime.http.api.limits import RequestLimits
from maskpro_deploy.runtime.http.api.parsing import parse
from maskpro_deploy.runtime.http.api.requests import GenerationRequest
from maskpro_deploy.runtime.http.api.response_events import ResponseFormat
from maskpro_deploy.runtime.http.api.responses import ResponsesRequest
from maskpro_deploy.runtime.http.api.streams import EventStream, TokenStream, collect, unless_disconnected, write_whole
from maskpro_deploy.runtime.http.api.tokens import DetokenizeRequest, TokenizeRequest
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.memory import LARGE_BYTES, LARGE_REQUEST
from maskpro_deploy.runtime.http.metrics import Metrics
from maskpro_deploy.runtime.http.request_log import FACTS, describe_answers

R = TypeVar("R", bound=BaseModel)
_SHORT_BODY = 1 << 16  # bytes, read within a millisecond


class GeneratorSlot:
    """A generator, or the fact that it is still loading; with the name and the metrics that clients see meanwhile.

    `defaults` are the model's own, of requests that do not say.
    """

    def __init__(self, model_name: str, generator: TextGenerator | None = None, *, defaults: ModelDefaults | None = None) -> None:
        self.model_name = model_name
        self.defaults = defaults or ModelDefaults()
        self.metrics = Metrics(model_name, self.load)
        self.weights: str | None = None  # such as "2:4 sparse, fp32", where it is known
        self._generator: TextGenerator | None = None
        self.created = int(time.time())
        if generator is not None:
            self.fill(generator)

    def fill(self, generator: TextGenerator) -> None:
        """The generator is there."""
        generator.observer = self.metrics
        self._generator = generator

    def get(self) -> TextGenerator:
        """The generator; an OverloadedError while it is still loading."""
        if self._generator is None:
            raise OverloadedError("the model is loading.", "loading")
        return self._generator

    @property
    def status(self) -> str:
        """The generator's status, or "loading"."""  # fmt: skip
        return self._generator.status if self._generator is not None else "loading"

    def load(self) -> Load:
        """How busy the generator is."""
        return self._generator.load if self._generator is not None else Load()


class Routes:
    """The routes over one generator, or over the place that it will take; `server.py` says which is which."""

    def __init__(self, slot: GeneratorSlot, config: ServeConfig) -> None:
        self._slot = slot
        self._config = config
        self._names = tuple(dict.fromkeys((slot.model_name, *config.model_aliases)))

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model_card(name) for name in self._names]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        self._generator_for(name)
        return JSONResponse(self._model_card(name))

    async def completions(self, request: Request) -> Response:
        return await self._generate(request, CompletionRequest, CompletionFormat)

    async def chat(self, request: Request) -> Response:
        return await self._generate(request, ChatRequest, ChatFormat)

    async def responses(self, request: Request) -> Response:
        return await self._generate(request, ResponsesRequest, ResponseFormat)

    async def tokenize(self, request: Request) -> Response:
        asked = await self._read(request, TokenizeRequest)
        generator = self._generator_for(asked.model)
        answer = await asyncio.to_thread(asked.answer, generator.tokenizer, generator.max_model_len)
        return Response(answer, media_type="application/json")

    async def detokenize(self, request: Request) -> Response:
        asked = await self._read(request, DetokenizeRequest)
        generator = self._generator_for(asked.model)
        largest = generator.shape.vocab_size - 1
        if not all(0 <= t <= largest for t in asked.tokens):
            raise invalid_request(f"tokens go from 0 to {largest}.", "invalid_value", "tokens")
        text = await asyncio.to_thread(generator.tokenizer.decode, asked.tokens, skip_special_tokens=False)
        return JSONResponse({"prompt": text})

    async def health(self, request: Request) -> Response:
        status = self._slot.status
        if status == READY:
            return JSONResponse({"status": status})
        return ApiError(503, f"the server is not ready: {status}.", "unavailable_error", status).response()

    async def live(self, request: Request) -> Response:
        status = self._slot.status
        return JSONResponse({"status": status}, 503 if status == DEAD else 200)

    async def version(self, request: Request) -> Response:
        return JSONResponse({"version": __version__})

    async def metrics(self, request: Request) -> Response:
        return Response(self._slot.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _model_card(self, name: str) -> dict[str, object]:
        generator = self._slot.get()
        return {
            "id": name,
            "object": "model",
            "created": self._slot.created,
            "owned_by": "maskpro-deploy",
            "root": generator.shape.name,
            "max_model_len": generator.max_model_len,
        }

    def _generator_for(self, name: str | None) -> TextGenerator:
        """The generator, asked for by one of the model's names; None takes what is served. An ApiError if it is not served."""
        if name is not None and name not in self._names:
            message = f"the model {name[:100]!r} is not served here; this is {self._slot.model_name!r}."
            raise ApiError(404, message, "not_found_error", "model_not_found", "model")
        return self._slot.get()

    async def _read(self, request: Request, kind: type[R]) -> R:
        """The request that a body holds; a long one is not read on the event loop.

        Raises:
            ApiError: the body is too long, or no such request.
            OverloadedError: the model is still loading; nothing is read.
        """
        limits = RequestLimits.of(self._slot.get())
        most, timeout_s = self._config.max_body_bytes or limits.body_bytes, self._config.body_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                body = await self._receive(request, most)
        except TimeoutError as e:
            message = f"the body did not arrive within {timeout_s:g} s."
            raise ApiError(408, message, "invalid_request_error", "request_timeout") from e
        if len(body) >= LARGE_BYTES:
            request.scope[LARGE_REQUEST] = True
        if len(body) <= _SHORT_BODY:
            return parse(kind, body, limits)
        return await asyncio.to_thread(parse, kind, body, limits)

    async def _receive(self, request: Request, most: int) -> bytes:
        """The request's body; an ApiError if it is too long, by its own account or in truth."""
        told = request.headers.get("content-length", "")
        body = bytearray()
        if not (told.isdecimal() and int(told[:20]) > most):
            async for piece in request.stream():
                body += piece
                if len(body) > most:
                    break
            else:
                return bytes(body)
        raise ApiError(413, f"the request is longer than {most} bytes.", "invalid_request_error", "request_too_large")

    async def _generate(self, request: Request, kind: type[GenerationRequest], form_of: type[AnswerFormat]) -> Response:
        """Answers to the prompts of a request, whole or as a stream."""
        asked = await self._read(request, kind)
        generator = self._generator_for(asked.model)
        prompts, compiled = await _prepare(asked, generator)
        config = self._config
        room = generator.max_model_len - max(map(len, prompts))
        params = asked.sampling(room, limit=config.max_tokens_limit, default=config.default_max_tokens, model=self._slot.defaults)
        params = asked.finish_sampling(params)
        form = form_of(
            model=self._slot.model_name,
            tokenizer=generator.tokenizer,
            n=asked.n,
            logprobs=params.logprobs is not None,
            include_usage=asked.include_usage,
            repeated=asked.repeat(params),
            echo=await asyncio.to_thread(_decode_all, generator, prompts) if asked.repeats_prompt else None,
            **asked.format_options,
        )
        try:
            stream = TokenStream(generator, prompts, params, asked.n, compiled)
        except OverloadedError as e:
            self._slot.metrics.count_rejected(e.reason)
            raise
        self._slot.metrics.count_accepted(params, asked.n)
        told, streams = stream.prompt_tokens, bool(asked.stream)
        request.scope[FACTS] = lambda: describe_answers(
            stream.sequences, told, stream=streams, cached_tokens=stream.cached_tokens
        )
        if asked.stream:
            try:
                await unless_disconnected(request, stream.wait_for_start())
            except BaseException:
                stream.close()
                raise
            return EventStream(stream, form)
        try:
            answers = await unless_disconnected(request, collect(stream))
        finally:
            stream.close()
        completed = sum(len(a.tokens) for a in answers)
        answer = await write_whole(form, answers, usage(stream.prompt_tokens, completed, stream.cached_tokens))
        return Response(answer, media_type="application/json")


def _decode_all(generator: TextGenerator, prompts: list[list[int]]) -> list[str]:
    return [generator.tokenizer.decode(prompt) for prompt in prompts]


async def _prepare(asked: GenerationRequest, generator: TextGenerator) -> tuple[list[list[int]], CompiledGrammar | None]:
    """The tokens of a request's prompts, and what the answers may be; off the event loop."""

    def read() -> tuple[list[list[int]], Grammar | None]:
        prompts = asked.encode_prompts(generator.tokenizer, generator.max_model_len)
        return prompts, asked.find_grammar(generator.tokenizer, generator.grammars)

    prompts, grammar = await asyncio.to_thread(read)
    if grammar is None:
        return prompts, None
    compiled: asyncio.Future[CompiledGrammar] = asyncio.wrap_future(generator.grammars.submit(grammar))
    return prompts, await compiled
