"""What a prior is: a function from one layer and what it saw to the importance of its weights.

Shapes: `O` outputs, `C` inputs, `M` weights in a group, `G` groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.model.calibration import Gram
from maskpro_deploy.pattern import NMPattern


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerView:
    """What a prior may look at.

    Attributes:
        name: of the weight in the model.
        weight: (O, C) float32.
        norms: ‖x_j‖₂ of the inputs (C,); None where none were seen.
        gram: of the inputs; None where it was not asked for.
        config: the settings.
        given: the mask that came with the prior (O, C) boolean, if one did.
    """

    name: str
    weight: Tensor
    norms: Tensor | None
    gram: Gram | None
    config: LearnConfig
    given: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a prior says of a layer.

    Attributes:
        importance: of every weight, not negative.  # (O, C)
        mask: the mask, where it is not the N most important of every group.  # (O, C) boolean
        weight: what takes the place of the weights, with `--prior-update`.  # (O, C) float32
        logits: the logits themselves, where they are not made from the importance.  # (M, G) float32
    """

    importance: Tensor
    mask: Tensor | None = None
    weight: Tensor | None = None
    logits: Tensor | None = None


Prior = Callable[[LayerView], Verdict]


def top_mask(importance: Tensor, pattern: NMPattern) -> Tensor:
    """The N highest of every group; ties go to the lower index.  # (O, C) -> (O, C) boolean"""
    grouped = importance.reshape(-1, pattern.m)
    kept = torch.sort(grouped, dim=1, descending=True, stable=True).indices[:, : pattern.n]
    return torch.zeros_like(grouped, dtype=torch.bool).scatter_(1, kept, True).view(importance.shape)
