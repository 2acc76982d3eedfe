"""Batches of sequences of different lengths over one cache.

Sequences share a cache by left padding: every row ends at the same column, and the attention mask hides the columns before a
row's own start. Sequences join and leave between two steps; only then are caches copied.

Shapes: `B` rows, `S` new tokens, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskpro_deploy.backends.caches import Cache, Ints
from maskpro_deploy.backends.session import Floats, Session


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences that take their decode steps together."""

    cache: Cache  # what has been read of them
    lengths: Ints  # tokens of each row in the cache, padding not counted. `# (B,)`

    def step(self, session: Session, tokens: Ints) -> tuple[Floats, Batch]:
        """Read one more token of each row, `tokens (B,)`: the logits after it `(B, V)`, and the batch one token longer."""
        lengths: Ints = self.lengths + 1
        padded = bool((self.lengths != self.cache.length).any())
        mask = left_mask(lengths, self.cache.length + 1) if padded else None
        logits, cache = session.forward(tokens[:, None], self.cache, mask)
        return logits[:, -1], Batch(cache, lengths)

    def keep(self, rows: Sequence[int]) -> Batch:
        """Only these rows (a row may be named more than once); columns that are padding for all of them go."""
        lengths = self.lengths[list(rows)]
        return Batch(self.cache.select(rows, trim=self.cache.length - int(lengths.max())), lengths)

    def join(self, other: Batch) -> Batch:
        """The rows of both."""
        return Batch(self.cache.join(other.cache), np.concatenate([self.lengths, other.lengths]))


class Prefill:
    """Reads several prompts, none empty, into a batch, a chunk of columns at a time; the mask hides `pad_token`.

    The first columns may have been read before: then `cache` holds them, and `done` begins behind them.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], cache: Cache | None = None, pad_token: int = 0) -> None:
        self.lengths: Ints = np.array([len(p) for p in prompts], np.int64)  # (B,)
        self.width = int(self.lengths.max())
        self.done = cache.length if cache is not None else 0
        self._tokens: Ints = np.full((len(prompts), self.width), pad_token, np.int64)  # (B, W)
        for row, prompt in zip(self._tokens, prompts, strict=True):
            row[self.width - len(prompt) :] = prompt
        self._mask = left_mask(self.lengths, self.width)
        self.cache = cache  # what has been read; None for nothing

    @property
    def finished(self) -> bool:
        """Whether all columns have been read."""
        return self.done == self.width

    def advance(self, session: Session, columns: int) -> Floats:
        """Read up to `columns` more: logits `(B, S, V)`; column j of them is column `done - S + j` of the padded prompts."""
        end = min(self.done + columns, self.width)
        logits, self.cache = session.forward(self._tokens[:, self.done : end], self.cache, self._mask[:, :end])
        self.done = end
        return logits

    def batch(self) -> Batch:
        """The prompts, read."""
        assert self.finished
        assert self.cache is not None
        return Batch(self.cache, self.lengths)


def left_mask(lengths: Ints, columns: int) -> Ints:
    """1 in the last `lengths[i]` of `columns` columns of row i, 0 before. `# (B, columns)`."""
    return (np.arange(columns)[None, :] >= columns - lengths[:, None]).astype(np.int64)
