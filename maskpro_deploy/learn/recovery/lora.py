"""Recovery by low-rank deltas: W + M ∘ (s B A), whose factors alone are trained; merged, the mask holds exactly.

In a forward pass a layer's weight is W + s B A under its mask. In the backward pass, with G = ∂L/∂(W + s B A) ∘ M,

    ∂L/∂B = s G Aᵀ,    ∂L/∂A = s Bᵀ G,

and G is forgotten layer by layer. Adam moves both factors in float32: 16 R (O + C) bytes a layer more than its frozen weight. A
starts as PEFT starts it, B at zero, unless an adapter is given; deltas are those of LoRA (Hu et al., arXiv 2106.09685).

Shapes: `O` outputs, `C` inputs, `R` rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from maskpro_deploy.errors import ConfigError
from maskpro_deploy.learn.estimators.base import StepLoss
from maskpro_deploy.learn.kernels.exact_adam import ExactAdam
from maskpro_deploy.learn.kernels.kept_weights import weight_schedule
from maskpro_deploy.learn.kernels.triton_step import masked_weight
from maskpro_deploy.learn.model.low_rank import LowRank, collect_factors, name_factors, start_low_rank
from maskpro_deploy.learn.model.masked_linear import MaskedLinear, Mode, set_mode
from maskpro_deploy.learn.model.model import LearningModel, Windows
from maskpro_deploy.learn.recovery.adapters import ADAPTER_FOLDER, fit_adapter, read_adapter, save_adapter
from maskpro_deploy.learn.recovery.config import RecoverConfig
from maskpro_deploy.learn.recovery.method import Method, relative_distance


class LoraRecovery(Method):
    """See the module; layers without a delta stay as they are."""

    def __init__(self, config: RecoverConfig, model: LearningModel, layers: Sequence[MaskedLinear], loss: StepLoss) -> None:
        super().__init__(config, model, layers, loss)
        if config.adapter is None:
            deltas = dict(start_deltas(config, layers))
        else:
            deltas = fit_adapter(read_adapter(Path(config.adapter)), model, layers)
        for layer in layers:
            layer.delta = deltas.get(layer.name)
        self._adam = ExactAdam(collect_factors(deltas), config.weight_decay)

    def step(self, windows: Windows, step: int, left: float) -> Tensor:
        set_mode(self._sites, Mode.ARGMAX)
        loss = self._learn_backward(self._loss(windows, differentiable=True), windows, step)
        self._adam.move(self._config.rate * weight_schedule(left))
        return loss

    def needs_gradient(self, site: MaskedLinear) -> bool:
        return site.delta is not None

    def take_gradient(self, site: MaskedLinear, grad_weight: Tensor) -> None:
        assert site.delta is not None
        for key, grad in name_factors(site.name, *site.delta.gradients(masked_weight(grad_weight.float(), site.kept))):
            self._adam.add(key, grad)

    def values(self) -> dict[str, Tensor]:
        return self._adam.values()

    def weights_of(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {layer.name: _merge(layer, delta) for layer, delta in self._deltas(values)}

    def restore_values(self, values: Mapping[str, Tensor]) -> None:
        self._adam.restore_values(values)

    def measure_movement(self, start: Mapping[str, Tensor]) -> float:
        pairs = ((layer, before.add_to(layer.weight)) for layer, before in self._deltas(start))
        return relative_distance((layer.masked_weight(), masked_weight(weight, layer.kept)) for layer, weight in pairs)

    def tensors(self) -> dict[str, Tensor]:
        return {f"now/{key}": x for key, x in self.values().items()} | self._adam.tensors()

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, object]) -> None:
        self.restore_values({k.removeprefix("now/"): x for k, x in tensors.items() if k.startswith("now/")})
        self._adam.restore(tensors)

    def save_more(self, values: Mapping[str, Tensor], folder: Path, base: str) -> None:
        """Write the deltas as an adapter, see `save_adapter`."""
        deltas = {place: delta for layer, delta in self._deltas(values) for place in self._model.places[layer.name]}
        save_adapter(deltas, folder / ADAPTER_FOLDER, base, self._model)

    def _deltas(self, values: Mapping[str, Tensor]) -> Iterator[tuple[MaskedLinear, LowRank]]:
        """Every layer with a delta, and its delta under some values."""
        for layer in self._sites:
            if layer.delta is not None:
                a, b = (values[key].to(layer.weight.device) for key, _ in name_factors(layer.name, layer.delta.a, layer.delta.b))
                yield layer, replace(layer.delta, a=a, b=b)


def start_deltas(config: RecoverConfig, layers: Sequence[MaskedLinear]) -> Iterator[tuple[str, LowRank]]:
    """Deltas of zero for the layers that `--target-modules` names.

    Raises:
        ConfigError: it names none.
    """
    chosen = [x for x in layers if re.search(config.target_modules or "", x.name.removesuffix(".weight"))]
    if not chosen:
        raise ConfigError(f"--target-modules {config.target_modules} names no masked layer, such as {layers[0].name}.")
    for layer in chosen:
        key = layer.key(config.seed)
        yield layer.name, start_low_rank(layer.weight, config.rank, config.alpha, key, stabilised=config.rslora)


def _merge(layer: MaskedLinear, delta: LowRank) -> Tensor:
    """W + s B A in float32, +0.0 where the mask drops it.  # (O, C)"""
    return masked_weight(delta.add_to(layer.weight.float()), layer.kept)
