"""SparseGPT: prune a layer by the optimal brain surgeon, column by column (Frantar and Alistarh, arXiv 2301.00774).

The columns of W are treated from left to right. With H = X Xᵀ + λI and U the upper Cholesky factor of H⁻¹, pruning w_j costs
w_j² / U_jj² (their eq. 3 and algorithm 1), and the columns to the right make up for it by -w_j / U_jj · U_j,: . In an N:M pattern
the mask of a group is chosen when its first column is reached, from the costs of its M columns at that moment.

Shapes: `O` outputs, `C` inputs, `M` weights in a group.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from maskpro_deploy.errors import CheckFailed
from maskpro_deploy.learn.model.calibration import Gram
from maskpro_deploy.learn.priors.base import LayerView, Verdict, top_mask
from maskpro_deploy.learn.priors.transposable import top_transposable_mask
from maskpro_deploy.pattern import NMPattern

_DAMPING = 0.01  # of the mean diagonal, as published
_TRIES = 4  # each with ten times the damping
_BLOCK = 128  # columns whose updates are gathered before the rest of the matrix gets them, as published


def sparsegpt(layer: LayerView) -> Verdict:
    """What the surgery on a layer says of its weights, and what it makes of them."""
    assert layer.gram is not None  # its entry asks for it
    choose = top_transposable_mask if layer.config.transposable else top_mask
    return operate(layer.weight, layer.gram, layer.pattern, choose)


def operate(weight: Tensor, gram: Gram, pattern: NMPattern, choose: Callable[[Tensor, NMPattern], Tensor] = top_mask) -> Verdict:
    """Prune one layer; inputs that were always zero cost nothing to prune. `choose` makes the mask of a group of columns.

    Returns:
        importance: |w_j| / U_jj when the group's turn came: the mask is what `choose` makes of that.
        weight: the weights that make up for the pruned ones. Where the mask is 0 stands what the weight was when its turn came,
            so `weight * mask` is SparseGPT's result, and another mask still finds a sensible weight everywhere.
    """
    w = weight.float().clone()
    dead = gram.matrix.diagonal() == 0
    if gram.tokens == 0:  # a layer that never ran: every input counts the same
        dead = torch.zeros_like(dead)
    factor = _inverse_factor(gram, dead)  # (C, C)
    w[:, dead] = 0
    importance = torch.empty_like(w)
    kept_weight = torch.empty_like(w)
    whole_mask = torch.empty_like(w, dtype=torch.bool)
    width = max(1, _BLOCK // pattern.m) * pattern.m
    columns = w.shape[1]
    for start in range(0, columns, width):
        end = min(start + width, columns)
        u = factor[start:end, start:end]
        part = w[:, start:end]  # a view: updates inside the block happen in place
        errors = torch.empty_like(part)
        for g in range(0, end - start, pattern.m):
            group = slice(g, g + pattern.m)
            place = slice(start + g, start + g + pattern.m)
            importance[:, place] = cost = part[:, group].abs() / u.diagonal()[group]
            whole_mask[:, place] = mask = choose(cost, pattern)
            for j in range(g, g + pattern.m):
                now = part[:, j].clone()
                kept_weight[:, start + j] = now
                error = torch.where(mask[:, j - g], 0.0, now) / u[j, j]
                part[:, j:].addr_(error, u[j, j:], alpha=-1)
                errors[:, j] = error
        w[:, end:].addmm_(errors, factor[start:end, end:], alpha=-1)
    return Verdict(importance=importance, mask=whole_mask, weight=kept_weight)


def _inverse_factor(gram: Gram, dead: Tensor) -> Tensor:
    """U with H⁻¹ = Uᵀ U, for H the damped Gram matrix.  # (C, C)"""
    h = gram.matrix / max(1, gram.tokens)
    if not torch.isfinite(h).all():
        raise CheckFailed("a layer's inputs are not finite on the calibration text.\nTry --dtype float32.")
    h.diagonal()[dead] = 1
    scale = float(h.diagonal().mean()) or 1.0
    for attempt in range(_TRIES):
        damped = h.clone()
        damped.diagonal().add_(_DAMPING * 10**attempt * scale)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if int(failed):
            continue
        upper: Tensor
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not int(failed):
            return upper
    raise CheckFailed("a layer's Gram matrix cannot be inverted on the calibration text.\nTry more --calibration-tokens.")
