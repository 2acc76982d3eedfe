r"""ProxSparse (arXiv 2502.00258), as a baseline: a copy of the weights is trained until its groups of four have two left.

A step is one of AdamW on the loss of the copy, without any mask, and then the proximal step of λ R on every group, R being zero
where at most two weights are left (`kernels.prox`). At any time the mask keeps the two largest of a group of the copy; it goes
onto the *original* weights, which stay as they are. The copy starts from these, so the first mask is that of magnitudes.

Settings as published: rate 1e-4, up within the first tenth of the run and then down to 0; moments (0.9, 0.999) without decay;
gradients clipped to a length of 1; λ = 0.25, not multiplied by the rate, so what a run prunes hangs on its number of steps: 400
of 4096 tokens there. `--prox-anchor` is the weight of their second regulariser, which they left out for most models:

    ‖ w / (w_0 + ε sign w_0) ∘ (w - w_0) ‖²,      ε = 0.1, w_0 the original weights.

It differs from the authors' program in this: copy and moments are float32 and not bfloat16, and what has no mask stays frozen.

Shapes: `O` outputs, `C` inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.distributions.base import to_planes
from maskpro_deploy.learn.distributions.planes import pack, top
from maskpro_deploy.learn.estimators.base import Estimator, StepLoss
from maskpro_deploy.learn.kernels.exact_adam import ExactAdam
from maskpro_deploy.learn.kernels.prox import prox
from maskpro_deploy.learn.model.masked_linear import Mode, set_mode
from maskpro_deploy.learn.model.model import LearningModel, Windows
from maskpro_deploy.learn.model.sites import Site

_BETAS = (0.9, 0.999)
_WARM_UP = 0.1  # of the run
_LONGEST = 1.0  # gradient of all layers together
_EPSILON = 0.1
_KIND = "regularised"


class ProxSparseEstimator(Estimator):
    """See the module; in a step the layers compute with the copies."""

    def __init__(self, config: LearnConfig, model: LearningModel, sites: Sequence[Site], loss: StepLoss) -> None:
        super().__init__(config, model, sites, loss)
        self._copies = {site.name: site.weight.float().clone().requires_grad_() for site in sites}
        self._adam = ExactAdam({f"{_KIND}/{name}": copy for name, copy in self._copies.items()}, betas=_BETAS)
        self._choose()

    def step(self, windows: Windows, step: int, left: float) -> Tensor:
        """One step of the copies; the loss is theirs, before the step."""
        set_mode(self._sites, Mode.HOOK)
        try:
            value = self._learn_backward(self._loss(windows, differentiable=True), windows, step)
        finally:
            set_mode(self._sites, Mode.ARGMAX)
        with torch.no_grad():
            self._move(self._config.rate * schedule(left))
        return value

    def compute_outputs(self, site: Site, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self._copies[site.name].to(x.dtype), site.bias)

    def _move(self, rate: float) -> None:
        """Take the gradients that the backward pass left, then the proximal step."""
        if self._config.prox_anchor > 0:
            for site in self._sites:
                grad = anchor_gradient(self._copies[site.name].detach(), site.weight.float())
                self._adam.add(f"{_KIND}/{site.name}", grad.mul_(self._config.prox_anchor))
        nn.utils.clip_grad_norm_(self._copies.values(), _LONGEST)
        self._adam.move(rate)
        for site in self._sites:
            groups = self._copies[site.name].view(-1, 4)
            for _, chunk in site.chunks():
                groups[chunk] = prox(groups[chunk].t().contiguous(), self._config.prox_strength).t()
        self._choose()

    @torch.no_grad()
    def _choose(self) -> None:
        """Let every site keep the two largest weights of its copy's groups."""
        pattern = self._config.pattern
        for site in self._sites:
            site.kept = pack(top(to_planes(self._copies[site.name].abs(), pattern.m), pattern.n))

    def learned(self) -> Mapping[str, Tensor]:
        return self._copies

    def tensors(self) -> dict[str, Tensor]:
        return self._adam.values() | self._adam.tensors()

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        self._adam.restore_values(tensors)
        self._adam.restore(tensors)
        self._choose()


def schedule(left: float) -> float:
    """The rate relative to its highest: up within the first tenth of a run, then linearly down to 0."""
    return min((1 - left) / _WARM_UP, left / (1 - _WARM_UP))


def anchor_gradient(weight: Tensor, original: Tensor) -> Tensor:
    """The derivative of the second regulariser.  # (O, C), (O, C) -> (O, C)"""
    scale = original + torch.where(original < 0, -_EPSILON, _EPSILON)
    return (weight * (weight - original) * (2 * weight - original)).mul_(2).div_(scale.square())
