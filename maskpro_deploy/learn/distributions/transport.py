r"""Good transposable masks of blocks that have too many to list, by entropic optimal transport (TSENOR, arXiv 2505.23949).

The best mask of a block is a transport plan: max ⟨S, W⟩ over 0 ≤ S ≤ 1 whose rows and columns all sum to N. With an entropy term
its solution is exp(τW) after Dykstra's projections in turn: rows scaled to N, columns scaled to N, everything cut at 1 (with a
factor Q that remembers what the cuts took away). The plan is nearly integral. Rounding keeps entries from the largest down where
row and column have room; what is missing then is filled by the exchanges that cost least; and pairs of rows, then of columns,
trade what only one of them keeps, each pair in the best way, while that gains anything. The result always keeps exactly N.

Shapes: `B` blocks, `M` rows and columns of a block, `P = M * M`.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from maskpro_deploy.pattern import NMPattern

_SHARPNESS = 40.0  # τ for scores relative to the largest of the block
_ITERATIONS = 100
_PASSES = 8  # of trades over all pairs, at most


def transport_masks(scores: Tensor, pattern: NMPattern) -> Tensor:
    """The masks; strict always, near the best in the sum of kept scores.  # (P, B) -> (P, B) boolean"""
    blocks = scores.t().reshape(-1, pattern.m, pattern.m).float()
    kept = _round(_transport(blocks, pattern.n), pattern.n)
    _complete(kept, blocks, pattern.n)
    _trade_all(kept, blocks)
    return kept.flatten(1).t().contiguous()


def _transport(scores: Tensor, n: int) -> Tensor:
    """The logarithm of the entropic plan.  # (B, M, M) -> (B, M, M)"""
    largest = scores.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
    plan, memory = scores / largest * _SHARPNESS, torch.zeros_like(scores)
    for _ in range(_ITERATIONS):
        plan = plan - plan.logsumexp(2, keepdim=True) + math.log(n)
        plan = plan - plan.logsumexp(1, keepdim=True) + math.log(n)
        cut = (plan + memory).clamp_max(0)
        memory += plan - cut
        plan = cut
    return plan


def _round(plan: Tensor, n: int) -> Tensor:
    """Keep entries from the largest down where row and column have room.  # (B, M, M) -> (B, M, M) boolean"""
    blocks, m, _ = plan.shape
    order = plan.flatten(1).argsort(dim=1, descending=True, stable=True)
    kept = torch.zeros_like(order, dtype=torch.bool)
    rows, columns = (torch.zeros(blocks, m, dtype=torch.int64, device=plan.device) for _ in range(2))
    for each in order.unbind(1):
        place = each[:, None]
        row, column = place // m, place % m
        free = (rows.gather(1, row) < n) & (columns.gather(1, column) < n)
        kept.scatter_(1, place, free)
        rows.scatter_(1, row, rows.gather(1, row) + free)
        columns.scatter_(1, column, columns.gather(1, column) + free)
    return kept.view_as(plan)


def _complete(kept: Tensor, scores: Tensor, n: int) -> None:
    """Fill the rows and columns that have too few, in place.

    Where row i and column j lack one, (i, j) is kept already: it had room. Dropping some (p, q) for (i, q) and (p, j) adds one,
    and there always is such a place: every row p without j is full, so it keeps a column that row i does not.
    # (B, M, M), (B, M, M)
    """
    m = kept.shape[1]
    while len(short := (kept.sum((1, 2)) < n * m).nonzero().squeeze(1)):
        mine, weights, at = kept[short], scores[short], torch.arange(len(short), device=kept.device)
        i, j = (mine.sum(2) < n).byte().argmax(1), (mine.sum(1) < n).byte().argmax(1)
        gain = weights[at, i][:, None, :] + weights[at, :, j][:, :, None] - weights
        possible = mine & ~mine[at, i][:, None, :] & ~mine[at, :, j][:, :, None]
        best = gain.masked_fill_(~possible, -torch.inf).flatten(1).argmax(1)
        p, q = best // m, best % m
        mine[at, p, q] = False
        mine[at, i, q] = mine[at, p, j] = True
        kept[short] = mine


def _trade_all(kept: Tensor, scores: Tensor) -> None:
    """Let pairs of rows and pairs of columns trade until nothing changes, in place.  # (B, M, M), (B, M, M)"""
    left = torch.arange(len(kept), device=kept.device)  # blocks that may change
    for _ in range(_PASSES):
        before, mine, weights = kept[left], kept[left], scores[left]
        for some, values in ((mine, weights), (mine.transpose(1, 2), weights.transpose(1, 2))):
            for i, k in itertools.combinations(range(kept.shape[1]), 2):
                _trade(some, values, i, k)
        kept[left] = mine
        left = left[(mine != before).flatten(1).any(1)]
        if not len(left):
            break


def _trade(kept: Tensor, scores: Tensor, i: int, k: int) -> None:
    """Divide the columns that only one of two rows keeps between them in the best way.  # (B, M, M), (B, M, M)"""
    first, second = kept[:, i].clone(), kept[:, k].clone()
    both, one = first & second, first ^ second
    gain = (scores[:, i] - scores[:, k]).masked_fill_(~one, -torch.inf)
    rank = gain.argsort(dim=1, descending=True, stable=True).argsort(1)
    taken = one & (rank < (first & one).sum(1, keepdim=True))
    kept[:, i], kept[:, k] = both | taken, both | (one & ~taken)
