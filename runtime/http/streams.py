"""Events of the engine thread as an asynchronous stream.

The engine calls back on its own thread; a stream carries each event over to the event loop that waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from maskpro_deploy.runtime.generate.generator import Engine
from maskpro_deploy.runtime.generate.sampling import SamplingParams
from maskpro_deploy.runtime.generate.sequence import Event, FailureEvent, TokenEvent


class TokenStream:
    """The events of one request, in order; whoever opened it has to `close` it. To be made inside a running event loop.

    Args:
        engine: generates.
        prompts: tokens of each prompt.
        params: how to continue them.
        n: answers to each prompt.

    Raises:
        MaskProError: as `Engine.submit`.
    """

    def __init__(self, engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams, n: int = 1) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event] = asyncio.Queue()
        self.prompt_tokens = sum(len(p) for p in prompts)
        self._sequences = engine.submit(prompts, params, self._deliver, n=n)

    def _deliver(self, event: Event) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield every event.

        Raises:
            MaskProError: an answer failed.
        """
        open_choices = len(self._sequences)
        while open_choices:
            event = await self._queue.get()
            if isinstance(event, FailureEvent):
                raise event.error
            yield event
            open_choices -= isinstance(event, TokenEvent) and event.finish_reason is not None

    def close(self) -> None:
        """End what is not finished: the reader has gone or has enough."""
        self._engine.abort(self._sequences)
