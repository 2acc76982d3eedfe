"""What the rest of the runtime needs of a model that runs: read new tokens on top of a cache, get logits and the longer cache.

Shapes: `B` rows, `S` new tokens, `P` past tokens, `T = P + S`, `V` vocabulary.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from maskpro_deploy.errors import InputError
from maskpro_deploy.manifest import Graph, ModelShape
from maskpro_deploy.runtime.sessions.executor import Reach, choose, longest
from maskpro_deploy.runtime.sessions.kv_cache import Cache, Floats, Ints


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

    Args:
        shape: the model's sizes and special tokens.
        graph: the bundle's graph that it runs; of an engine, the one that it was built from.
        providers: what runs it; the first takes all it can.
        reaches: what the profiles of an engine cover; empty where any shape can be run.
        max_cache_tokens: tokens that the device has memory for, where that is known.

    Attributes:
        shape: as given; `max_length` is what this session can run.
        graph: as given.
        providers: as given.
        limits: what it takes at once.

    Raises:
        InputError: no profile reads one token on top of others.
    """

    def __init__(
        self,
        shape: ModelShape,
        graph: Graph,
        providers: Sequence[str],
        reaches: Sequence[Reach] = (),
        max_cache_tokens: int | None = None,
    ) -> None:
        self.graph = graph
        self.providers = tuple(providers)
        self.shape = shape
        self.limits = SessionLimits(max_cache_tokens=max_cache_tokens)
        self._reaches = reaches
        if reaches:
            rows, length, several = longest(reaches)
            if not rows:
                raise InputError(
                    "no profile of the engine reads one token on top of others, so it cannot generate.\n"
                    "Build it again with a decode profile."
                )
            self.shape = dataclasses.replace(shape, max_length=min(shape.max_length, length))
            self.limits = dataclasses.replace(self.limits, max_batch=rows, max_prefill_rows=several)

    def forward(self, tokens: Ints, cache: Cache | None = None, attention_mask: Ints | None = None) -> tuple[Floats, Cache]:
        """See `Session.forward`.

        Raises:
            InputError: more rows than the engine was built for.
        """
        batch, new = tokens.shape
        past = 0 if cache is None else cache.length
        mask: Ints = np.ones((batch, past + new), np.int64) if attention_mask is None else attention_mask
        if (cache is not None and cache.batch != batch) or mask.shape != (batch, past + new):
            raise ValueError(f"tokens {tokens.shape} and mask {mask.shape} do not fit a cache of {past} columns")
        if self.limits.max_batch is not None and batch > self.limits.max_batch:
            raise InputError(
                f"{batch} rows at once, but the engine was built for {self.limits.max_batch}.\nBuild it with --max-batch {batch}."
            )
        parts: list[Floats] = []
        done = 0
        while done < new:  # an engine may read a long prompt in several calls
            logits, cache = self._read(tokens[:, done:], cache, mask)
            parts.append(logits)
            done += logits.shape[1]
        assert cache is not None
        return (parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)), cache

    @abstractmethod
    def _read(self, tokens: Ints, cache: Cache | None, mask: Ints) -> tuple[Floats, Cache]:
        """Read as many of the columns as one call can: at least one.

        Args:
            tokens: `# (B, S)`
            cache: what was read before.
            mask: for the cache and all of `tokens`. `# (B, T)`

        Returns:
            Logits of the columns that were read, and the longer cache.
        """

    def _profile(self, rows: int, past: int, wanted: int) -> tuple[int, int]:
        """The profile for a call, and how many new tokens it reads.

        Raises:
            InputError: none takes it.
        """
        if not self._reaches:
            return 0, wanted
        found = choose(self._reaches, rows, past, wanted)
        if found is None:
            raise InputError(
                f"no profile of the engine takes {rows} rows with {past} tokens before the new ones.\n"
                f"Build it with profiles that do, or give a smaller --max-num-seqs or --max-model-len."
            )
        return found

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
