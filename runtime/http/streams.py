"""Events of the generator's thread as an asynchronous stream.

The generator calls back on its own thread; a stream carries each event over to the event loop that waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from maskpro_deploy.runtime.generate.generator import TextGenerator
from maskpro_deploy.runtime.generate.refusals import OverloadedError
from maskpro_deploy.runtime.generate.sampling_params import SamplingParams
from maskpro_deploy.runtime.generate.sequence import ABORT, Event, FailureEvent, TokenEvent


class TokenStream:
    """The events of one request, in order; whoever opened it has to `close` it. To be made inside a running event loop.

    Args:
        generator: generates.
        prompts: tokens of each prompt.
        params: how to continue them.
        n: answers to each prompt.

    Raises:
        MaskProError: as `TextGenerator.submit`.
    """

    def __init__(self, generator: TextGenerator, prompts: Sequence[Sequence[int]], params: SamplingParams, n: int = 1) -> None:
        self._generator = generator
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event] = asyncio.Queue()
        self.prompt_tokens = sum(len(p) for p in prompts)
        self.sequences = generator.submit(prompts, params, self._deliver, n=n)

    def _deliver(self, event: Event) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield every event.

        Raises:
            MaskProError: an answer failed.
            OverloadedError: the generator was closed before the end.
        """
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
