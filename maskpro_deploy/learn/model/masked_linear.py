"""A linear layer under a mask, in a model that learns: the weight, the mask's bits, and who takes the weight's gradient.

A `MaskedLinear` stands in for one `nn.Linear`. In a forward pass it multiplies its weight with a mask (its own, one that its hook
draws, or none); in the backward pass it hands the weight's gradient to its hook and forgets it, so that no gradient is ever
stored for the whole model. Nor is a masked weight: the backward pass makes it again from the mask's bits.

Shapes: `O` outputs, `C` inputs (the reduction dimension), `M` weights in a group, `G = O * C / M` groups, `T` tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from maskpro_deploy.learn.distributions.planes import unpack
from maskpro_deploy.learn.kernels.triton_step import masked_weight
from maskpro_deploy.learn.model.low_rank import LowRank
from maskpro_deploy.pattern import NMPattern

# worked on in one go: large enough that launching an operation costs little, small enough for a CPU's cache
_CHUNK_WEIGHTS, _CHUNK_WEIGHTS_GPU = 1 << 18, 1 << 20


class Mode(Enum):
    """What a masked layer does in a forward pass."""

    SAMPLE = "sample"  # the weight times the mask that the hook draws
    ARGMAX = "argmax"  # times its own mask; where there are logits, their argmax
    DENSE = "dense"  # the dense weight, without a mask
    HOOK = "hook"  # whatever the hook computes


L = TypeVar("L", bound="MaskedLinear")


class SiteHook(Generic[L]):
    """Who learns on masked layers, and what they ask of it; this one samples nothing and moves nothing."""

    def draw_mask(self, site: L) -> Tensor:
        """The mask in `Mode.SAMPLE`: bits, or factors (O, C) for a mask that is not a yes or no."""
        return site.kept

    def needs_gradient(self, site: L) -> bool:
        """Whether `take_gradient` wants ∂L/∂W of this layer; it is not computed otherwise."""
        return True

    def take_gradient(self, site: L, grad_weight: Tensor) -> None:
        """Take ∂L/∂W of the masked weight, and perhaps move what it came from.  # (O, C)"""

    def compute_outputs(self, site: L, x: Tensor) -> Tensor:
        """The outputs in `Mode.HOOK`.  # (..., C) -> (..., O)"""
        raise NotImplementedError


class MaskedLinear(nn.Module):
    """One linear layer under a mask; its weight has the name `name`. `kept` are the mask's bits (ceil(O * C / 8),) uint8."""

    kept: Tensor  # which whoever learns keeps up to date

    def __init__(self, name: str, linear: nn.Linear, pattern: NMPattern) -> None:
        super().__init__()
        self.name, self.pattern = name, pattern
        self.weight, self.bias = linear.weight.detach().contiguous(), linear.bias
        self.dense = self.weight  # of the dense layer: the same tensor for as long as weights are frozen
        self.delta: LowRank | None = None  # added to the weight, under the mask
        self.mode = Mode.ARGMAX
        self.hook: SiteHook[Any] = SiteHook()

    def train_weight(self, dense: Tensor | None = None) -> None:
        """Keep the dense weight apart from here on, as the weight is going to move; `dense` is it, where it is not the weight."""
        if dense is None:
            self.weight = self.dense.clone()
        else:
            self.dense = dense

    def key(self, *numbers: int) -> int:
        """A number of 63 bits for this layer and numbers such as (run seed, step): what randomness is keyed by."""
        text = ":".join([*map(str, numbers), self.name])
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1

    @property
    def groups(self) -> int:
        """G."""
        return self.weight.numel() // self.pattern.m

    def chunks(self) -> Iterator[tuple[int, slice]]:
        """The groups of the layer, some at a time: number and slice.  # of (G,)"""
        groups, m = self.groups, self.pattern.m
        weights = _CHUNK_WEIGHTS if self.weight.device.type == "cpu" else _CHUNK_WEIGHTS_GPU
        size = max(8, weights // m // 8 * 8)  # whole bytes of packed bits
        for number, start in enumerate(range(0, groups, size)):
            yield number, slice(start, min(start + size, groups))

    def bits_of(self, chunk: slice) -> slice:
        """Where the packed bits of some groups are."""
        m = self.pattern.m
        return slice(chunk.start * m // 8, -(-chunk.stop * m // 8))

    def planes(self, bits: Tensor, chunk: slice) -> Tensor:
        """The mask of some groups.  # (ceil(O * C / 8),) uint8 -> (M, g) boolean"""
        m = self.pattern.m
        return unpack(bits[self.bits_of(chunk)], (chunk.stop - chunk.start) * m).view(-1, m).t().contiguous()

    def choose(self) -> Tensor | None:
        """The current mode's mask: bits, or factors (O, C), or None for no mask."""
        if self.mode is Mode.DENSE:
            return None
        return self.hook.draw_mask(self) if self.mode is Mode.SAMPLE else self.kept

    def under(self, mask: Tensor | None) -> Tensor:
        """The weight and its delta under a mask that `choose` gave; the dense weight under none.  # (O, C)"""
        if mask is None:
            return self.dense
        weight = self.weight if self.delta is None else self.delta.add_to(self.weight)
        return masked_weight(weight, mask) if mask.dtype == torch.uint8 else weight * mask

    def masked_weight(self) -> Tensor:
        """The weight under the current mode's mask.  # (O, C)"""
        return self.under(self.choose())

    def forward(self, x: Tensor) -> Tensor:
        if self.mode is Mode.HOOK:
            outputs: Tensor = self.hook.compute_outputs(self, x)
            return outputs
        y: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return y


def set_mode(layers: Sequence[MaskedLinear], mode: Mode) -> None:
    """Let several layers do the same in forward passes."""
    for layer in layers:
        layer.mode = mode


class _Product(torch.autograd.Function):
    """y = x (W ∘ m)^T + b, whose backward pass hands ∂L/∂W to the layer's hook instead of returning it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: MaskedLinear) -> Tensor:
        ctx.layer, ctx.mask = layer, layer.choose()
        ctx.save_for_backward(x)
        return nn.functional.linear(x, layer.under(ctx.mask), layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        layer, grad = ctx.layer, grads[0]
        # the gradient of x first: taking the other one moves the weight or its mask
        grad_x = grad @ layer.under(ctx.mask)
        if layer.hook.needs_gradient(layer):
            layer.hook.take_gradient(layer, grad.flatten(0, -2).t() @ x.flatten(0, -2))
        return grad_x, None
