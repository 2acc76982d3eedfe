"""What the rest of the runtime needs of a model that runs: read new tokens on top of a cache, get logits and the longer cache.

Shapes: `B` rows, `S` new tokens, `P` past tokens, `T = P + S`, `V` vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from maskpro_deploy.manifest import ModelShape
from maskpro_deploy.runtime.kv_cache import Cache, Floats, Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """What a session can take at once; None for no limit.

    Attributes:
        max_batch: rows in one call.
        max_prefill_rows: rows in one call with more than one new token each.
        max_cache_tokens: tokens that its device has memory for, over all rows.
    """

    max_batch: int | None = None
    max_prefill_rows: int | None = None
    max_cache_tokens: int | None = None


class Session(Protocol):
    """A model that reads tokens."""

    @property
    def shape(self) -> ModelShape:
        """Sizes and special tokens; `max_length` is what this session can run."""

    def forward(self, tokens: Ints, cache: Cache | None = None, attention_mask: Ints | None = None) -> tuple[Floats, Cache]:
        """Read tokens on top of a cache.

        Args:
            tokens: `# (B, S)`
            cache: what was read before; None for nothing.
            attention_mask: 1 where a token counts, 0 at padding on the left; None if all count. `# (B, T)`

        Returns:
            Logits after each token `# (B, S, V)`, and the longer cache. The old cache stays valid.
        """


class BaseSession(ABC):
    """A session with what can be said of all of them; made by `open_session`. Not to be called from two threads at once.

    Attributes:
        shape: the model's sizes and special tokens.
        providers: what runs it; the first takes all it can.
        limits: what it takes at once.
    """

    shape: ModelShape
    providers: tuple[str, ...]
    limits: SessionLimits = SessionLimits()

    @abstractmethod
    def forward(self, tokens: Ints, cache: Cache | None = None, attention_mask: Ints | None = None) -> tuple[Floats, Cache]:
        """See `Session.forward`."""

    def logits(self, tokens: Ints) -> Floats:
        """Logits after each token of whole rows, `tokens (B, T)`, result `(B, T, V)`."""
        return self.forward(tokens)[0]

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The `count` likeliest next tokens, one after the other; end-of-text does not end it."""
        out: list[int] = []
        cache: Cache | None = None
        tokens: Ints = np.array([list(prompt)], np.int64)
        while len(out) < count:
            logits, cache = self.forward(tokens, cache)
            out.append(int(np.argmax(logits[0, -1])))
            tokens = np.array([out[-1:]], np.int64)
        return out
