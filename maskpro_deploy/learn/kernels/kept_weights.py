r"""How kept weights move, and how little of their state is kept: 4 bytes a kept weight beside bfloat16 weights, 3 beside float32.

Adam as for the logits (`optimizer`): the second moment is bfloat16, the first an int8 relative to it. A bfloat16 weight is too
coarse to move by small steps (its last bit is worth up to 0.8 % of it), so a byte more holds what it lacks, in 256ths of that
bit: together they are a float of 24 bits, which is rounded stochastically.

The state exists for kept weights alone. A weight that its mask drops keeps its last value, as bfloat16, and loses its state; one
that comes back starts from that value with both moments at zero. Nothing else moves a dropped weight, and under its mask it is
+0.0.

Shapes: `N` kept of `M` weights in a group, `G` groups (of a chunk of a layer). Slot k of a group is its k-th kept weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from maskpro_deploy.learn.distributions.planes import unpack
from maskpro_deploy.learn.kernels.optimizer import Moments, advance

_WARM_UP, _LEAST = 0.05, 0.02  # the moments of the first steps are made of few gradients
_NOISE_SHIFT = 5  # noise has 13 bits, a weight of 24 bits lacks 8 of a float32


@dataclass(frozen=True, slots=True)
class KeptState:
    """The state of the kept weights of some groups."""

    moments: Moments  # (N, G)
    low: Tensor | None  # what a bfloat16 weight lacks, in 256ths of its last bit (N, G) int8; None beside float32

    def part(self, chunk: slice) -> KeptState:
        """Views of some groups."""
        low = None if self.low is None else self.low[:, chunk]
        return KeptState(Moments(self.moments.first[:, chunk], self.moments.second[:, chunk]), low)

    def tensors(self) -> dict[str, Tensor]:
        """Everything, by kind."""
        all_kinds = {"kept_first": self.moments.first, "kept_second": self.moments.second, "kept_low": self.low}
        return {kind: x for kind, x in all_kinds.items() if x is not None}


@dataclass(slots=True, kw_only=True)
class WeightOptimizer:
    """Adam over the kept weights of many layers."""

    betas: tuple[float, float] = (0.9, 0.95)  # decay of the first and of the second moment
    decay: float = 0.0  # share of itself by which a kept weight shrinks in a step of rate 1
    step: int = 0  # steps begun, counted from 1 by `begin`
    rate: float = 0.0  # of the current step
    states: dict[str, KeptState] = field(default_factory=dict)  # by the layer's name

    def begin(self, rate: float) -> None:
        """Start a step: every gradient that arrives until the next `begin` belongs to it."""
        self.step += 1
        self.rate = rate

    @property
    def scale(self) -> float:
        """The rate of the current step, with the correction of both moments' start at zero."""
        beta1, beta2 = self.betas
        return self.rate * math.sqrt(1 - beta2**self.step) / (1 - beta1**self.step)

    def whole(self, name: str, weight: Tensor, kept: int, m: int) -> KeptState:
        """The state of a layer of G groups of M weights, zero before its first step."""
        if name not in self.states:
            shape, device = (kept, weight.numel() // m), weight.device
            moments = Moments(
                torch.zeros(shape, dtype=torch.int8, device=device), torch.zeros(shape, dtype=torch.bfloat16, device=device)
            )
            coarse = weight.dtype != torch.float32
            self.states[name] = KeptState(moments, torch.zeros(shape, dtype=torch.int8, device=device) if coarse else None)
        return self.states[name]

    def tensors(self) -> dict[str, Tensor]:
        """All state, for saving; keys are `kind/layer name`."""
        return {f"{kind}/{name}": x for name, state in self.states.items() for kind, x in state.tensors().items()}

    def restore(self, name: str, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Take the saved state of a layer, if it had any."""
        if f"kept_first/{name}" in tensors:
            first, second = (tensors[f"kept_{kind}/{name}"].to(device) for kind in ("first", "second"))
            low = tensors.get(f"kept_low/{name}")
            self.states[name] = KeptState(Moments(first, second), None if low is None else low.to(device))


def weight_schedule(left: float) -> float:
    """The rate of a step relative to the first one's: up within the first twentieth of a run, then linearly down to 0."""
    return min(left, (1 - left) / _WARM_UP + _LEAST)


def places_of(mask: Tensor, kept: int) -> Tensor:
    """Where in its group each kept weight is.  # (M, G) boolean with N ones a group -> (N, G) int64"""
    return torch.sort(mask.byte(), dim=0, descending=True, stable=True).indices[:kept]


def move_kept(
    weight: Tensor, grad: Tensor, places: Tensor, state: KeptState, dither: Tensor, scale: float | Tensor, shrink: float | Tensor,
    betas: tuple[float, float],
) -> None:  # fmt: skip
    """One step of Adam for the kept weights of some groups, in place.

    Tensors in, no branch on their values: this can be compiled. `shrink` is rate times decay.
    # weight, grad (G, M) bfloat16 or float32; places, dither (N, G)
    """
    where = places.t()  # (G, N)
    relative = advance(state.moments, grad.gather(1, where).t().float(), dither, betas)
    kept = weight.gather(1, where).t()
    if state.low is None:
        moved = kept * (1 - shrink) - relative * scale
        weight.scatter_(1, where, moved.t())
        return
    fine = (kept.contiguous().view(torch.int16).int() << 16) + (state.low.int() << 8)
    moved = fine.view(torch.float32) * (1 - shrink) - relative * scale
    bits = (moved.view(torch.int32) + (dither >> _NOISE_SHIFT)) & ~0xFF
    high = (bits + 0x8000) >> 16
    state.low.copy_((bits - (high << 16)) >> 8)
    weight.scatter_(1, where, high.to(torch.int16).view(torch.bfloat16).t())


def remap(state: KeptState, old: Tensor, new: Tensor, kept: int) -> None:
    """Move the state along with a mask that changed: weights that stay keep theirs, those that enter start at zero.

    # old, new (M, G) boolean, N ones a group each
    """
    before, after = places_of(old, kept), places_of(new, kept)
    stays = old.gather(0, after)  # (N, G)
    for x in (state.moments.first, state.moments.second, state.low):
        if x is not None:
            planes = torch.zeros(old.shape, dtype=x.dtype, device=x.device).scatter_(0, before, x)  # (M, G)
            x.copy_(planes.gather(0, after) * stays)


def gather_kept(weight: Tensor, bits: Tensor) -> Tensor:
    """The weights that a mask keeps, in the order of memory.  # (O, C), (ceil(O * C / 8),) uint8 -> (kept,)"""
    return weight.reshape(-1)[unpack(bits, weight.numel())]


def scatter_kept(weight: Tensor, bits: Tensor, values: Tensor) -> Tensor:
    """The weight with other values where a mask keeps it.  # (O, C), bits, (kept,) -> (O, C)"""
    out = weight.reshape(-1).clone()
    out[unpack(bits, weight.numel())] = values.to(out.dtype)
    return out.view(weight.shape)


def measure_added(now: Tensor, start: Tensor) -> tuple[float, float]:
    """Squared length of what was added to kept weights, and of what they were at the start.  # (kept,) each"""
    before = start.float()
    return float((now.float() - before).square().sum()), float(before.square().sum())
