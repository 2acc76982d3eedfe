"""The N highest of every group, with operations over planes only.

A sorting network needs no index and no branch: each comparator is one minimum and one maximum over all groups at once.

Shapes: `M` weights in a group, `G` groups; planes are (M, G).
"""

from __future__ import annotations

import functools

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


def centred(planes: Tensor, n: int) -> Tensor:
    """Numbers relative to the cut, half-way between the n-th and the (n + 1)-th highest.  # (M, G) -> (M, G)"""
    last, following = cut(planes, n)
    return planes - torch.lerp(following, last, 0.5)


def top(planes: Tensor, n: int, lowest_kept: Tensor | None = None) -> Tensor:
    """The mask of the n highest of every group; of equal ones those that come first.

    Args:
        planes: (M, G).
        n: how many to keep.
        lowest_kept: the n-th highest number of every group (G,), if known.

    Returns:
        (M, G) boolean.
    """
    least = cut(planes, n)[0] if lowest_kept is None else lowest_kept
    kept = planes > least
    equal = planes == least
    filled = kept.view(torch.uint8)[0].clone()
    for plane in kept.view(torch.uint8)[1:]:
        filled += plane
    for i in range(planes.shape[0]):
        taken = equal[i].logical_and_(filled < n)
        filled += taken.view(torch.uint8)
        kept[i].logical_or_(taken)
    return kept
