"""Recovery of every kept weight: its gradient is used as soon as the backward pass has it, layer by layer, and forgotten.

Kept weights move by Adam with a state of 4 bytes each (`kernels.kept_weights`). With `--train all` or `norms` the model's vectors
move, too: scales of norms and biases. They are few, so Adam in float32 moves them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskpro_deploy.learn.estimators.base import StepLoss
from maskpro_deploy.learn.kernels.exact_adam import ExactAdam
from maskpro_deploy.learn.kernels.kept_weights import WeightOptimizer, gather_kept, scatter_kept, weight_schedule
from maskpro_deploy.learn.kernels.weight_step import move_weights
from maskpro_deploy.learn.model.masked_linear import MaskedLinear, Mode, set_mode
from maskpro_deploy.learn.model.model import LearningModel, Windows
from maskpro_deploy.learn.ranks.group import Ranks
from maskpro_deploy.learn.recovery.config import ALL, NORMS, WEIGHTS, RecoverConfig
from maskpro_deploy.learn.recovery.method import Method


class FullRecovery(Method):
    """See the module."""

    def __init__(self, config: RecoverConfig, model: LearningModel, layers: Sequence[MaskedLinear], loss: StepLoss) -> None:
        super().__init__(config, model, layers, loss)
        self._weights = WeightOptimizer(decay=config.weight_decay) if config.train in (WEIGHTS, ALL) else None
        self._vectors = Vectors(model.model) if config.train in (NORMS, ALL) else None
        self._step = 0

    def step(self, windows: Windows, step: int, left: float) -> Tensor:
        rate, self._step = self._config.rate * weight_schedule(left), step
        set_mode(self._sites, Mode.ARGMAX)
        if self._weights is not None:
            self._weights.begin(rate)
        loss = self._learn_backward(self._loss(windows, differentiable=True), windows, step)
        if self._vectors is not None:
            self._vectors.move(rate, self._ranks)
        return loss

    def needs_gradient(self, site: MaskedLinear) -> bool:
        return self._weights is not None

    def take_gradient(self, site: MaskedLinear, grad_weight: Tensor) -> None:
        assert self._weights is not None
        move_weights(self._weights, site, grad_weight, site.kept, site.key(self._config.seed, self._step))

    def values(self) -> dict[str, Tensor]:
        kept = {} if self._weights is None else {f"kept/{s.name}": gather_kept(s.weight, s.kept) for s in self._sites}
        return kept | ({} if self._vectors is None else self._vectors.values())

    def weights_of(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = {s.name: s for s in self._sites}
        weights = {}
        for key, value in values.items():
            kind, _, name = key.partition("/")
            site = own.get(name) if kind == "kept" else None
            weights[name] = value if site is None else scatter_kept(torch.zeros_like(site.weight), site.kept, value)
        return weights

    def restore_values(self, values: Mapping[str, Tensor]) -> None:
        for site in self._sites:
            if (kept := values.get(f"kept/{site.name}")) is not None:
                site.weight.copy_(scatter_kept(site.weight, site.kept, kept.to(site.weight.device)))
        if self._vectors is not None:
            self._vectors.restore_values(values)

    def tensors(self) -> dict[str, Tensor]:
        moved = {} if self._weights is None else self._weights.tensors()
        return {f"now/{key}": x for key, x in self.values().items()} | moved | self._vector_tensors()

    def _vector_tensors(self) -> dict[str, Tensor]:
        return {} if self._vectors is None else self._vectors.tensors()

    def numbers(self) -> dict[str, Any]:
        return {"weights_step": 0 if self._weights is None else self._weights.step}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        self.restore_values({k.removeprefix("now/"): x for k, x in tensors.items() if k.startswith("now/")})
        if self._weights is not None:
            self._weights.step = int(numbers["weights_step"])
            for site in self._sites:
                self._weights.restore(site.name, tensors, site.weight.device)
        if self._vectors is not None:
            self._vectors.restore(tensors)


class Vectors:
    """The model's parameters of one dimension, which Adam moves in float32."""

    def __init__(self, model: nn.Module) -> None:
        self._own = {f"vector/{name}": p.requires_grad_() for name, p in model.named_parameters() if p.dim() == 1}
        self._exact = ExactAdam({key: p.detach().float().clone() for key, p in self._own.items()})

    def move(self, rate: float, ranks: Ranks) -> None:
        """Take the gradients that the backward pass left, those of all ranks, and forget them."""
        sums = {
            key: ranks.start_sum(torch.zeros_like(p, dtype=torch.float32) if p.grad is None else p.grad.float())
            for key, p in self._own.items()
            if p.grad is not None or ranks.size > 1
        }
        for key, pending in sums.items():
            self._exact.add(key, pending.wait())
            self._own[key].grad = None
        self._exact.move(rate)
        self._write()

    def _write(self) -> None:
        with torch.no_grad():
            for key, parameter in self._own.items():
                parameter.copy_(self._exact[key])

    def values(self) -> dict[str, Tensor]:
        """A copy of them, in float32."""
        return self._exact.values()

    def restore_values(self, values: Mapping[str, Tensor]) -> None:
        """Put values back."""
        self._exact.restore_values(values)
        self._write()

    def tensors(self) -> dict[str, Tensor]:
        """The optimiser's state, by name."""
        return self._exact.tensors()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take a saved state."""
        self._exact.restore(tensors)
