r"""SUSI (arXiv 2608.23048), as a baseline: one logit a weight, and subsets drawn by a chain of softmaxes.

A sample of N of M is the N highest of θ/λ + Gumbel noise: N draws without replacement. The forward pass runs under its relaxation
after Xie and Ermon (2019), with SUSI's exponent p on what a draw takes away,

    α_1 = θ/λ + Gumbel noise,   μ_k = softmax(α_k / τ),   α_{k+1} = α_k - |log(1 - μ_k)|^p,   soft mask = Σ_k μ_k,

which sums to N, and the backward pass differentiates through all of it. The mask at the end is that of the N highest logits.

Settings are those of an early version of the paper, the only one whose text was at hand: p = 3; τ from 1 to 0.05 and λ from 1 to
0.002, linear over the run; logits from N(0, 0.01²); AdamW (0.9, 0.95) with a decay of 0.05 and a rate of 0.001, down to a tenth.
That version starts from no one-shot mask. With one (any `--prior` but `none`) the logits of its weights get 3 · 0.01, as in
MaskLLM. Moments are float32 and not of 8 bits.

Shapes: `O` outputs, `C` inputs, `M` weights in a group, `G` groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.distributions.base import to_planes
from maskpro_deploy.learn.distributions.planes import pack, top, unpack
from maskpro_deploy.learn.estimators.base import Estimator, StepLoss
from maskpro_deploy.learn.kernels.exact_adam import ExactAdam
from maskpro_deploy.learn.model.masked_linear import Mode, set_mode
from maskpro_deploy.learn.model.model import LearningModel, Windows
from maskpro_deploy.learn.model.sites import Site

POWER = 3.0
_STANDARD, _PRIOR = 0.01, 3.0
_TAU, _LAMBDA = (1.0, 0.05), (1.0, 0.002)  # at the start and at the end
_LAST_RATE = 0.1  # of the first one
_DECAY = 0.05
_LEAST = 1e-6  # of 1 - μ
_KIND = "scores"


class SusiEstimator(Estimator):
    """See the module."""

    def __init__(self, config: LearnConfig, model: LearningModel, sites: Sequence[Site], loss: StepLoss) -> None:
        super().__init__(config, model, sites, loss)
        self._step, self._tau, self._lambda = 0, _TAU[0], _LAMBDA[0]
        self._scores = {site.name: self._start(site) for site in sites}  # (M, G) each
        self._adam = ExactAdam({f"{_KIND}/{name}": scores for name, scores in self._scores.items()}, _DECAY)
        self._choose()

    def _start(self, site: Site) -> Tensor:
        """The logits that a site starts with.  # (M, G) float32"""
        m, device = self._config.pattern.m, site.logits.device
        generator = torch.Generator(device=device).manual_seed(site.key(self._config.seed))
        scores = torch.randn(site.logits.shape, generator=generator, device=device).mul_(_STANDARD)
        if self._config.prior_choice.refinable:  # any but a random mask
            first = unpack(site.kept, site.weight.numel()).view(-1, m).t()
            scores.add_(first.float(), alpha=_PRIOR * _STANDARD)
        return scores

    def step(self, windows: Windows, step: int, left: float) -> Tensor:
        self._step = step
        self._tau, self._lambda = (first * left + last * (1 - left) for first, last in (_TAU, _LAMBDA))
        self._metrics = {"tau": self._tau, "lambda": self._lambda}
        set_mode(self._sites, Mode.SAMPLE)
        value = self._learn_backward(self._loss(windows, differentiable=True), windows, step)
        self._adam.move(self._config.rate * (left + _LAST_RATE * (1 - left)))
        self._choose()
        return value

    def _soft(self, site: Site, scores: Tensor) -> Tensor:
        """The soft mask of this step; the same key gives the same noise.  # (M, G) -> (M, G)"""
        generator = torch.Generator(device=scores.device).manual_seed(site.key(self._config.seed, self._step))
        noise = gumbel(torch.rand(scores.shape, generator=generator, device=scores.device))
        return relax(scores / self._lambda + noise, self._config.pattern.n, self._tau)

    def draw_mask(self, site: Site) -> Tensor:
        factors = self._soft(site, self._scores[site.name])
        return factors.t().reshape(site.weight.shape).to(site.weight.dtype)

    def take_gradient(self, site: Site, grad_weight: Tensor) -> None:
        along = to_planes(grad_weight * site.weight, self._config.pattern.m)
        scores = self._scores[site.name].detach().requires_grad_()
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(self._soft(site, scores), scores, along)
        self._adam.add(f"{_KIND}/{site.name}", grad)

    def _choose(self) -> None:
        """Let every site keep the weights of its highest logits."""
        for site in self._sites:
            site.kept = pack(top(self._scores[site.name], self._config.pattern.n))

    def learned(self) -> Mapping[str, Tensor]:
        return self._scores

    def tensors(self) -> dict[str, Tensor]:
        return self._adam.values() | self._adam.tensors()

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        self._adam.restore_values(tensors)
        self._adam.restore(tensors)
        self._choose()


def gumbel(uniform: Tensor) -> Tensor:
    """Gumbel noise from uniform numbers, which are overwritten."""
    return uniform.clamp_(2**-25, 1 - 2**-24).log_().neg_().log_().neg_()


def relax(keys: Tensor, n: int, tau: float, power: float = POWER) -> Tensor:
    """A soft mask whose every group sums to n; with τ towards 0 that of its n highest keys.  # (M, G) -> (M, G)"""
    total = torch.zeros_like(keys)
    for _ in range(n):
        drawn = torch.softmax(keys / tau, dim=0)
        total = total + drawn
        keys = keys - (1 - drawn).clamp(_LEAST).log().neg().pow(power)
    return total
