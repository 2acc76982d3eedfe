"""Pieces of caches: keys and values of a few tokens of one row, cut out of one cache and put at the start of another.

A piece is a copy in the device's memory, so it depends on no cache. Keys hold their positions, so a piece fits only where the
same tokens come before it: at the same place of a row, whatever the padding and the other rows are. All forms of the cache have
them.

Shapes: `B` rows; a piece is a `PackedCache` of one row.
"""

from __future__ import annotations

from collections.abc import Sequence

from maskpro_deploy.backends.caches import Buffer, Ints, PackedCache, Place, SlotCache, slots_for

Divisible = PackedCache | SlotCache  # caches that pieces can be cut out of


def cut(cache: Divisible, row: int, column: int, tokens: int) -> PackedCache:
    """Copy `tokens` tokens of a row from a column on; MachineError if the device has no memory for them."""
    piece = PackedCache.make(cache.layout if isinstance(cache, PackedCache) else cache.buffer.layout, 1, tokens)
    piece.layout.copy(piece.place(0, 0), _place(cache, row, column), tokens)
    return piece


def assemble(kind: type[Divisible], rows: Sequence[Sequence[PackedCache]], lengths: Ints, room: int) -> Divisible:
    """A cache whose rows begin with the tokens of pieces, padded on the left.

    Args:
        kind: the kind of cache that the pieces were cut out of.
        rows: the pieces of each row, from its first token on; of the last one, what is needed. At least one row has some.
        lengths: tokens of each row; 0 for none. `# (B,)`
        room: tokens that the longest row is going to have: the cache need not be copied before.

    Raises:
        MachineError: the device has no memory for it.
    """
    layout = next(piece.layout for row in rows for piece in row)
    columns = int(lengths.max())
    cache: Divisible
    if issubclass(kind, SlotCache):
        cache = SlotCache(Buffer(layout, len(rows), layout.slots or slots_for(room)), lengths, columns)
    else:
        cache = PackedCache.make(layout, len(rows), columns)
        if (lengths != columns).any():  # padding is hidden, but it must not be NaN
            layout.memory.device.zero(cache.block.address, layout.tensors * layout.stride(len(rows), columns))
    for row, (pieces, length) in enumerate(zip(rows, lengths.tolist(), strict=True)):
        done = 0
        for piece in pieces:
            count = min(piece.length, length - done)
            layout.copy(_place(cache, row, columns - length + done), piece.place(0, 0), count)
            done += count
    return cache


def _place(cache: Divisible, row: int, column: int) -> Place:
    """Where a row's token of a column is."""
    if isinstance(cache, PackedCache):
        return cache.place(row, column)
    return cache.buffer.place(row, column - cache.length + int(cache.lengths[row]))
