"""Masks as planes and as bits: the N highest of every group, one bit a weight, and the frozen weight under such a mask.

A sorting network finds the highest without an index or a branch: each comparator is one minimum and one maximum over all groups.
As bits, eight weights share a byte, first weight first, as `numpy.packbits` has them. A masked weight is made from the bytes by
one table look-up and one bitwise and: no mask is held in the weight's own dtype, and what is dropped becomes +0.0, never -0.0.

Shapes: `M` weights in a group, `G` groups, `n = M * G` weights of a layer in row-major order; planes are (M, G).
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor


@functools.cache
def network(m: int) -> tuple[tuple[int, int], ...]:
    """Comparators (i, j), i < j, that sort m numbers: Batcher's merge exchange (Knuth, TAOCP 3, 5.2.2, algorithm M)."""
    comparators = []
    t = max(1, (m - 1).bit_length())
    p = 1 << (t - 1)
    while p > 0:
        q, r, d = 1 << (t - 1), 0, p
        while True:
            comparators += [(i, i + d) for i in range(m - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return tuple(comparators)


def cut(planes: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The n-th and the (n + 1)-th highest number of every group.  # (M, G) -> (G,), (G,)"""
    if planes.shape[0] == 4 and n == 2:
        high, low = torch.maximum(planes[::2], planes[1::2]), torch.minimum(planes[::2], planes[1::2])  # (2, G)
        a, b = torch.minimum(high[0], high[1]), torch.maximum(low[0], low[1])
        return torch.maximum(a, b), torch.minimum(a, b)
    wires = list(planes)
    for i, j in network(len(wires)):
        wires[i], wires[j] = torch.maximum(wires[i], wires[j]), torch.minimum(wires[i], wires[j])
    return wires[n - 1], wires[n]


def centre(planes: Tensor, n: int) -> Tensor:
    """Numbers relative to the cut, half-way between the n-th and the (n + 1)-th highest.  # (M, G) -> (M, G)"""
    if planes.shape[0] == 4 and n == 2:
        high, low = torch.maximum(planes[:2], planes[2:]), torch.minimum(planes[:2], planes[2:])  # (2, G)
        twice = torch.minimum(high[0], high[1]).add_(torch.maximum(low[0], low[1]))  # both middle ones, in whatever order
        return planes.sub(twice, alpha=0.5)
    last, following = cut(planes, n)
    return planes - torch.lerp(following, last, 0.5)


def top(planes: Tensor, n: int) -> Tensor:
    """The mask of the n highest of every group; of equal ones those that come first.  # (M, G) -> (M, G) boolean"""
    least = cut(planes, n)[0]
    return _fill(planes > least, planes == least, n)


def top_of_centred(planes: Tensor, n: int) -> Tensor:
    """The mask of the n highest where the cut is known to be 0, and -0.0 counts as lower than +0.0.

    At most n numbers of a group are above 0, at least n are not below.  # (M, G) float16 -> (M, G) boolean
    """
    bits = planes.view(torch.int16)  # integers compare several times faster, and show the sign of a zero
    sign = bits >> 15  # 0, or -1 below zero
    if planes.device.type == "cpu" and not torch.compiler.is_compiling():  # asking a GPU would make it wait
        kept = (sign + 1).to(torch.uint8).view(torch.bool)
        count = _count(kept)
        if int(count.amin()) == n == int(count.amax()):  # nearly always
            return kept
    kept = _fill(bits > 0, bits == 0, n)
    return _fill(kept, bits == -(1 << 15), n)


def _count(kept: Tensor) -> Tensor:
    """How many are kept.  # (M, G) boolean -> (G,) uint8"""
    planes = as_bytes(kept)
    filled = planes[0] + planes[1]
    for plane in planes[2:]:
        filled += plane
    return filled


def _fill(kept: Tensor, equal: Tensor, n: int) -> Tensor:
    """Add of those on the cut as many as are missing, first ones first.  # (M, G), (M, G) boolean -> (M, G)"""
    filled = _count(kept)
    for i in range(len(kept)):
        taken = equal[i].logical_and_(filled < n)
        filled += as_bytes(taken)
        kept[i].logical_or_(taken)
    return kept


def pack(kept: Tensor) -> Tensor:
    """Bits of a mask given as planes.  # (M, G) boolean -> (ceil(n / 8),) uint8"""
    m, groups = kept.shape
    planes = as_bytes(kept)
    if 8 % m == 0 and groups % (8 // m) == 0:
        byte = _fold(planes)  # (G,): m bits each
        while m < 8:  # two neighbours share a byte
            pair = byte.view(-1, 2)
            byte = (pair[:, 0] << m).bitwise_or_(pair[:, 1])
            m *= 2
        return byte
    flat = planes.t().reshape(-1)
    if rest := -len(flat) % 8:
        flat = torch.cat([flat, flat.new_zeros(rest)])
    return _fold(flat.view(-1, 8).t())


def as_bytes(mask: Tensor) -> Tensor:
    """Ones and zeros: the same memory, except in compiled code, which cannot look at booleans as numbers.  # boolean -> uint8"""
    return mask.to(torch.uint8) if torch.compiler.is_compiling() else mask.view(torch.uint8)


def _fold(planes: Tensor) -> Tensor:
    """The number whose binary digits are the planes, first plane first.  # (m, G) -> (G,)"""
    number = planes[0].clone()
    for plane in planes[1:]:
        number.bitwise_left_shift_(1).bitwise_or_(plane)
    return number


def unpack(packed: Tensor, count: int) -> Tensor:
    """The mask of `count` weights.  # (ceil(n / 8),) uint8 -> (n,) boolean"""
    return torch.nn.functional.embedding(packed.int(), _boolean_table(packed.device)).view(-1)[:count].bool()


def flips(packed: Tensor, other: Tensor, m: int, count: int) -> int:
    """In how many groups two masks differ."""
    differs = packed ^ other
    if not differs.any():
        return 0
    return int(unpack(differs, count).view(-1, m).any(1).sum())


def apply_mask(weight: Tensor, packed: Tensor) -> Tensor:
    """The weight where its mask has a one, +0.0 elsewhere.  # (O, C), (ceil(n / 8),) uint8 -> (O, C)"""
    if weight.numel() % 8:
        return torch.where(unpack(packed, weight.numel()).view(weight.shape), weight, torch.zeros((), dtype=weight.dtype))
    rows = torch.nn.functional.embedding(packed.int(), _table(weight.dtype, weight.device)).view(torch.int64)
    rows.bitwise_and_(weight.view(-1, 8).view(torch.int64))
    return rows.view(weight.dtype).view(weight.shape)


_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)  # (256, 8)


@functools.lru_cache(maxsize=8)
def _table(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Eight weights of all ones or all zeros for every byte.  # (256, itemsize) float64: torch gathers rows of floats fastest"""
    ones = np.repeat(_BITS * np.uint8(255), dtype.itemsize, axis=1)  # (256, 8 * itemsize)
    return torch.from_numpy(ones.view(np.float64).copy()).to(device)


@functools.lru_cache(maxsize=8)
def _boolean_table(device: torch.device) -> Tensor:
    return torch.from_numpy(_BITS.astype(np.float32)).to(device)
