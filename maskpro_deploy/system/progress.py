"""Progress of long work: a line on stderr with rate and time left.

Library functions take a `Progress` and call `update`; the command line passes a `Meter`, tests and callers pass nothing
(`SILENT`). On a terminal the line is rewritten in place; elsewhere a line is printed every few seconds, so that logs stay short.
Work that tells nothing of itself is shown by the time it has taken (`waiting`).
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO


class Progress(Protocol):
    """What a library function needs in order to say how far it is."""

    def update(self, done: float, total: float, note: str = "") -> None:
        """Say that `done` of `total` units are finished (infinity: nobody knows); `note` is free text such as "loss 3.21"."""

    def close(self) -> None:
        """The work is over: finish the line."""


class _Silent:
    def update(self, done: float, total: float, note: str = "") -> None:
        pass

    def close(self) -> None:
        pass


SILENT: Progress = _Silent()
# where work of several stages asks for the progress of each: by what is going on ("exporting") and what is counted ("bytes")
Stages = Callable[[str, str], Progress]


def silent_stage(label: str, unit: str) -> Progress:
    """Stages that nobody watches."""
    return SILENT


_TICK_S = 0.2


@contextmanager
def waiting(progress: Progress, note: str) -> Iterator[None]:
    """Show, while the body runs, how long it has taken: for work of other libraries that do not say how far they are."""
    over = threading.Event()

    def tick() -> None:
        while not over.wait(_TICK_S):
            progress.update(0, math.inf, note)

    progress.update(0, math.inf, note)
    thread = threading.Thread(target=tick, name="maskpro-waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    progress.update(1, 1, note)


class Meter:
    """Progress on a stream, with rate and time left: `label` is such as "learning", `unit` such as "tokens", "bytes" or "s".

    A line is printed every `every_s` seconds, by default every 0.2 on a terminal and every 10 elsewhere; to stderr by default.
    """

    def __init__(self, label: str, unit: str, stream: TextIO | None = None, every_s: float | None = None) -> None:
        self._label, self._unit = label, unit
        self._stream = stream if stream is not None else sys.stderr
        self._terminal = self._stream.isatty()
        self._every_s = every_s if every_s is not None else (0.2 if self._terminal else 10.0)
        self._started = time.monotonic()
        self._first: tuple[float, float] | None = None  # done and time at the first update
        self._printed = -float("inf")
        self._last = ""

    def update(self, done: float, total: float, note: str = "") -> None:
        now = time.monotonic()
        if self._first is None:  # neither resumed work nor the time of preparing counts towards the rate
            self._first = (done, now)
        self._last = self._line(done, total, note, now)
        if now - self._printed >= self._every_s or done >= total:
            self._printed = now
            self._print(self._last)

    def close(self) -> None:
        if self._terminal and self._last:
            self._stream.write("\n")
            self._stream.flush()

    def _line(self, done: float, total: float, note: str, now: float) -> str:
        before, since = self._first or (done, now)
        rate = (done - before) / (now - since) if now > since else 0.0
        if math.isinf(total):
            return f"{self._label}: {clock(now - self._started)}  {note}".rstrip()
        percent = 100.0 * done / total if total > 0 else 100.0
        parts = [f"{self._label}: {percent:3.0f} %"]
        if self._unit != "s":
            parts.append(f"{_short(done)}/{_short(total)} {self._unit}")
            if rate > 0:
                parts.append(f"{_short(rate)} {self._unit}/s")
        if rate > 0 and done < total:
            parts.append(f"{clock((total - done) / rate)} left")
        else:
            parts.append(clock(now - self._started))
        return "  ".join([*parts, note]).rstrip()

    def _print(self, line: str) -> None:
        self._stream.write(f"\r\x1b[2K{line}" if self._terminal else f"{line}\n")
        self._stream.flush()


class Meters:
    """A meter for each stage of some work: its line ends where the next stage begins."""

    def __init__(self) -> None:
        self._meter: Meter | None = None

    def __call__(self, label: str, unit: str) -> Meter:
        self.close()
        self._meter = Meter(label, unit)
        return self._meter

    def close(self) -> None:
        if self._meter is not None:
            self._meter.close()


def _short(value: float) -> str:
    """A number of at most four digits with its SI letter: 1234567 -> 1.23M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def clock(seconds: float) -> str:
    """Seconds as people read them: 75 -> 1m15s."""
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"
