r"""Swap refinement: make a layer's mask better by exchanging kept and dropped weights inside their groups.

A row w with mask m against a target row t has the error e = d G dᵀ with d = w∘m - t and G the Gram matrix of the inputs: the
squared difference of the layer's outputs on the calibration text. Dropping a kept i and keeping a dropped j changes it by

    Δ_ij = 2 (w_j v_j - w_i v_i) + w_i² G_ii + w_j² G_jj - 2 w_i w_j G_ij,      v = d G.

Group by group every row takes its best swap if Δ < 0, and v follows by two rows of G: exact coordinate descent, so the error
never grows (the idea of SparseSwaps, arXiv 2512.10922; the code is our own). Passes over the groups go on until one gains little.

Shapes: `O` outputs, `C` inputs, `M` weights in a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskpro_deploy.pattern import NMPattern

_PASSES = 8  # over all groups, at most
_LEAST_GAIN = 1e-3  # of the error: a pass that gains less is the last one


def reconstruction_error(weight: Tensor, mask: Tensor, gram: Tensor, target: Tensor | None = None) -> float:
    """tr(d G dᵀ) with d = weight∘mask - target (the weight itself by default).  # (O, C), (O, C), (C, C) -> scalar"""
    d = weight * mask - (weight if target is None else target)
    return float(((d @ gram) * d).sum(dtype=torch.float64))


def refine(weight: Tensor, mask: Tensor, gram: Tensor, pattern: NMPattern, target: Tensor | None = None) -> Tensor:
    """A mask with a reconstruction error that is not larger; arguments as for `reconstruction_error`.  # (O, C) boolean"""
    mask = mask.clone()
    target = weight if target is None else target
    error = reconstruction_error(weight, mask, gram, target)
    for _ in range(_PASSES):
        gained = _one_pass(weight, mask, gram, pattern, target)
        if gained <= _LEAST_GAIN * error:
            break
        error -= gained
    return mask


def _one_pass(weight: Tensor, mask: Tensor, gram: Tensor, pattern: NMPattern, target: Tensor) -> float:
    """Offer every group of every row one swap; `mask` changes in place. Returns by how much the error fell."""
    v = (weight * mask - target) @ gram  # (O, C)
    rows = torch.arange(len(weight), device=weight.device)
    gained = torch.zeros((), dtype=torch.float64, device=weight.device)
    for start in range(0, weight.shape[1], pattern.m):
        group = slice(start, start + pattern.m)
        w, kept, g = weight[:, group], mask[:, group], gram[group, group]
        square = w.square() * g.diagonal()
        first = 2 * w * v[:, group]
        drop, keep = square - first, square + first  # (O, M): the change of dropping, and of keeping
        delta = drop[:, :, None] + keep[:, None, :] - 2 * w[:, :, None] * w[:, None, :] * g  # (O, M kept, M dropped)
        delta.masked_fill_(~(kept[:, :, None] & ~kept[:, None, :]), torch.inf)
        best, place = delta.flatten(1).min(dim=1)
        # a zero weight never comes in for another one, however little that one does
        taken = (best < 0) & (w[rows, place % pattern.m] != 0)
        if not bool(taken.any()):
            continue
        r, i, j = rows[taken], (place // pattern.m)[taken], (place % pattern.m)[taken]
        step = torch.zeros(len(r), pattern.m, dtype=w.dtype, device=w.device)  # change of d in this group
        step[torch.arange(len(r)), i] = -w[r, i]
        step[torch.arange(len(r)), j] = w[r, j]
        v[r] += step @ gram[group]
        mask[r, start + i] = False
        mask[r, start + j] = True
        gained -= best[taken].sum(dtype=torch.float64)
    return float(gained)
