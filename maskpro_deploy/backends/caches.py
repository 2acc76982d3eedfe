"""Key/value caches in device memory, in the two ways that graphs keep them.

*Packed* (the `cat` form): every step writes a whole new cache, one token longer, and the old one stays what it was. Two blocks of
memory take turns.

*Slots* (the `static` and `gqa` forms): a step writes the new tokens into free slots of the same memory. The old cache sees fewer
slots and stays what it was, so many caches can share a buffer, as long as none writes where another one reads; a cache that would
is copied first.

Shapes: `N` tensors (keys and values of all layers), `B` rows, `H` key/value heads, `P` tokens, `L` slots, `D` head size.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from maskpro_deploy.backends.memory import Block, Memory

_ALIGNMENT = 256
_SLOT_STEP = 64  # slots are added so many at a time

Ints = npt.NDArray[np.int64]


class Cache(Protocol):
    """Keys and values of all layers for some rows; where and how they are kept is the session's business."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Sizes of a cache."""

    memory: Memory
    tensors: int  # N and H
    heads: int
    vector: int  # bytes of one head of one token
    most_rows: int | None = None  # rows that a buffer need not have more room than; None for no limit
    slots: int | None = None  # L, where it is fixed

    @property
    def token(self) -> int:
        """Bytes of one token in all tensors."""
        return self.tensors * self.heads * self.vector

    def stride(self, rows: int, tokens: int) -> int:
        """Bytes from one tensor to the next."""
        return max(_ALIGNMENT, -(-rows * self.heads * tokens * self.vector // _ALIGNMENT) * _ALIGNMENT)

    def take(self, rows: int, tokens: int) -> Block:
        """Memory for all tensors of a cache."""
        return self.memory.take(self.tensors * self.stride(rows, tokens))

    def copy(self, target: Place, source: Place, tokens: int, rows: int = 1) -> None:
        """Copy `tokens` tokens of each of some rows that follow one another, in all tensors."""
        pitches = target.tokens * self.vector, source.tokens * self.vector
        height = rows * self.heads
        if (target.stride, source.stride) == (height * pitches[0], height * pitches[1]):  # all tensors are one run of rows
            size = tokens * self.vector
            self.memory.device.copy(target.address, pitches[0], source.address, pitches[1], size, self.tensors * height)
            return
        for i in range(self.tensors):
            self.memory.device.copy(
                target.address + i * target.stride,
                pitches[0],
                source.address + i * source.stride,
                pitches[1],
                tokens * self.vector,
                height,
            )


@dataclass(frozen=True, slots=True)
class Place:
    """A row's tokens from some token on: address in the first tensor, bytes from tensor to tensor, tokens from head to head."""

    address: int
    stride: int
    tokens: int


class PackedCache:
    """A cache of exactly its length: `batch` is B, `length` P."""

    def __init__(self, layout: Layout, block: Block, batch: int, length: int) -> None:
        self.layout = layout
        self.block = block  # (N, B, H, P, D)
        self.batch = batch
        self.length = length
        self._stride = layout.stride(batch, length)

    @classmethod
    def make(cls, layout: Layout, batch: int, length: int) -> Self:
        """One with undefined content."""
        return cls(layout, layout.take(batch, length), batch, length)

    def addresses(self) -> list[int]:
        """Where each tensor begins.  # (N,)"""
        first, stride = self.block.address, self._stride
        return list(range(first, first + stride * self.layout.tensors, stride))

    def place(self, row: int, token: int) -> Place:
        """A row from a token on."""
        per_row = self.layout.heads * self.length * self.layout.vector
        start = self.block.address + row * per_row + token * self.layout.vector
        return Place(start, self._stride, self.length)

    def select(self, rows: Sequence[int], trim: int = 0) -> Self:
        made = self.make(self.layout, len(rows), self.length - trim)
        for new, old, count in _runs(rows):
            self.layout.copy(made.place(new, 0), self.place(old, trim), made.length, count)
        return made

    def join(self, other: Self) -> Self:
        made = self.make(self.layout, self.batch + other.batch, max(self.length, other.length))
        if self.length != other.length:  # padding is hidden, but it must not be NaN
            self.layout.memory.device.zero(made.block.address, self.layout.tensors * made._stride)
        for first, part in ((0, self), (self.batch, other)):
            self.layout.copy(made.place(first, made.length - part.length), part.place(0, 0), part.length, part.batch)
        return made


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Rows that follow one another, together: (index in `rows`, first row, how many)."""
    start = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] != rows[i - 1] + 1:
            yield start, rows[start], i - start
            start = i


class Buffer:
    """Memory with room for some rows of some slots, and the caches in it."""

    def __init__(self, layout: Layout, rows: int, slots: int) -> None:
        self.layout = layout
        self.rows = rows
        self.slots = slots
        self.block = layout.take(rows, slots)  # (N, rows, H, slots, D)
        # what no token was written to is read under a mask, and must not be NaN there
        layout.memory.device.zero(self.block.address, layout.tensors * self.stride)
        self.caches: weakref.WeakSet[SlotCache] = weakref.WeakSet()

    @property
    def stride(self) -> int:
        return self.layout.stride(self.rows, self.slots)

    @property
    def row_bytes(self) -> int:
        """Bytes from row to row."""
        return self.layout.heads * self.slots * self.layout.vector

    def addresses(self, row: int = 0) -> list[int]:
        """Where each tensor's row begins.  # (N,)"""
        first, stride = self.block.address + row * self.row_bytes, self.stride
        return list(range(first, first + stride * self.layout.tensors, stride))

    def place(self, row: int, slot: int = 0) -> Place:
        """A row from a slot on."""
        return Place(self.block.address + row * self.row_bytes + slot * self.layout.vector, self.stride, self.slots)


class SlotCache:
    """Rows of a buffer, each from slot 0 to its own length."""

    def __init__(self, buffer: Buffer, lengths: Ints, length: int) -> None:
        self.buffer = buffer
        self.lengths = lengths  # tokens of each row. `# (B,)`
        self.length = length  # columns as the rest of the runtime counts them: tokens of the longest row, or more
        buffer.caches.add(self)

    @classmethod
    def make(cls, layout: Layout, batch: int, slots: int) -> Self:
        """Rows without tokens."""
        return cls(Buffer(layout, batch, slots), np.zeros(batch, np.int64), 0)

    @property
    def batch(self) -> int:
        return len(self.lengths)

    def make_writable(self, slots: int, rows: int, fixed: int | None) -> SlotCache:
        """This cache, where the slots behind its tokens may be written; a copy if they hold what others read, or are too few.

        A copy has room for `rows` rows, and `fixed` slots (L, where it is fixed).
        """
        others = [c for c in self.buffer.caches if c is not self]
        if slots <= self.buffer.slots and all(_writes_apart(self.lengths, c.lengths) for c in others):
            return self
        wanted = fixed or max(slots_for(slots), self.buffer.slots if slots <= self.buffer.slots else self.buffer.slots * 3 // 2)
        return self._copy(range(self.batch), max(rows, self.batch), wanted, self.length)

    def grow(self, lengths: Ints, length: int) -> SlotCache:
        """The cache after tokens were written behind this one's.  # lengths: (B,)"""
        return SlotCache(self.buffer, lengths, length)

    def select(self, rows: Sequence[int], trim: int = 0) -> SlotCache:
        if list(rows) == list(range(len(rows))):
            return SlotCache(self.buffer, self.lengths[: len(rows)], self.length - trim)
        room = max(len(rows), min(self.buffer.rows, 2 * len(rows)))  # others will join
        return self._copy(rows, room, self.buffer.slots, self.length - trim)

    def join(self, other: SlotCache) -> SlotCache:
        slots, batch = max(self.buffer.slots, other.buffer.slots), self.batch + other.batch
        room = batch <= self.buffer.rows and slots == self.buffer.slots
        if room and all(c.batch <= self.batch for c in self.buffer.caches):
            buffer = self.buffer
        else:
            # room for more: the next to join need no copy of all
            wanted = max(batch, min(2 * self.buffer.rows, self.buffer.layout.most_rows or 2 * self.buffer.rows))
            buffer = self._copy(range(self.batch), wanted, slots, self.length).buffer
        self._fill(buffer, self.batch, other, range(other.batch))
        return SlotCache(buffer, np.concatenate([self.lengths, other.lengths]), max(self.length, other.length))

    def _copy(self, rows: Sequence[int], room: int, slots: int, length: int) -> SlotCache:
        buffer = Buffer(self.buffer.layout, room, slots)
        self._fill(buffer, 0, self, rows)
        return SlotCache(buffer, self.lengths[list(rows)], length)

    def _fill(self, buffer: Buffer, first: int, source: SlotCache, rows: Sequence[int]) -> None:
        for i, row in enumerate(rows):
            if tokens := int(source.lengths[row]):
                buffer.layout.copy(buffer.place(first + i), source.buffer.place(row), tokens)


def _writes_apart(mine: Ints, others: Ints) -> bool:
    """Whether what is written behind my tokens is behind the others' tokens too."""
    shared = min(len(mine), len(others))
    return bool((others[:shared] <= mine[:shared]).all())


def slots_for(tokens: int) -> int:
    """Slots to make for so many tokens."""
    return -(-tokens // _SLOT_STEP) * _SLOT_STEP
