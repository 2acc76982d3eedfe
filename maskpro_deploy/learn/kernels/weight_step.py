"""How the kept weights of a layer take a gradient, given the mask that it was taken under and the one that holds from now on.

Shapes: `O` outputs, `C` inputs, `M` weights in a group, `G` groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from maskpro_deploy.learn.kernels.kept_weights import WeightOptimizer, move_kept, places_of, remap
from maskpro_deploy.learn.kernels.optimizer import noise
from maskpro_deploy.pattern import NMPattern


class TrainedLayer(Protocol):
    """A layer whose kept weights move: what a step needs of `model.masked_linear.MaskedLinear`."""

    name: str
    pattern: NMPattern
    weight: Tensor
    kept: Tensor

    def chunks(self) -> Iterator[tuple[int, slice]]:
        """The groups, some at a time: number and slice."""

    def planes(self, bits: Tensor, chunk: slice) -> Tensor:
        """The mask of some groups.  # -> (M, g) boolean"""


def move_weights(optimizer: WeightOptimizer, layer: TrainedLayer, grad_weight: Tensor, under: Tensor, key: int) -> None:
    """Move the weights that the mask `under` keeps, in place, and let their state follow to `layer.kept`.

    `key` is that of the roundings.  # ∂L/∂W (O, C), bits (ceil(O * C / 8),) uint8
    """
    n, m = layer.pattern.n, layer.pattern.m
    state = optimizer.whole(layer.name, layer.weight, n, m)
    weight, grad = layer.weight.view(-1, m), grad_weight.reshape(-1, m)
    shrink = optimizer.rate * optimizer.decay
    for number, groups in layer.chunks():
        old, part = layer.planes(under, groups), state.part(groups)
        dither = noise((n, groups.stop - groups.start), key, weight.device, number)
        move_kept(weight[groups], grad[groups], places_of(old, n), part, dither, optimizer.scale, shrink, optimizer.betas)
        if layer.kept is not under:
            remap(part, old, layer.planes(layer.kept, groups), n)
