"""The N highest of every group, with operations over planes only.

A sorting network needs no index and no branch: each comparator is one minimum and one maximum over all groups at once.

Shapes: `M` weights in a group, `G` groups; planes are (M, G).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from maskpro_deploy.learn.distributions.packed import as_bytes


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


def centred(planes: Tensor, n: int) -> Tensor:
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
