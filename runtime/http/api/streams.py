"""From the generator's thread to answers: whole, or as server-sent events; and what happens when the client goes away.

The generator calls back on its own thread; a `TokenStream` carries each event over to the event loop that waits for it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import TypeVar

from pydantic_core import to_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from maskpro_deploy.errors import MaskProError
from maskpro_deploy.runtime.generate.generator import OverloadedError, TextGenerator
from maskpro_deploy.runtime.generate.grammar_compiler import CompiledGrammar
from maskpro_deploy.runtime.generate.sampling_params import SamplingParams
from maskpro_deploy.runtime.generate.sequence import (
    ABORT,
    Completion,
    Event,
    FailureEvent,
    PromptEvent,
    TokenEvent,
    build_completion,
)
from maskpro_deploy.runtime.http.api.errors import to_api_error
from maskpro_deploy.runtime.http.api.formats import AnswerFormat, Json, usage
from maskpro_deploy.runtime.http.api.mailbox import Mailbox

_T = TypeVar("_T")
_FEW_SCORES = 256  # of tokens, each with up to 20 others: written within milliseconds
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class TokenStream:
    """The events of one request, in order, submitted like `TextGenerator.submit` does; whoever opened it has to `close` it.

    To be made inside a running event loop.
    """

    def __init__(
        self,
        generator: TextGenerator,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        n: int = 1,
        grammar: CompiledGrammar | None = None,
    ) -> None:
        self._generator = generator
        loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event] = asyncio.Queue()
        self._first: TokenEvent | PromptEvent | None = None  # if it was waited for, until it is read
        self.prompt_tokens = sum(len(p) for p in prompts)
        self._n = n
        post = Mailbox.of(loop).sender(loop, self._queue.put_nowait)
        self.sequences = generator.submit(prompts, params, post, n=n, grammar=grammar)

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompts that were kept and not read; of those that have been started. A prompt counts once."""
        return sum(s.cached_tokens for s in self.sequences[:: self._n])

    async def wait_for_start(self) -> None:
        """Wait for the first event, which stays the first to be read; raises what reading it would.

        So an answer that never starts is an error by its status, and not one in a stream that has begun well.
        """
        self._first = await self._next()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield every event; an OverloadedError if the generator was closed before the end."""
        open_choices = len(self.sequences)
        while open_choices:
            event, self._first = self._first or await self._next(), None
            yield event
            open_choices -= event.last

    async def _next(self) -> TokenEvent | PromptEvent:
        event = await self._queue.get()
        if isinstance(event, FailureEvent):
            raise event.error
        if isinstance(event, TokenEvent) and event.finish_reason == ABORT:
            raise OverloadedError("the server is shutting down; the answer was not finished.", "shutting_down")
        return event

    def close(self) -> None:
        """End what is not finished: the reader has gone or has enough."""
        self._generator.abort(self.sequences)


async def collect(stream: TokenStream) -> list[Completion]:
    """All answers of a request, whole."""
    events_of: list[list[Event]] = [[] for _ in stream.sequences]
    async for event in stream:
        events_of[event.choice].append(event)
    return [build_completion(len(s.prompt), own) for s, own in zip(stream.sequences, events_of, strict=True)]


async def unless_disconnected(request: Request, work: Awaitable[_T]) -> _T:
    """The result of `work`; a ClientDisconnect if the client goes away first."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_wait_for_disconnect(request.receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for pending in (task, watcher):
            pending.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _chunks(stream: TokenStream, form: AnswerFormat) -> AsyncIterator[bytes]:
    """Server-sent events: what the form says of each token, and before and after them all; or an error as the last one."""
    generated, scored = 0, set[int]()  # and the choices whose prompts' scores go out with the next event
    for part in form.opening():
        yield _sse(part)
    try:
        async for event in stream:
            generated += isinstance(event, TokenEvent) and event.score is not None
            if event.choice in scored:
                scored.remove(event.choice)
                yield await asyncio.to_thread(_write_long, form, event)
                continue
            if isinstance(event, PromptEvent):
                scored.add(event.choice)
            for part in form.pieces(event):
                yield _sse(part)
    except MaskProError as e:
        for part in form.failure(to_api_error(e).body()):
            yield _sse(part)
        return
    for part in form.closing(usage(stream.prompt_tokens, generated, stream.cached_tokens)):
        yield _sse(part)
    if form.ends_with_done:
        yield b"data: [DONE]\n\n"


def _write_long(form: AnswerFormat, event: Event) -> bytes:
    return b"".join(_sse(part, long=True) for part in form.pieces(event))


def write_json(value: Json, *, long: bool = False) -> bytes:
    """An answer as JSON; a long one is written slowly in Python, as other threads would wait for the fast encoder to end."""
    return "".join(_ENCODER.iterencode(value)).encode() if long else to_json(value)


async def write_whole(form: AnswerFormat, answers: Sequence[Completion], counts: Json) -> bytes:
    """The answer to a request without stream, as JSON; one with many scores is not written on the event loop."""
    scores = sum(len(answer.scores) + len(answer.prompt_scores) for answer in answers)
    if scores <= _FEW_SCORES:
        return write_json(form.whole(answers, counts))
    return await asyncio.to_thread(lambda: write_json(form.whole(answers, counts), long=True))


def _sse(value: Json, *, long: bool = False) -> bytes:
    """One event; one that says its type is called by it."""
    name = f"event: {value['type']}\n".encode() if "type" in value else b""
    return name + b"data: " + write_json(value, long=long) + b"\n\n"


class EventStream(StreamingResponse):
    """Server-sent events of one request; however the sending ends, the request's generation ends with it."""

    media_type = "text/event-stream"

    def __init__(self, stream: TokenStream, form: AnswerFormat) -> None:
        super().__init__(_chunks(stream, form), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.close()
