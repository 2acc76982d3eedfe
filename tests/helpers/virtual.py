"""An event loop whose time passes only by waiting, at once and exactly, and servers simulated on it."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from maskpro_deploy.bench.load.client import Answer, Client, Request

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.now = 100.0
        self.wall_offset = 0.0
        outer = self

        class Selector(selectors.DefaultSelector):
            def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
                if timeout is None:
                    raise AssertionError("nothing will ever happen again")
                outer.now += max(1e-9, timeout)  # some time always passes, as on any clock
                return super().select(0)

        super().__init__(Selector())

    def time(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1e9 + self.now + self.wall_offset


def run(make: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in virtual time."""
    loop: list[VirtualLoop] = []

    def factory() -> VirtualLoop:
        loop.append(VirtualLoop())
        return loop[0]

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.get_loop()
        return runner.run(make(loop[0]))


def steady(loop: VirtualLoop, *, first_s: float = 0.1, each_s: float = 0.01, factor: Callable[[], float] = lambda: 1.0) -> Client:
    """A server that takes the same time for every request, however many there are."""

    async def client(request: Request) -> Answer:
        arrivals, scale = [], factor()
        for i in range(request.output_len):
            await asyncio.sleep((each_s if i else first_s) * scale)
            arrivals.append(loop.time())
        return Answer(
            arrivals_s=arrivals, input_tokens=request.input_len, output_tokens=request.output_len, text="x" * request.output_len
        )

    return client
