"""From the generator's thread to answers: whole, or as server-sent events; and what happens when the client goes away.

The generator calls back on its own thread; a `TokenStream` carries each event over to the event loop that waits for it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Sequence

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from maskpro_deploy.errors import MaskProError
from maskpro_deploy.runtime.generate.generator import OverloadedError, TextGenerator
from maskpro_deploy.runtime.generate.sampling_params import SamplingParams
from maskpro_deploy.runtime.generate.sequence import ABORT, Completion, Event, FailureEvent, TokenEvent, build_completion
from maskpro_deploy.runtime.http.api.errors import to_api_error
from maskpro_deploy.runtime.http.api.formats import Format, usage


class TokenStream:
    """The events of one request, in order, submitted like `TextGenerator.submit` does; whoever opened it has to `close` it.

    To be made inside a running event loop.
    """

    def __init__(self, generator: TextGenerator, prompts: Sequence[Sequence[int]], params: SamplingParams, n: int = 1) -> None:
        self._generator = generator
        loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event] = asyncio.Queue()
        self.prompt_tokens = sum(len(p) for p in prompts)
        self._n = n
        put = self._queue.put_nowait
        self.sequences = generator.submit(prompts, params, lambda event: loop.call_soon_threadsafe(put, event), n=n)

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompts that were kept and not read; of those that have been started. A prompt counts once."""
        return sum(s.cached_tokens for s in self.sequences[:: self._n])

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield every event; an OverloadedError if the generator was closed before the end."""
        open_choices = len(self.sequences)
        while open_choices:
            event = await self._queue.get()
            if isinstance(event, FailureEvent):
                raise event.error
            if isinstance(event, TokenEvent) and event.finish_reason == ABORT:
                raise OverloadedError("the server is shutting down; the answer was not finished.", "shutting_down")
            yield event
            open_choices -= event.last

    def close(self) -> None:
        """End what is not finished: the reader has gone or has enough."""
        self._generator.abort(self.sequences)


async def collect(stream: TokenStream) -> list[Completion]:
    """All answers of a request, whole."""
    events_of: list[list[Event]] = [[] for _ in stream.sequences]
    async for event in stream:
        events_of[event.choice].append(event)
    return [build_completion(len(s.prompt), own) for s, own in zip(stream.sequences, events_of, strict=True)]


async def unless_disconnected(request: Request, work: Awaitable[list[Completion]]) -> list[Completion]:
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


async def _chunks(stream: TokenStream, form: Format) -> AsyncIterator[str]:
    """Server-sent events: one for each token, the token counts if asked for, `[DONE]`; or an error as the last one."""
    generated = 0
    try:
        async for event in stream:
            generated += isinstance(event, TokenEvent) and event.score is not None
            if (chunk := form.chunk(event)) is not None:
                yield _sse(chunk)
    except MaskProError as e:
        yield _sse(to_api_error(e).body())
        return
    if form.include_usage:
        yield _sse(form.usage_chunk(usage(stream.prompt_tokens, generated, stream.cached_tokens)))
    yield "data: [DONE]\n\n"


def _sse(value: dict[str, object]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


class EventStream(StreamingResponse):
    """Server-sent events of one request; however the sending ends, the request's generation ends with it."""

    media_type = "text/event-stream"

    def __init__(self, stream: TokenStream, form: Format) -> None:
        super().__init__(_chunks(stream, form), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.close()
