"""An event loop whose timers are finer than a millisecond."""

from __future__ import annotations

import asyncio
import select
import selectors
import sys


def event_loop() -> asyncio.AbstractEventLoop:
    """An event loop for a load generator.

    epoll counts whole milliseconds and rounds up, which would send every request up to 1 ms late. An epoll descriptor can itself
    be waited for, and `select` counts microseconds.
    """
    if sys.platform != "linux":
        return asyncio.SelectorEventLoop()

    class FineSelector(selectors.EpollSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is not None and timeout > 0 and self.fileno() < 1024:  # all that select can take
                select.select([self.fileno()], [], [], timeout)
                timeout = 0
            return super().select(timeout)

    return asyncio.SelectorEventLoop(FineSelector())
