"""From the importance of weights to the first logits.

Shapes: `O` outputs, `C` inputs, `M` weights in a group, `G` groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskpro_deploy.learn.distributions.base import to_planes
from maskpro_deploy.pattern import NMPattern

MARGIN = 1e-2  # by which a chosen mask leads where scores alone would tie
_CLIP = 6.0  # a score e^6 times its group's mean is as certain as scores get
_TINY = 1e-30  # stands for a score of zero: below every other, and far from the smallest numbers, which are flushed
_TIE_BREAK = 1e-3  # keeps the order of scores beyond the clip


def initial_logits(importance: Tensor, pattern: NMPattern, strength: float) -> Tensor:
    """Logits whose argmax is the one-shot mask: strength · log(score / mean score of the group), clipped.

    A weight that is exactly zero gets the lowest logit there is, so it is kept only where a group has nothing better.

    Args:
        importance: (O, C), not negative.
        pattern: the N:M pattern.
        strength: inverse temperature of the first samples.

    Returns:
        (M, G) float32.
    """
    planes = to_planes(importance, pattern.m)
    relative = (planes.clamp_min(_TINY) / planes.mean(0).clamp_min(_TINY)).log_()
    return relative.clamp(-_CLIP, _CLIP).add_(relative, alpha=_TIE_BREAK).mul_(strength)


def logits_of_mask(importance: Tensor, mask: Tensor, pattern: NMPattern, strength: float) -> Tensor:
    """Logits whose argmax is `mask`, as certain as the scores make it.

    In each group the N highest scores go to the kept weights and the others to the dropped ones, each in their own order; where
    the scores agree with the mask, they stay as they are.

    Args:
        importance: (O, C), not negative.
        mask: boolean, N of every M (O, C).
        pattern: the N:M pattern.
        strength: inverse temperature of the first samples.

    Returns:
        (M, G) float32.
    """
    grouped, kept = importance.reshape(-1, pattern.m), mask.reshape(-1, pattern.m)
    by_score = torch.sort(grouped, dim=1, descending=True, stable=True)
    # positions in the order: kept ones first, each part by its scores (stable sorts, the minor key first)
    kept_first = torch.sort(kept.gather(1, by_score.indices).byte(), dim=1, descending=True, stable=True).indices
    order = by_score.indices.gather(1, kept_first)
    conformed = torch.empty_like(grouped).scatter_(1, order, by_score.values)
    logits = initial_logits(conformed.view(importance.shape), pattern, strength)
    chosen = to_planes(mask, pattern.m) > 0  # (M, G)
    floor = logits.masked_fill(chosen, -torch.inf).amax(0) + MARGIN * strength  # (G,)
    tied = (logits.masked_fill(~chosen, torch.inf).amin(0) <= floor - MARGIN * strength) & torch.isfinite(floor)
    return torch.where(chosen & tied, torch.maximum(logits, floor), logits)
