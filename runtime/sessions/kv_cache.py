"""The key/value cache, and batches of sequences of different lengths over it.

The graph takes the past as one array per layer and side with a common length `P`, and returns it one step longer. Sequences of
different lengths share it by left padding: every row ends at the same column, and the attention mask hides the columns before
a row's own start. Sequences join and leave between two steps; only then are the arrays copied. In between, what the graph
returned is handed back to it as it is.

Shapes: `B` rows, `S` new tokens, `P` past columns, `H` key/value heads, `D` head size, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from maskpro_deploy.runtime.sessions.base import Session

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class Cache(Protocol):
    """Keys and values of all layers for some rows; where and how they lie is the session's business."""

    @property
    def batch(self) -> int:
        """Rows."""

    @property
    def length(self) -> int:
        """Columns, padding on the left included."""

    def select(self, rows: Sequence[int], trim: int = 0) -> Self:
        """These rows, in this order and as often as named, without the first `trim` columns."""

    def join(self, other: Self) -> Self:
        """The rows of both, the shorter padded on the left."""


@dataclass(frozen=True, slots=True)
class KvCache:
    """Keys and values as arrays, or as onnxruntime's own values on their device.

    Attributes:
        values: key of layer 0, value of layer 0, key of layer 1, ...: each an array or, straight from the graph, an OrtValue
            on its device. Each `# (B, H, P, D)`
        batch: B.
        length: P, padding included.
    """

    values: tuple[Any, ...]
    batch: int
    length: int

    def arrays(self) -> list[npt.NDArray[Any]]:
        """The same as numpy arrays (on a CPU these are views)."""
        return [v if isinstance(v, np.ndarray) else v.numpy() for v in self.values]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(v.nbytes if isinstance(v, np.ndarray) else v.tensor_size_in_bytes() for v in self.values)

    def select(self, rows: Sequence[int], trim: int = 0) -> KvCache:
        """A copy of these rows, in this order and as often as named, without the first `trim` columns."""
        index = list(rows)
        values = tuple(np.ascontiguousarray(a[index, :, trim:]) for a in self.arrays())
        return KvCache(values, len(index), self.length - trim)

    def join(self, other: KvCache) -> KvCache:
        """The rows of both, the shorter padded on the left with zeros (which the mask hides)."""
        length = max(self.length, other.length)
        values = []
        for a, b in zip(self.arrays(), other.arrays(), strict=True):
            joined = np.zeros((self.batch + other.batch, a.shape[1], length, a.shape[3]), a.dtype)
            joined[: self.batch, :, length - self.length :] = a
            joined[self.batch :, :, length - other.length :] = b
            values.append(joined)
        return KvCache(tuple(values), self.batch + other.batch, length)


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences that take their decode steps together.

    Attributes:
        cache: what has been read of them.
        lengths: tokens of each row in the cache, padding not counted. `# (B,)`
    """

    cache: Cache
    lengths: Ints

    def step(self, session: Session, tokens: Ints) -> tuple[Floats, Batch]:
        """Read one more token of each row.

        Args:
            session: runs the graph.
            tokens: one token for each row. `# (B,)`

        Returns:
            The logits after it `# (B, V)`, and the batch one token longer.
        """
        mask = left_mask(self.lengths + 1, self.cache.length + 1)
        logits, cache = session.forward(tokens[:, None], self.cache, mask)
        return logits[:, -1], Batch(cache, self.lengths + 1)

    def keep(self, rows: Sequence[int]) -> Batch:
        """Only these rows (a row may be named more than once); columns that are padding for all of them go."""
        lengths = self.lengths[list(rows)]
        return Batch(self.cache.select(rows, trim=self.cache.length - int(lengths.max())), lengths)

    def join(self, other: Batch) -> Batch:
        """The rows of both."""
        return Batch(self.cache.join(other.cache), np.concatenate([self.lengths, other.lengths]))


class Prefill:
    """Reads several prompts into a batch, a chunk of columns at a time.

    Args:
        prompts: the tokens of each row; none empty.
        pad_token: what stands in the padding (the mask hides it).
    """

    def __init__(self, prompts: Sequence[Sequence[int]], pad_token: int = 0) -> None:
        self.lengths: Ints = np.array([len(p) for p in prompts], np.int64)  # (B,)
        self.width = int(self.lengths.max())
        self.done = 0
        self._tokens: Ints = np.full((len(prompts), self.width), pad_token, np.int64)  # (B, W)
        for row, prompt in zip(self._tokens, prompts, strict=True):
            row[self.width - len(prompt) :] = prompt
        self._mask = left_mask(self.lengths, self.width)
        self._cache: Cache | None = None

    @property
    def finished(self) -> bool:
        """Whether all columns have been read."""
        return self.done == self.width

    def advance(self, session: Session, columns: int) -> Floats:
        """Read up to `columns` more columns.

        Returns:
            Their logits, `# (B, S, V)`; column j of them is column `done - S + j` of the padded prompts.
        """
        end = min(self.done + columns, self.width)
        logits, self._cache = session.forward(self._tokens[:, self.done : end], self._cache, self._mask[:, :end])
        self.done = end
        return logits

    def batch(self) -> Batch:
        """The prompts, read."""
        assert self.finished
        assert self._cache is not None
        return Batch(self._cache, self.lengths)


def left_mask(lengths: Ints, columns: int) -> Ints:
    """1 in the last `lengths[i]` of `columns` columns of row i, 0 before. `# (B, columns)`."""
    return (np.arange(columns)[None, :] >= columns - lengths[:, None]).astype(np.int64)


def positions(mask: Ints, new: int) -> Ints:
    """Position of each of the last `new` columns within its own sequence; 0 in the padding. `mask (B, T)`, result `(B, S)`."""
    counted: Ints = np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, mask.shape[1] - new :]
    return counted
