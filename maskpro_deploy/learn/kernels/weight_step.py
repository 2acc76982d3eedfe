"""How the kept weights of a layer take a gradient, given the mask that it was taken under and the one that holds from now on.

On a CPU a step is one pass of native code where there is a C compiler (`native_weights`), on a GPU a few kernels of torch.compile
(`compiled`).

Shapes: `O` outputs, `C` inputs, `M` weights in a group, `G` groups.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from maskpro_deploy.learn.kernels import compiled
from maskpro_deploy.learn.kernels.compiled import CompiledKeptStep
from maskpro_deploy.learn.kernels.kept_weights import KeptByOperations, KeptChunk, KeptStep, WeightOptimizer
from maskpro_deploy.learn.kernels.native_weights import native_kept_step
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

    def bits_of(self, chunk: slice) -> slice:
        """Where the packed bits of some groups are."""


@functools.cache
def kept_step(pattern: NMPattern, device: torch.device) -> KeptStep:
    """The way to move some groups' kept weights on a device: compiled where that can be done, else operation by operation."""
    eager = KeptByOperations()
    if device.type == "cpu":
        return native_kept_step(pattern, eager)
    return CompiledKeptStep(eager) if pattern.m <= compiled.MAX_GROUP else eager


def move_weights(
    optimizer: WeightOptimizer, layer: TrainedLayer, grad_weight: Tensor, under: Tensor, key: int, step: KeptStep | None = None
) -> None:
    """Move the weights that the mask `under` keeps, in place, and let their state follow to `layer.kept`.

    `key` is that of the roundings; `step` does it, by default `kept_step`.  # ∂L/∂W (O, C), bits (ceil(O * C / 8),) uint8
    """
    n, m = layer.pattern.n, layer.pattern.m
    step = step or kept_step(layer.pattern, layer.weight.device)
    state = optimizer.whole(layer.name, layer.weight, n, m)
    weight, grad = layer.weight.view(-1, m), grad_weight.reshape(-1, m)
    rates = optimizer.scale, optimizer.rate * optimizer.decay, optimizer.betas
    for number, groups in layer.chunks():
        bits, dither = layer.bits_of(groups), noise((n, groups.stop - groups.start), key, weight.device, number)
        after = None if layer.kept is under else layer.kept[bits]
        step(KeptChunk(grad[groups], weight[groups], under[bits], after, state.part(groups), dither, *rates))
