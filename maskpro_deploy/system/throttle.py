"""Warnings that come too often are counted instead of written: what clients can cause, they must not be able to fill a log with.

    with throttled("uvicorn.error", "asyncio"):
        ...

A kind of warning is a logger, a message before its arguments are put in, and the type of the exception, if there is one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

MOST = 5  # of one kind in a period
PERIOD_S = 60.0
_MOST_KINDS = 64  # further kinds of a logger count as one
_OTHERS = "other messages"


@dataclass(slots=True)
class _Window:
    """What was seen of one kind since its period began."""

    began: float
    written: int = 0
    omitted: int = 0


class Throttle(logging.Filter):
    """A filter of a logger: lets `most` warnings of a kind pass in a period; the next one that passes says how many did not."""

    def __init__(self, most: int = MOST, period_s: float = PERIOD_S, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._most, self._period_s, self._clock = most, period_s, clock
        self._windows: dict[str, _Window] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written."""
        if record.levelno < logging.WARNING:
            return True
        now = self._clock()
        with self._lock:
            window = self._window_of(record, now)
            if now - window.began >= self._period_s:
                window.began, window.written = now, 0
            if window.written == self._most:
                window.omitted += 1
                return False
            window.written += 1
            omitted, window.omitted = window.omitted, 0
        if omitted:
            record.msg = f"{record.getMessage()} ({omitted} more like it were left out before)"
            record.args = ()
        return True

    def take_omitted(self) -> dict[str, int]:
        """What was left out and not told yet, by its kind; from now on it counts as told."""
        with self._lock:
            found = {kind: window.omitted for kind, window in self._windows.items() if window.omitted}
            for window in self._windows.values():
                window.omitted = 0
        return found

    def _window_of(self, record: logging.LogRecord, now: float) -> _Window:
        kind = str(record.msg).splitlines()[0][:200] if record.msg else ""
        if record.exc_info and record.exc_info[0] is not None:
            kind += f" [{record.exc_info[0].__name__}]"
        if kind not in self._windows and len(self._windows) >= _MOST_KINDS:
            kind = _OTHERS
        return self._windows.setdefault(kind, _Window(now))


@contextmanager
def throttled(*loggers: str) -> Iterator[None]:
    """For as long as the `with` block lasts these loggers are throttled; at its end they say what was left out last."""
    with ExitStack() as stack:
        for name in loggers:
            stack.enter_context(_throttled(logging.getLogger(name)))
        yield


@contextmanager
def _throttled(logger: logging.Logger) -> Iterator[None]:
    throttle = Throttle()
    logger.addFilter(throttle)
    try:
        yield
    finally:
        logger.removeFilter(throttle)
        for kind, count in throttle.take_omitted().items():
            logger.warning("%d warnings were left out: %s", count, kind)
