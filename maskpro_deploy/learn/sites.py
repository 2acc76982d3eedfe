"""Where masks live: the linear layers of a model, each with its frozen weight, its logits and its optimiser state.

A `Site` stands in for one `nn.Linear`. In a forward pass it multiplies the frozen weight with a mask (a sample, the argmax, or
none); in the backward pass it turns the weight's gradient into a gradient of the logits and hands it to the optimiser at once,
so that no gradient is ever stored for the whole model.

Shapes: `O` outputs, `C` inputs (the reduction dimension), `M` weights in a group, `G = O * C / M` groups, `T` tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from maskpro_deploy.learn.distribution import ConditionalBernoulli


class Mode(Enum):
    """What a site multiplies its weight with."""

    SAMPLE = "sample"
    ARGMAX = "argmax"
    DENSE = "dense"


def to_planes(x: Tensor, m: int) -> Tensor:
    """Group along the last axis and bring the place in the group to the front.  # (O, C) -> (M, G) float32"""
    planes = torch.empty(m, x.numel() // m, dtype=torch.float32, device=x.device)
    return planes.copy_(x.reshape(-1, m).t())


class Site(nn.Module):
    """One masked linear layer.

    Args:
        name: the weight's name in the checkpoint.
        linear: the layer it stands in for; its weight is kept, frozen.
        family: the distribution of the masks.
        logits: initial logits (M, G), float32.
    """

    def __init__(self, name: str, linear: nn.Linear, family: ConditionalBernoulli, logits: Tensor) -> None:
        super().__init__()
        self.name = name
        self.weight, self.bias = linear.weight.detach(), linear.bias
        self.family = family
        self.logits = logits
        self.mode = Mode.ARGMAX
        self.temperature = 1.0
        self.on_gradient: Callable[[Site, Tensor], None] | None = None
        # one row of M weights-worth of zeros and ones per mask, in the weight's own dtype: sampling ends in one row gather
        self._rows = family.masks.to(self.weight.dtype)
        self._generator = torch.Generator(device=self.weight.device)

    def seed(self, *key: int) -> None:
        """Key the next sample by numbers such as (run seed, step): the same key and name give the same sample."""
        text = ":".join([*map(str, key), self.name])
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        self._generator.manual_seed(int.from_bytes(digest, "little") >> 1)

    def masked_weight(self) -> Tensor:
        """The weight under the current mode's mask.  # (O, C)"""
        if self.mode is Mode.DENSE:
            return self.weight
        rows = self._rows.index_select(0, self._state())  # (G, M)
        return self.weight * rows.view(self.weight.shape)

    def _state(self) -> Tensor:
        if self.mode is Mode.ARGMAX:
            return self.family.mode(self.logits)
        uniform = torch.rand(self.logits.shape[1], generator=self._generator, device=self.logits.device)
        return self.family.sample(self.logits / self.temperature, uniform)

    def mask(self, state: Tensor | None = None) -> npt.NDArray[np.bool_]:
        """The argmax mask, or the one of the given states.  # (G,) -> (O, C)

        A weight that is itself zero is kept only where its group has nothing better to keep.
        """
        state = self.family.mode(self.logits) if state is None else state
        kept = self.family.masks[state.long()]  # (G, M)
        zero = self.weight.reshape(-1, self.family.pattern.m) == 0  # (G, M)
        if (kept & zero).any():
            # keep what was kept, then any other nonzero weight, then zeros, each in its order
            rank = kept.float().mul_(2).add_(1).masked_fill_(zero, 0).t().contiguous()  # (M, G)
            kept = self.family.masks[self.family.mode(rank)]
        array: npt.NDArray[np.bool_] = kept.view(self.weight.shape).cpu().numpy()
        return array

    def consume(self, grad_weight: Tensor) -> None:
        """Take ∂L/∂W of the masked weight and pass ∂L/∂θ on.  # (O, C)"""
        if self.on_gradient is None:
            return
        grad_mask = to_planes(grad_weight * self.weight, self.family.pattern.m)
        self.on_gradient(self, self.family.pathwise(self.logits, grad_mask))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _MaskedLinear.apply(x, self)  # type: ignore[no-untyped-call]
        return y


class _MaskedLinear(torch.autograd.Function):
    """y = x (W ∘ m)^T + b, whose backward pass hands ∂L/∂W to the site instead of returning it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, site: Site) -> Tensor:
        weight = site.masked_weight()
        ctx.site = site
        ctx.save_for_backward(x, weight)
        return nn.functional.linear(x, weight, site.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        x, weight = ctx.saved_tensors
        grad = grads[0]
        ctx.site.consume(grad.flatten(0, -2).t() @ x.flatten(0, -2))
        return grad @ weight, None
