"""The pathwise estimator: a forward pass under one hard mask, a backward pass, and ∂L/∂θ = Cov(m) ∂L/∂m.

The hard mask is a sample m ~ p_{θ/τ} whose temperature τ decays to 0; at τ = 0, the default, it is the argmax mask, and the
estimator a straight-through one. Each layer's gradient moves its logits as soon as the backward pass has it.

Shapes: `O` outputs, `C` inputs, `M` weights in a group, `G` groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.distributions.packed import pack
from maskpro_deploy.learn.estimators.base import Windows, early_check
from maskpro_deploy.learn.estimators.step_loss import StepLoss
from maskpro_deploy.learn.kernels.fused import site_step, tell_if_changed
from maskpro_deploy.learn.kernels.optimizer import LogitOptimizer
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.model.sites import Mode, Site


class PathwiseEstimator:
    """See the module.

    Args:
        config: the settings.
        model: the model whose layers the sites are.
        sites: all of them; their distribution is a conditional Bernoulli one.
        loss: the objective.
    """

    def __init__(self, config: LearnConfig, model: LearningModel, sites: Sequence[Site], loss: StepLoss) -> None:
        self._config, self._model, self._sites, self._loss = config, model, sites, loss
        self._optimizer = LogitOptimizer()
        self._site_step = site_step(sites[0].family, model.head.device)
        self._step, self._temperature = 0, 0.0
        for site in sites:
            site.draw, site.on_gradient = self._draw, self._move

    def step(self, windows: Windows, step: int, left: float) -> Tensor:
        """One forward and one backward pass."""
        self._optimizer.begin(self._config.rate * left)
        self._step, self._temperature = step, self._config.temperature * left
        for site in self._sites:
            site.mode = Mode.SAMPLE if self._temperature > 0 else Mode.ARGMAX
        loss = self._loss(windows, differentiable=True)
        value = early_check(loss, step, self._model, windows)
        self._model.backward(loss)
        return value

    @property
    def moved_by(self) -> str:
        """See `fused.SiteStep`."""
        return self._site_step.moved_by

    def _draw(self, site: Site) -> Tensor:
        return draw(site, self._temperature, site.key(self._config.seed, self._step))

    def _move(self, site: Site, grad_weight: Tensor) -> None:
        """Turn the gradient of a masked weight into a step of its logits.  # (O, C)"""
        self._site_step(self._optimizer, site, grad_weight, site.key(self._config.seed, self._step))

    def tensors(self) -> dict[str, Tensor]:
        """Logits and moments."""
        return {f"logits/{s.name}": s.logits for s in self._sites} | self._optimizer.tensors()

    def numbers(self) -> dict[str, Any]:
        """The optimiser's step, and by what logits are moved."""
        return {"optimizer_step": self._optimizer.step, "moved_by": self.moved_by}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        tell_if_changed(self._site_step, numbers)
        self._optimizer.step = int(numbers["optimizer_step"])
        for site in self._sites:
            site.logits.copy_(tensors[f"logits/{site.name}"])
            site.kept = site.argmax()
            self._optimizer.restore(site.name, tensors, site.logits.device)

    def metrics(self) -> dict[str, float]:
        """Nothing beyond the loss."""
        return {}


def draw(site: Site, temperature: float, key: int, *, mirrored: bool = False) -> Tensor:
    """Bits of a sample from p_{θ/τ}: the same key gives the same one.

    Args:
        site: whose logits.
        temperature: τ.
        key: of the uniform numbers.
        mirrored: take 1 - u for every uniform number u: the other half of an antithetic pair.

    Returns:
        (ceil(O * C / 8),) uint8.
    """
    generator = torch.Generator(device=site.logits.device).manual_seed(key)
    bits = torch.empty_like(site.kept)
    for _, chunk in site.chunks():
        logits = site.logits[:, chunk].float().div_(temperature)
        uniform = torch.rand(site.family.uniforms, logits.shape[1], generator=generator, device=logits.device)
        if mirrored:
            uniform = uniform.neg_().add_(1 - 2**-24).clamp_min_(0)  # torch draws multiples of 2^-24: so are these, in [0, 1)
        bits[site.bits_of(chunk)] = pack(site.family.sample(logits, uniform))
    return bits
