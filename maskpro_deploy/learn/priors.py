"""One-shot scores that a mask starts from, and the logits they become.

    magnitude   |W|
    wanda       |W_ij| · ‖x_j‖₂ with x_j the layer's inputs on calibration text (Sun et al., arXiv 2306.11695, eq. 1)

Shapes: `O` outputs, `C` inputs, `M` weights in a group, `G` groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from maskpro_deploy.learn.sites import to_planes
from maskpro_deploy.pattern import NMPattern

_CLIP = 6.0  # a score e^6 times its group's mean is as certain as scores get
_TINY = 1e-30  # stands for a score of zero: below every other, and far from the smallest numbers, which are flushed
_TIE_BREAK = 1e-3  # keeps the order of scores beyond the clip


def input_norms(layers: Mapping[str, nn.Linear], run: Callable[[], None]) -> dict[str, Tensor]:
    """‖x_j‖₂ of every layer's inputs over all tokens of the forward passes that `run` makes.

    Returns:
        Layer name -> (C,) float32.
    """
    squares = {name: torch.zeros(layer.in_features, device=layer.weight.device) for name, layer in layers.items()}
    handles = []
    for name, layer in layers.items():

        def add(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            squares[name] += args[0].flatten(0, -2).float().square().sum(0)

        handles.append(layer.register_forward_pre_hook(add))
    try:
        with torch.inference_mode():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return {name: total.sqrt() for name, total in squares.items()}


def scores(weight: Tensor, norms: Tensor | None) -> Tensor:
    """Importance of every weight: magnitude, times the input norms if given.  # (O, C)"""
    importance = weight.float().abs()
    return importance if norms is None else importance * norms


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
