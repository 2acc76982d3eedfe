"""An event loop whose timers are finer than a millisecond, and room for many connections."""

from __future__ import annotations

import asyncio
import contextlib
import select
import selectors
import sys


def make_event_loop() -> asyncio.AbstractEventLoop:
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


def allow_many_connections() -> None:
    """Let this process open as many files as it may: each request under way is one, and the usual limit is 1024."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # some systems call a limit infinite that they do not grant
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
