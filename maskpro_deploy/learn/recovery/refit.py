r"""Masked least squares: kept weights with which a layer's outputs come nearest to those of the dense layer.

With x what the layer sees in the sparse model and y what its dense twin sees in the dense one,

    min over W with the mask's zeros of  Σ ‖ W x - V y ‖² + λ ‖ W - W₀ ‖²,

V being the dense weight and W₀ the weight so far. Σ x xᵀ and Σ y xᵀ are all it takes: V is the same for every token. Every row
has other columns, so the normal equations are solved by conjugate gradients, all rows side by side, with the diagonal for a
preconditioner (Hestenes and Stiefel, 1952). λ is a share of the mean of the diagonal of Σ x xᵀ.

Shapes: `O` outputs, `C` inputs, `B` sequences, `T` tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maskpro_deploy.errors import CheckFailed
from maskpro_deploy.learn.distributions.planes import unpack
from maskpro_deploy.learn.model.calibration import BlockStream
from maskpro_deploy.learn.model.masked_linear import MaskedLinear

_DAMPING = 0.01  # λ, in means of the diagonal
_ITERATIONS = 30
_TINY = 1e-30


@dataclass(slots=True)
class Moments:
    """What both models' inputs of a layer say together."""

    gram: Tensor  # Σ x xᵀ (C, C) float32
    cross: Tensor  # Σ y xᵀ (C, C) float32

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take the inputs of more tokens.  # (..., C) each"""
        ours, theirs = (rows.reshape(-1, rows.shape[-1]).float() for rows in (x, y))
        self.gram.addmm_(ours.t(), ours)
        self.cross.addmm_(theirs.t(), ours)


def refit_block(block: str, layers: Mapping[str, MaskedLinear], sparse: BlockStream, dense: BlockStream) -> None:
    """Refit the layers of a block in the order in which they run, each behind those before it.

    `layers` are by weight name, which the dense model has too. One that does not see every token, as an expert does not, stays.
    """
    for stage in find_stages(block, layers, sparse):
        theirs = dense.model.model.get_submodule(stage[0].name.removesuffix(".weight"))
        moments = _collect(block, stage[0], theirs, sparse, dense)
        for layer in stage:
            twin: Tensor = dense.model.model.get_parameter(layer.name)
            wanted = twin.float() @ moments.cross
            layer.weight.copy_(refit(layer.weight, mask_of(layer), moments.gram, wanted))


def find_stages(block: str, layers: Mapping[str, MaskedLinear], stream: BlockStream) -> list[list[MaskedLinear]]:
    """The layers that see every token, those together that read the same tensor, in the order of the forward pass."""
    state = stream.states[0]
    inputs = stream.inputs_of(block, list(layers.values()), state)
    stages: dict[int, list[MaskedLinear]] = {}
    for layer, x in inputs.items():
        if x.shape[:-1] == state.shape[:-1]:
            stages.setdefault(id(x), []).append(layer)
    return list(stages.values())


def _collect(block: str, layer: MaskedLinear, twin: nn.Module, sparse: BlockStream, dense: BlockStream) -> Moments:
    columns, device = layer.weight.shape[1], layer.weight.device
    moments = Moments(torch.zeros(columns, columns, device=device), torch.zeros(columns, columns, device=device))
    for x, y in zip(sparse.states, dense.states, strict=True):
        moments.add(sparse.reach(block, layer, x), dense.reach(block, twin, y))
    if not torch.isfinite(moments.gram).all():
        raise CheckFailed(f"the inputs of {layer.name} are not finite on the calibration text.\nTry --dtype float32.")
    return moments


def mask_of(layer: MaskedLinear) -> Tensor:
    """The mask of a layer.  # (O, C) boolean"""
    return unpack(layer.kept, layer.weight.numel()).view(layer.weight.shape)


def refit(
    weight: Tensor, mask: Tensor, gram: Tensor, wanted: Tensor, *, damping: float = _DAMPING, iterations: int = _ITERATIONS
) -> Tensor:
    """The kept weights that minimise the error (see the module), from `weight` on; +0.0 elsewhere.

    # weight, mask (O, C); gram = Σ x xᵀ (C, C); wanted = Σ (V y) xᵀ (O, C) -> (O, C) float32
    """
    kept = mask.float()
    shift = damping * gram.diagonal().mean()
    inverse = 1 / (gram.diagonal() + shift).clamp_min(_TINY)
    solution = torch.where(mask, weight.float(), 0.0)
    residual = (wanted - solution @ gram) * kept
    scaled = residual * inverse
    direction, slope = scaled.clone(), _dot(residual, scaled)
    for _ in range(iterations):
        image = torch.addmm(direction * shift, direction, gram) * kept
        length = slope / _dot(direction, image).clamp_min(_TINY)
        solution.addcmul_(direction, length)
        residual.addcmul_(image, length, value=-1)
        scaled = residual * inverse
        before, slope = slope, _dot(residual, scaled)
        direction = torch.addcmul(scaled, direction, slope / before.clamp_min(_TINY))
    return solution


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Row by row.  # (O, C) each -> (O, 1)"""
    return (one * other).sum(1, keepdim=True)
