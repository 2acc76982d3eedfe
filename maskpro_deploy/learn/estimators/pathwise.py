"""The pathwise estimator: a forward pass under one hard mask, a backward pass, and ∂L/∂θ = Cov(m) ∂L/∂m.

The hard mask is a sample m ~ p_{θ/τ} whose temperature τ decays to 0; at τ = 0, the default, it is the argmax mask, and the
estimator a straight-through one. Each layer's gradient moves its logits as soon as the backward pass has it, and with `--weights
train` its kept weights, too: those under the mask that the gradient was taken with.

Shapes: `O` outputs, `C` inputs, `M` weights in a group, `G` groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.estimators.base import Estimator, StepLoss
from maskpro_deploy.learn.estimators.joint_weights import JointWeights
from maskpro_deploy.learn.kernels.optimizer import LogitOptimizer
from maskpro_deploy.learn.kernels.site_step import site_step, warn_if_moved_otherwise
from maskpro_deploy.learn.model.masked_linear import Mode, set_mode
from maskpro_deploy.learn.model.model import LearningModel, Windows
from maskpro_deploy.learn.model.sites import Site


class PathwiseEstimator(Estimator):
    """See the module; the distribution of the sites is one with a pathwise derivative."""

    def __init__(self, config: LearnConfig, model: LearningModel, sites: Sequence[Site], loss: StepLoss) -> None:
        super().__init__(config, model, sites, loss)
        self._optimizer = LogitOptimizer()
        self._weights: JointWeights | None = config.weights_choice.load()(config, sites) if config.trains_weights else None
        self._site_steps = {site.pattern: site_step(site.family, model.head.device) for site in sites}
        self._step, self._temperature = 0, 0.0

    def step(self, windows: Windows, step: int, left: float) -> Tensor:
        self._begin(step, left)
        set_mode(self._sites, self._hard_mode)
        loss = self._learn_backward(self._loss(windows, differentiable=True), windows, step)
        if self._weights is not None:
            self._weights.end()
        return loss

    def _begin(self, step: int, left: float) -> None:
        """Set what the gradients of a step are going to need; `left` is the share of the schedules that is left."""
        self._optimizer.begin(self._config.rate * left)
        if self._weights is not None:
            self._weights.begin(left)
        self._step, self._temperature = step, self._config.temperature * left

    @property
    def _hard_mode(self) -> Mode:
        """What a forward pass runs under: samples, or the argmax masks."""
        return Mode.SAMPLE if self._temperature > 0 else Mode.ARGMAX

    @property
    def moved_by(self) -> str:
        return ", ".join(dict.fromkeys(step.moved_by for step in self._site_steps.values()))

    @property
    def weights_moved_by(self) -> str | None:
        return None if self._weights is None else self._weights.moved_by

    def draw_mask(self, site: Site) -> Tensor:
        return site.sample(self._temperature, site.key(self._config.seed, self._step))

    def take_gradient(self, site: Site, grad_weight: Tensor) -> None:
        under, key = site.kept, site.key(self._config.seed, self._step)
        # goes by the weights that the gradient was taken at
        self._site_steps[site.pattern](self._optimizer, site, grad_weight, key)
        if self._weights is not None:
            self._weights.take_gradient(site, grad_weight, under, key)

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | self._optimizer.tensors() | ({} if self._weights is None else self._weights.tensors())

    def numbers(self) -> dict[str, Any]:
        trained = {} if self._weights is None else self._weights.numbers()
        return {"optimizer_step": self._optimizer.step, "moved_by": self.moved_by, **trained}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        super().restore(tensors, numbers)
        warn_if_moved_otherwise("logits", numbers.get("moved_by"), self.moved_by)
        self._optimizer.step = int(numbers["optimizer_step"])
        for site in self._sites:
            self._optimizer.restore(site.name, tensors, site.logits.device)
        if self._weights is not None:
            self._weights.restore(tensors, numbers)
