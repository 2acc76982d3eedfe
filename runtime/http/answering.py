"""From a request's events to its answer: whole, or as server-sent events; and what happens when the client goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from maskpro_deploy.errors import MaskProError
from maskpro_deploy.runtime.generate.completion import Collector, Completion
from maskpro_deploy.runtime.generate.sequence import TokenEvent
from maskpro_deploy.runtime.http.api_errors import to_api_error
from maskpro_deploy.runtime.http.responses import Format, usage
from maskpro_deploy.runtime.http.streams import TokenStream


async def collect(stream: TokenStream) -> list[Completion]:
    """All answers of a request, whole."""
    collectors = [Collector(len(sequence.prompt)) for sequence in stream.sequences]
    async for event in stream:
        collectors[event.choice].add(event)
    return [c.completion() for c in collectors]


async def unless_disconnected(request: Request, work: Awaitable[list[Completion]]) -> list[Completion]:
    """The result of `work`, unless the client goes away first.

    Raises:
        ClientDisconnect: it went away.
    """
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
        yield _sse(form.usage_chunk(usage(stream.prompt_tokens, generated)))
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
        """See the ASGI specification."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.close()
