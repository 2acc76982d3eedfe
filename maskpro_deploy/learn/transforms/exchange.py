"""An order of channels under which an N:M mask keeps more: exchanges between groups, each of which raises what is kept.

A mask keeps the N highest scores of every M neighbours in a row. Groups of channels are paired at random; in each pair the
exchange of one channel for one of the other's that raises the sum of all kept scores most is made, if any does. (Permutations for
N:M sparsity: Pool & Yu, NeurIPS 2021; with Wanda-like scores: Zhang et al., ICLR 2024. They search columns by other means.)

What an exchange gives is exact and cheap: if x takes the place of channel i, a row keeps the N - 1 highest of the other M - 1
and the higher one of x and the N-th of them.

Shapes: `C` channels, `M` in a group, `G = C / M` groups, `P` pairs, `R` rows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from maskpro_deploy.pattern import NMPattern

_ROUNDS = 80
_LOOK_BACK, _LITTLE = 8, 2e-5  # stop once so many rounds together raised the sum by less than this share
_LARGEST_CHUNK = 1 << 24  # numbers in a temporary matrix


@dataclass(frozen=True, slots=True)
class Ordered:
    """An order of channels, and what masks keep."""

    order: Tensor  # (C,): the channel that comes to each place
    before: float  # sum of kept scores as channels were
    after: float


def order_channels(scores: Tensor, pattern: NMPattern, generator: torch.Generator, *, until: float | None = None) -> Ordered:
    """Find an order of channels.

    Args:
        scores: of every row's weight for every channel, not negative (C, R) float32.
        pattern: N:M.
        generator: of the pairs, on the CPU.
        until: when to stop, in `time.monotonic` seconds.
    """
    count, m = len(scores) // pattern.m, pattern.m
    groups = torch.arange(len(scores), device=scores.device).view(count, m)  # (G, M) channels
    rest, cut = _look_at(scores, groups, pattern.n)
    best = before = _sum_kept(scores, groups, pattern.n)
    sums, gained = scores.sum(1), []
    for _ in range(_ROUNDS if count > 1 else 0):
        paired = torch.randperm(count, generator=generator).to(scores.device)
        a, b = paired[: count // 2], paired[count // 2 : count // 2 * 2]
        gain = _gain(scores, groups, rest, cut, sums, a, b)  # (P, M, M)
        value, which = gain.flatten(1).max(1)
        chosen = value > 1e-6 * max(1.0, best / len(scores))
        a, b, which = a[chosen], b[chosen], which[chosen]
        i, j = which // m, which % m
        groups[a, i], groups[b, j] = groups[b, j], groups[a, i]
        changed = torch.cat([a, b])
        rest[changed], cut[changed] = _look_at(scores, groups[changed], pattern.n)
        gained.append(float(value[chosen].sum()))
        best += gained[-1]
        if len(gained) >= _LOOK_BACK and sum(gained[-_LOOK_BACK:]) < _LITTLE * best:
            break
        if until is not None and time.monotonic() > until:
            break
    return Ordered(groups.flatten(), before, _sum_kept(scores, groups, pattern.n))


def _look_at(scores: Tensor, groups: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Of every group without each of its channels: the sum of the N - 1 highest over all rows (G, M), the N-th (G, M, R)."""
    members = scores[groups]  # (G, M, R)
    rest = torch.empty(groups.shape, device=scores.device)
    cut = torch.empty_like(members)
    for i in range(groups.shape[1]):
        others = [members[:, j] for j in range(groups.shape[1]) if j != i]
        highest = _highest(others, n)
        cut[:, i] = highest[-1]
        rest[:, i] = sum((x.sum(1) for x in highest[:-1]), start=torch.zeros(len(groups), device=scores.device))
    return rest, cut


def _highest(values: list[Tensor], n: int) -> list[Tensor]:
    """The N highest of several tensors, entry by entry, the highest first."""
    kept: list[Tensor] = []
    for value in values:
        for k, other in enumerate(kept):
            kept[k], value = torch.maximum(other, value), torch.minimum(other, value)
        if len(kept) < n:
            kept.append(value)
    return kept


def _sum_kept(scores: Tensor, groups: Tensor, n: int) -> float:
    """The sum of all kept scores."""
    total = 0.0
    for part in _split(groups, scores):
        total += sum(float(x.sum(dtype=torch.float64)) for x in _highest(list(scores[part].unbind(1)), n))
    return total


def _gain(scores: Tensor, groups: Tensor, rest: Tensor, cut: Tensor, sums: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """What each exchange of a channel of group a for one of group b adds to the sum of kept scores.  # (P,), (P,) -> (P, M, M)"""

    def one_way(mine: Tensor, theirs: Tensor) -> Tensor:
        """What the first groups gain: each of my channels leaves (P, M), each of theirs comes.  # (P, M, M)"""
        leaving, coming = cut[mine], groups[theirs]  # (P, M, R), (P, M)
        # the higher one of two numbers is half of their sum and of their distance
        distance = torch.cdist(leaving, scores[coming], p=1.0)
        after = rest[mine][:, :, None] + (leaving.sum(2)[:, :, None] + sums[coming][:, None] + distance) / 2
        before = rest[mine] + torch.maximum(leaving, scores[groups[mine]]).sum(2)
        return after - before[:, :, None]

    parts = zip(_split(a, scores), _split(b, scores), strict=True)
    return torch.cat([one_way(x, y) + one_way(y, x).transpose(1, 2) for x, y in parts])


def _split(groups: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
    """Groups in chunks whose scores fit into a temporary matrix."""
    return torch.split(groups, max(1, _LARGEST_CHUNK // (16 * scores.shape[1])))
