"""The store of prefixes: never a wrong hit, never more than the limit, and what is kept can be found."""

from __future__ import annotations

import ctypes
import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskpro_deploy.backends.cache_pieces import Divisible
from maskpro_deploy.backends.caches import Buffer, Layout, PackedCache, SlotCache
from maskpro_deploy.backends.memory import HostDevice, Memory, OutOfDeviceMemory
from maskpro_deploy.runtime.sessions.prefixes import PrefixStore

TENSORS, HEADS, VECTOR = 3, 2, 8
BLOCK = 2
KINDS = (PackedCache, SlotCache)


def make_layout(device: HostDevice | None = None) -> Layout:
    return Layout(memory=Memory(device or HostDevice()), tensors=TENSORS, heads=HEADS, vector=VECTOR)


def vectors(text: list[int]) -> np.ndarray:
    """What a model would keep of a text: bytes that depend on each token and on all before it.  # (N, H, T, VECTOR)"""

    def one(tensor: int, head: int, end: int) -> bytes:
        return hashlib.sha256(repr((tensor, head, text[:end])).encode()).digest()[:VECTOR]

    rows = [[b"".join(one(n, h, end + 1) for end in range(len(text))) for h in range(HEADS)] for n in range(TENSORS)]
    return np.frombuffer(b"".join(b"".join(r) for r in rows), np.uint8).reshape(TENSORS, HEADS, len(text), VECTOR)


def memory_of(cache: Divisible, row: int, column: int, tokens: int) -> list[np.ndarray]:
    """A row's tokens in a cache, one view for each tensor and head.  # (tokens * VECTOR,)"""
    if isinstance(cache, SlotCache):
        column -= cache.length - int(cache.lengths[row])
        place = cache.buffer.place(row, column)
    else:
        place = cache.place(row, column)
    starts = [place.address + n * place.stride + h * place.tokens * VECTOR for n in range(TENSORS) for h in range(HEADS)]
    return [np.frombuffer((ctypes.c_uint8 * (tokens * VECTOR)).from_address(s), np.uint8) for s in starts]


def write(kind: type[Divisible], layout: Layout, texts: list[list[int]]) -> Divisible:
    """A cache that has read texts."""
    lengths = np.array([len(t) for t in texts], np.int64)
    columns = int(lengths.max())
    cache: Divisible
    if kind is SlotCache:
        cache = SlotCache(Buffer(layout, len(texts) + 1, columns + 3), lengths, columns)
    else:
        cache = PackedCache.make(layout, len(texts), columns)
    for row, text in enumerate(texts):
        values = vectors(text).reshape(TENSORS * HEADS, -1)
        for view, value in zip(memory_of(cache, row, columns - len(text), len(text)), values, strict=True):
            view[:] = value
    return cache


def read(cache: Divisible, row: int, column: int, tokens: int) -> np.ndarray:
    return np.stack(memory_of(cache, row, column, tokens)).reshape(TENSORS, HEADS, tokens, VECTOR)


texts = st.lists(st.integers(0, 2), min_size=1, max_size=11)
moves = st.lists(
    st.one_of(
        st.tuples(st.just("save"), st.lists(texts, min_size=1, max_size=3)),
        st.tuples(st.just("use"), st.lists(texts, min_size=1, max_size=3)),
        st.tuples(st.just("resize"), st.integers(0, 20)),
    ),
    max_size=12,
)


@pytest.mark.parametrize("kind", KINDS)
@given(moves=moves, limit=st.integers(0, 20))
def test_whatever_happens_hits_are_right_and_the_limit_holds(
    kind: type[Divisible], moves: list[tuple[str, list[list[int]] | int]], limit: int
) -> None:
    """Texts of three tokens share many prefixes; each restored row holds exactly the bytes that its own text gave."""
    layout = make_layout()
    store = PrefixStore(BLOCK, limit)
    saved: set[tuple[int, ...]] = set()
    for move, value in moves:
        if isinstance(value, int):
            store.resize(value)
        elif move == "save":
            cache = write(kind, layout, value)
            for row, text in enumerate(value):
                store.save(store.keys(text), cache, row, cache.length - len(text))
                saved |= {tuple(text[:end]) for end in range(BLOCK, len(text) + 1, BLOCK)}
        else:
            keys = [store.keys(text) for text in value]
            held = [store.count(k) * BLOCK for k in keys]
            assert all(tuple(t[:n]) in saved for t, n in zip(value, held, strict=True) if n)
            lengths = np.array([max(0, n - row) for row, n in enumerate(held)], np.int64)  # parts of blocks, too
            if lengths.any():
                restored = store.restore(keys, lengths, 12)
                assert isinstance(restored, kind)
                for row, (text, length) in enumerate(zip(value, lengths.tolist(), strict=True)):
                    found = read(restored, row, restored.length - length, length)
                    np.testing.assert_array_equal(found, vectors(text)[:, :, :length])
        assert store.tokens <= store.limit
        assert all_found(store, saved)


def all_found(store: PrefixStore, saved: set[tuple[int, ...]]) -> bool:
    """Whether every block that takes memory can be found by the text that it is of."""
    return store.tokens == BLOCK * sum(store.count(keys) == len(keys) for keys in map(store.keys, saved))


def test_what_was_used_last_stays_longest() -> None:
    layout, store = make_layout(), PrefixStore(BLOCK, 8)
    system = [1, 1, 1, 1]
    for text in ([*system, 2, 2], [*system, 3, 3]):
        store.save(store.keys(text), write(PackedCache, layout, [text]), 0, 0)
    assert store.tokens == 8, "the system prompt is kept once"
    store.save(store.keys([*system, 4, 4]), write(PackedCache, layout, [[*system, 4, 4]]), 0, 0)
    assert [store.count(store.keys([*system, n, n])) for n in (2, 3, 4)] == [2, 3, 3]


def test_a_text_longer_than_the_limit_keeps_its_beginning() -> None:
    layout, store = make_layout(), PrefixStore(BLOCK, 5)
    other, text = [9, 9], [1, 2, 3, 4, 5, 6, 7, 8]
    store.save(store.keys(other), write(PackedCache, layout, [other]), 0, 0)
    store.save(store.keys(text), write(PackedCache, layout, [text]), 0, 0)
    assert (store.count(store.keys(text)), store.count(store.keys(other))) == (2, 0)


def test_without_blocks_nothing_is_kept() -> None:
    store = PrefixStore(0, 100)
    store.save(store.keys([1, 2, 3]), write(PackedCache, make_layout(), [[1, 2, 3]]), 0, 0)
    assert (store.keys([1, 2, 3]), store.tokens) == ([], 0)


class FullDevice(HostDevice):
    """A device with room for so many bytes."""

    room = 1 << 14

    def allocate(self, nbytes: int) -> int:
        if sum(block.nbytes for block in self._blocks.values()) + nbytes > self.room:
            raise OutOfDeviceMemory
        return super().allocate(nbytes)


def test_prefixes_give_way_where_memory_is_short() -> None:
    """A cache that needs the memory gets it: no error before the last prefix has gone, and none from keeping one more."""
    device = FullDevice()
    layout, store = make_layout(device), PrefixStore(BLOCK, 10_000)
    for first in range(200):
        text = [first, 1, 2, 3]
        store.save(store.keys(text), write(PackedCache, layout, [text]), 0, 0)
    assert store.tokens >= BLOCK * 8, "one more takes the place of one or two, not of all"
    assert store.count(store.keys([199, 1, 2, 3])) == 2
    large = PackedCache.make(layout, 1, 3 * device.room // 4 // layout.token)
    assert large.block.nbytes > device.room // 2
    assert store.tokens == 0
