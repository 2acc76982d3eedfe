"""From another thread to an event loop: many items, one wake-up.

Waking a loop costs a system call, and makes its thread ask for the interpreter. A step of the generator has an item for every
answer: they wait in one box, and the loop is woken for the first of them only.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TypeVar

T = TypeVar("T")

_BOXES: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Mailbox] = weakref.WeakKeyDictionary()


class Mailbox:
    """Items on their way to one event loop, each with who takes it; what one thread posts arrives in its order."""

    def __init__(self) -> None:
        self._items: deque[Callable[[], object]] = deque()
        self._woken = False  # whether the loop is about to look

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> Mailbox:
        """The one box of a loop; to be called on its thread."""
        box = _BOXES.get(loop)
        if box is None:
            box = _BOXES[loop] = cls()
        return box

    def sender(self, loop: asyncio.AbstractEventLoop, take: Callable[[T], object]) -> Callable[[T], None]:
        """A function for other threads: `take` gets its argument, soon, on the thread of `loop`, whose box this is.

        `take` may not raise. The function raises RuntimeError once the loop is closed.
        """

        def post(item: T) -> None:
            if loop.is_closed():
                raise RuntimeError("the event loop is closed")
            self._items.append(partial(take, item))
            if not self._woken:  # read before it is set by another thread, it costs a wake-up that finds nothing
                self._woken = True
                loop.call_soon_threadsafe(self._deliver)

        return post

    def _deliver(self) -> None:
        self._woken = False  # before looking: what comes after this wakes the loop again
        while self._items:
            self._items.popleft()()
