"""A problem whose best mask is known: layers are to give the outputs that they give under a planted one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from maskpro_deploy.learn import LearnConfig
from maskpro_deploy.learn.distributions.planes import pack, unpack
from maskpro_deploy.learn.estimators.base import Estimator
from maskpro_deploy.learn.model.model import LearningModel, Windows
from maskpro_deploy.learn.model.sites import Site

WINDOWS: Windows = np.zeros((1, 1), dtype=np.int32)  # the problem has inputs of its own
_INPUTS = 256


class Planted:
    """One layer of O outputs with a planted mask, and the loss: the squared distance of its outputs, relative to their size."""

    def __init__(self, config: LearnConfig, outputs: int = 16, inputs: int = 32, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        layer = nn.Linear(inputs, outputs, bias=False)
        weight = torch.randn(outputs, inputs, generator=generator)
        layer.weight.data.copy_(0.5 * weight + weight.sign())  # none is near zero
        groups = outputs * inputs // config.pattern.m
        mask, start = (torch.rand(groups, config.pattern.m, generator=generator) for _ in range(2))
        family = config.distribution_choice.load()(config.pattern, "cpu")
        self.site = Site("planted", layer, family, start.t().contiguous())
        self.planted = pack(family.mode(mask.t().contiguous()))
        self.x = torch.randn(_INPUTS, inputs, generator=generator)
        self.target = self.x @ (self.site.weight * self._mask(self.planted)).t()
        self.scale = self.target.square().mean()

    def _mask(self, bits: Tensor) -> Tensor:
        return unpack(bits, self.site.weight.numel()).view_as(self.site.weight)

    def __call__(self, windows: Windows, *, differentiable: bool) -> Tensor:
        x = self.x.clone().requires_grad_(differentiable)
        loss: Tensor = (self.site(x) - self.target).square().mean() / self.scale
        return loss

    def found(self) -> float:
        """Share of the weights on which the layer's mask and the planted one agree."""
        return float((self._mask(self.site.kept) == self._mask(self.planted)).float().mean())


def learn_planted(problem: Planted, config: LearnConfig, model: LearningModel, steps: int) -> Estimator:
    """Steps of the settings' estimator; the model only lends its backward pass."""
    estimator: Estimator = config.estimator_choice.load()(config, model, [problem.site], problem)
    for step in range(steps):
        estimator.step(WINDOWS, step, 1 - step / steps)
    return estimator
