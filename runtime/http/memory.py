"""Memory that long requests leave behind goes back to the system.

glibc keeps what was freed for later, several hundred megabytes after one long text, which only this process can use. It gives
it back when asked to; that takes long enough to happen on a thread, and not after every request.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Callable

LARGE_REQUEST = "maskpro.large"  # set in the scope of a request with a long body
LARGE_BYTES = 1 << 18  # of a body
_PAUSE_S = 1.0  # from the end of a long request; one that ends meanwhile is covered


def freeze_what_is_loaded() -> None:
    """Keep the garbage collector from looking again and again at what stays for ever; it holds up all threads meanwhile."""
    gc.collect()
    gc.freeze()


def find_trim() -> Callable[[int], object] | None:
    """The C library's function that gives memory back; None where it has none."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None


class MemoryReturn:
    """Gives memory back some time after long requests have ended, once for all of them."""

    def __init__(self) -> None:
        self._trim = find_trim()
        self._planned = False

    def plan(self) -> None:
        """A long request has ended; to be called on the event loop."""
        if self._trim is not None and not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_later(_PAUSE_S, self._start)

    def _start(self) -> None:
        self._planned = False
        if self._trim is not None:
            asyncio.get_running_loop().run_in_executor(None, self._trim, 0)
