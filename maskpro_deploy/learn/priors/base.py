"""What a prior is, a function from one layer and what it saw to the importance of its weights, and the logits made from that.

Shapes: `O` outputs, `C` inputs, `M` weights in a group, `G` groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.distributions.base import to_planes
from maskpro_deploy.learn.model.calibration import Gram
from maskpro_deploy.pattern import NMPattern

MARGIN = 1e-2  # by which a chosen mask leads where scores alone would tie
_CLIP = 6.0  # a score e^6 times its group's mean is as certain as scores get
_TINY = 1e-30  # stands for a score of zero: below every other, and far from the smallest numbers, which are flushed
_TIE_BREAK = 1e-3  # keeps the order of scores beyond the clip


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerView:
    """What a prior may look at."""

    name: str  # of the weight in the model
    weight: Tensor  # (O, C) float32
    norms: Tensor | None  # ‖x_j‖₂ of the inputs (C,); None where none were seen
    gram: Gram | None  # of the inputs; None where it was not asked for
    config: LearnConfig
    given: Tensor | None  # the mask that came with the prior (O, C) boolean, if one did


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a prior says of a layer."""

    importance: Tensor  # of every weight, not negative (O, C)
    mask: Tensor | None = None  # where it is not the N most important of every group (O, C) boolean
    weight: Tensor | None = None  # what takes the place of the weights, with `--prior-update` (O, C) float32
    logits: Tensor | None = None  # themselves, where they are not made from the importance (M, G) float32


Prior = Callable[[LayerView], Verdict]


def top_mask(importance: Tensor, pattern: NMPattern) -> Tensor:
    """The N highest of every group; ties go to the lower index.  # (O, C) -> (O, C) boolean"""
    grouped = importance.reshape(-1, pattern.m)
    kept = torch.sort(grouped, dim=1, descending=True, stable=True).indices[:, : pattern.n]
    return torch.zeros_like(grouped, dtype=torch.bool).scatter_(1, kept, True).view(importance.shape)


def initial_logits(importance: Tensor, pattern: NMPattern, strength: float) -> Tensor:
    """Logits whose argmax is the one-shot mask: strength · log(score / mean score of the group), clipped.

    A weight that is exactly zero gets the lowest logit there is, so it is kept only where a group has nothing better.

    `strength` is the inverse temperature of the first samples.  # (O, C), not negative -> (M, G) float32
    """
    planes = to_planes(importance, pattern.m)
    relative = (planes.clamp_min(_TINY) / planes.mean(0).clamp_min(_TINY)).log_()
    return relative.clamp(-_CLIP, _CLIP).add_(relative, alpha=_TIE_BREAK).mul_(strength)


def logits_of_mask(importance: Tensor, mask: Tensor, pattern: NMPattern, strength: float) -> Tensor:
    """Logits whose argmax is `mask`, as certain as the scores make it.

    In each group the N highest scores go to the kept weights and the others to the dropped ones, each in their own order; where
    the scores agree with the mask, they stay as they are.  # (O, C), (O, C) boolean -> (M, G) float32
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
