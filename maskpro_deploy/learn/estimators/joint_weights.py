"""How the kept weights move in the same backward pass as the masks' logits; the dense weights are kept apart for the teacher.

`KeptWeights` moves each of them by Adam (`kernels.kept_weights`). `LowRankWeights` moves a low-rank delta of every layer instead,
W + s B A under whatever mask holds, as LoRA does (`model.low_rank`): thousands of numbers a layer where the layer has hundreds of
thousands, so there is less to memorise a text with, and a weight that comes back has what its row and column have learned.
`choices.WEIGHTS` lists the ways.

Shapes: `O` outputs, `C` inputs, `R` rank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.kernels.exact_adam import ExactAdam
from maskpro_deploy.learn.kernels.kept_weights import WeightOptimizer, weight_schedule
from maskpro_deploy.learn.kernels.site_step import warn_if_moved_otherwise
from maskpro_deploy.learn.kernels.triton_step import masked_weight
from maskpro_deploy.learn.kernels.weight_step import kept_step, move_weights
from maskpro_deploy.learn.model.low_rank import collect_factors, name_factors, start_low_rank
from maskpro_deploy.learn.model.sites import Site


class JointWeights(ABC):
    """One way to move the weights of all sites."""

    def __init__(self, config: LearnConfig, sites: Sequence[Site]) -> None:
        self._config, self._sites = config, sites
        self._rate = 0.0

    def begin(self, left: float) -> None:
        """Start a step; `left` is the share of the schedules that is left."""
        self._rate = self._config.trained_rate * weight_schedule(left)

    @abstractmethod
    def take_gradient(self, site: Site, grad_weight: Tensor, under: Tensor, key: int) -> None:
        """Take ∂L/∂W of a site's masked weight.

        `under` are the bits of the mask that it was taken under; `site.kept` is the mask from now on. `key` is that of the
        roundings.  # (O, C), (ceil(O * C / 8),) uint8
        """

    def end(self) -> None:  # noqa: B027 - most have nothing left to do then
        """End a step whose backward pass is done."""

    @property
    def moved_by(self) -> str | None:
        """By what weights are moved, see `kernels.kept_weights`; None where there is one way only."""
        return None

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The whole state, weights included; keys are `kind/site name`."""

    def numbers(self) -> dict[str, Any]:
        """The rest of the state: what JSON holds."""
        return {}

    @abstractmethod
    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Go on from a saved state, as `tensors` and `numbers` gave it."""


class KeptWeights(JointWeights):
    """Every kept weight moves, as soon as its layer's gradient is there."""

    def __init__(self, config: LearnConfig, sites: Sequence[Site]) -> None:
        super().__init__(config, sites)
        self._optimizer = WeightOptimizer(decay=config.weight_decay)

    def begin(self, left: float) -> None:
        super().begin(left)
        self._optimizer.begin(self._rate)

    def take_gradient(self, site: Site, grad_weight: Tensor, under: Tensor, key: int) -> None:
        move_weights(self._optimizer, site, grad_weight, under, key)

    @property
    def moved_by(self) -> str:
        return kept_step(self._sites[0].pattern, self._sites[0].weight.device).moved_by

    def tensors(self) -> dict[str, Tensor]:
        return self._optimizer.tensors() | {f"trained/{s.name}": s.weight for s in self._sites}

    def numbers(self) -> dict[str, Any]:
        return {"weights_step": self._optimizer.step, "weights_moved_by": self.moved_by}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        warn_if_moved_otherwise("weights", numbers.get("weights_moved_by"), self.moved_by)
        self._optimizer.step = int(numbers["weights_step"])
        for site in self._sites:
            site.weight.copy_(tensors[f"trained/{site.name}"])
            self._optimizer.restore(site.name, tensors, site.weight.device)


class LowRankWeights(JointWeights):
    """Two factors of every layer move at the end of a step; its weight is the sum of where it started and of their product.

    The gradient of the delta is that of the weights that the mask of the step kept.
    """

    def __init__(self, config: LearnConfig, sites: Sequence[Site]) -> None:
        super().__init__(config, sites)
        # without a prior that changes weights, the dense ones are where they started
        self._start = {s.name: s.weight.clone() if config.prior_update else s.dense for s in sites}
        keys = {s.name: s.key(config.seed) for s in sites}
        self._deltas = {s.name: start_low_rank(s.weight, config.rank, config.alpha, keys[s.name]) for s in sites}
        self._adam = ExactAdam(collect_factors(self._deltas), config.weight_decay)

    def take_gradient(self, site: Site, grad_weight: Tensor, under: Tensor, key: int) -> None:
        gradients = self._deltas[site.name].gradients(masked_weight(grad_weight.float(), under))
        for factor, grad in name_factors(site.name, *gradients):
            self._adam.add(factor, grad)

    def end(self) -> None:
        self._adam.move(self._rate)
        self._write()

    def _write(self) -> None:
        for site in self._sites:
            site.weight.copy_(self._deltas[site.name].add_to(self._start[site.name]))

    def tensors(self) -> dict[str, Tensor]:
        started = {f"start_weight/{name}": x for name, x in self._start.items()} if self._config.prior_update else {}
        return collect_factors(self._deltas) | self._adam.tensors() | started

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        self._adam.restore_values(tensors)
        self._adam.restore(tensors)
        for name, start in self._start.items():
            if (saved := tensors.get(f"start_weight/{name}")) is not None:
                start.copy_(saved)
        self._write()
