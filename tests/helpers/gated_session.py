"""A session behind a gate, for tests that arrange what happens between two steps."""

from __future__ import annotations

import threading
import time

import numpy as np

from maskpro_deploy.backends.caches import Cache, Ints
from maskpro_deploy.backends.session import Floats, OpenSession


class GatedSession:
    """A real session whose steps wait for permission: what happens in between can be arranged without clocks."""

    def __init__(self, inner: OpenSession) -> None:
        self._inner = inner
        self.shape = inner.shape
        self.permits = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self.fail_with: BaseException | None = None
        self.nan_rows: tuple[int, ...] = ()

    def forward(self, tokens: Ints, cache: Cache | None = None, attention_mask: Ints | None = None) -> tuple[Floats, Cache]:
        self.entered.release()
        assert self.permits.acquire(timeout=30)
        if self.fail_with is not None:
            raise self.fail_with
        logits, longer = self._inner.forward(tokens, cache, attention_mask)
        logits = logits.copy()
        for row in self.nan_rows:
            logits[row] = np.nan
        return logits, longer

    def allow(self, steps: int) -> None:
        """Let this many steps pass."""
        for _ in range(steps):
            self.permits.release()

    def open(self) -> None:
        """Let everything pass."""
        self.allow(100_000)

    def trickle(self, seconds: float) -> None:
        """From now on let a step pass every so often."""

        def work() -> None:
            while True:
                time.sleep(seconds)
                self.permits.release()

        threading.Thread(target=work, daemon=True).start()
