"""What was read of earlier prompts and answers, kept to be used again: blocks of tokens with their keys and values.

Blocks have a fixed number of tokens. A block's key is the SHA-256 of the key before it and of its own tokens, so it stands for
all tokens from the start of the text: equal keys mean equal texts. A prefix is found by looking up keys, one after the other.

Blocks are in order of their last use. A block is used together with those before it, and they count as used after it. So the
block that is evicted first never has a kept one behind it, and what is kept can always be found.
"""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from maskpro_deploy.backends.cache_pieces import Divisible, assemble, cut
from maskpro_deploy.backends.caches import Cache, Ints, PackedCache, SlotCache
from maskpro_deploy.errors import MachineError

Keys = list[bytes]  # of the whole blocks of a text, first to last


class PrefixStore:
    """Blocks of `block` tokens each, `limit` tokens at most; with a `block` of 0 nothing is ever kept or found."""

    def __init__(self, block: int, limit: int) -> None:
        self.block = block
        self.limit = limit
        self._blocks: OrderedDict[bytes, PackedCache] = OrderedDict()  # least recently used first
        self._kind: type[Divisible] = PackedCache  # the kind of cache that they were cut out of

    @property
    def tokens(self) -> int:
        """Tokens that are kept."""
        return len(self._blocks) * self.block

    def keys(self, text: Sequence[int]) -> Keys:
        """The keys of a text's whole blocks."""
        if not self.block:
            return []
        data, size, key, keys = np.asarray(text, np.int64).tobytes(), 8 * self.block, b"", []
        for start in range(0, len(data) - size + 1, size):
            key = hashlib.sha256(key + data[start : start + size]).digest()
            keys.append(key)
        return keys

    def count(self, keys: Keys) -> int:
        """How many of the first blocks are kept."""
        return next((i for i, key in enumerate(keys) if key not in self._blocks), len(keys))

    def restore(self, rows: Sequence[Keys], lengths: Ints, room: int) -> Cache:
        """A cache whose rows begin with the first tokens of texts, all of which have to be kept.

        Args:
            rows: the keys of each text.
            lengths: tokens of each row; 0 for none, but not for all. `# (B,)`
            room: tokens that the longest row is going to have.
        """
        used = [keys[: -(-length // self.block)] for keys, length in zip(rows, lengths.tolist(), strict=True)]
        for keys in used:
            self._touch(keys)
        return assemble(self._kind, [[self._blocks[key] for key in keys] for keys in used], lengths, room)

    def save(self, keys: Keys, cache: Cache, row: int, column: int) -> None:
        """Keep these blocks of a text that a cache's row holds from a column on, as far as the limit and the memory allow.

        Blocks of other texts make room, the least recently used first.
        """
        if not isinstance(cache, PackedCache | SlotCache):  # a session with caches of its own: there is nothing to keep, ever
            self.block = 0
            return
        self._kind = type(cache)
        memory = (cache.layout if isinstance(cache, PackedCache) else cache.buffer.layout).memory
        memory.on_shortage = None  # one more block is no reason to give all up
        held, own = self.count(keys), frozenset(keys)
        self._touch(keys[:held])
        for i in range(held, len(keys)):
            piece = self._cut(cache, row, column + i * self.block, own)
            if piece is None:
                break
            self._blocks[keys[i]] = piece
        self._touch(keys[: self.count(keys)])
        memory.on_shortage = weakref.WeakMethod(self.clear)

    def resize(self, limit: int) -> None:
        """Set the limit, and keep no more than that."""
        self.limit = limit
        while self.tokens > limit:
            self._blocks.popitem(last=False)

    def clear(self) -> None:
        """Keep nothing."""
        self._blocks.clear()

    def _touch(self, keys: Keys) -> None:
        """These have been used; all of them are kept."""
        for key in reversed(keys):
            self._blocks.move_to_end(key)

    def _cut(self, cache: Divisible, row: int, column: int, own: frozenset[bytes]) -> PackedCache | None:
        """One more block, if need be in the place of others that are none of `own`; None if there is no room."""
        while self.tokens + self.block > self.limit:
            if not self._evict(own):
                return None
        while True:
            try:
                return cut(cache, row, column, self.block)
            except MachineError:
                if not self._evict(own):
                    return None

    def _evict(self, own: frozenset[bytes]) -> bool:
        """Whether a block could be given up."""
        oldest = next(iter(self._blocks), None)
        if oldest is None or oldest in own:
            return False
        del self._blocks[oldest]
        return True
