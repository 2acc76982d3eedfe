r"""How kept weights move, and how little of their state is kept: 4 bytes a kept weight for bfloat16 weights, 3 for float32.

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
from typing import Protocol

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
    low: Tensor | None  # what a bfloat16 weight lacks, in 256ths of its last bit (N, G) int8; None for float32

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


@dataclass(frozen=True, slots=True)
class KeptChunk:
    """Some groups of a layer whose kept weights take a step; weight and state are changed in place."""

    grad: Tensor  # ∂L/∂W (G, M), in the weight's dtype or float32
    weight: Tensor  # (G, M) bfloat16 or float32
    under: Tensor  # bits of the mask that the gradient was taken under (ceil(G * M / 8),) uint8
    after: Tensor | None  # those of the mask that holds from now on; None where it stays
    state: KeptState  # (N, G)
    dither: Tensor  # noise of the roundings (N, G)
    scale: float | Tensor  # of the optimiser; tensors where the step is compiled: numbers would become part of the code
    shrink: float | Tensor  # the share of themselves that weights lose: rate times decay
    betas: tuple[float, float]


class KeptStep(Protocol):
    """Moves the kept weights of some groups."""

    @property
    def moved_by(self) -> str:
        """By what: "native", "compiled", or "torch" operation by operation."""

    def __call__(self, chunk: KeptChunk) -> None:
        """Move them, and let their state follow to the next mask."""


class KeptByOperations:
    """A `KeptStep` of torch's operations."""

    moved_by = "torch"

    def __call__(self, chunk: KeptChunk) -> None:
        move_and_remap(chunk)


def move_and_remap(chunk: KeptChunk) -> None:
    """Move the kept weights of some groups, and let their state follow to the next mask.

    Tensors in, no branch on their values: this can be compiled.
    """
    under = slots_of(_planes(chunk.under, chunk.weight), len(chunk.dither))
    move_kept(chunk, under)
    if chunk.after is not None:
        remap(chunk.state, under, slots_of(_planes(chunk.after, chunk.weight), len(chunk.dither)))


def _planes(bits: Tensor, weight: Tensor) -> Tensor:
    """The mask of some groups.  # (ceil(G * M / 8),) uint8, (G, M) -> (M, G) int8"""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)
    all_bits = (bits[:, None] >> shifts).bitwise_and_(1).view(-1)
    return all_bits[: weight.numel()].view(weight.shape).t().contiguous().view(torch.int8)


def move_kept(chunk: KeptChunk, slots: Tensor) -> None:
    """One step of Adam, in place.  # `slots_of` the mask of the gradient"""
    state, planes = chunk.state, _to_bits(chunk.weight).t().contiguous()  # (M, G)
    grad, old = pick(_to_bits(chunk.grad).t(), slots).view(torch.float32), pick(planes, slots)  # (N, G)
    relative = advance(state.moments, grad, chunk.dither, chunk.betas)
    if state.low is not None:
        low = torch.where((old & 0x7FFFFFFF) == 0, state.low.clamp_min(0), state.low)  # a zero from elsewhere would become a NaN
        old += low.int() << 8
    moved = old.view(torch.float32) * (1 - chunk.shrink) - relative * chunk.scale
    if state.low is not None:
        # the bits of a NaN could carry to those of a zero
        bits = moved.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf).view(torch.int32)
        bits = (bits + (chunk.dither >> _NOISE_SHIFT)) & ~0xFF
        high = (bits + 0x8000) & ~0xFFFF
        state.low.copy_((bits - high) >> 8)
        moved = high.view(torch.float32)
    chunk.weight.copy_(put(moved.view(torch.int32), slots, planes).view(torch.float32).t())


def remap(state: KeptState, old: Tensor, new: Tensor) -> None:
    """Move the state along with a mask that changed: weights that stay keep theirs, those that enter start at zero.

    # old, new: `slots_of` both masks
    """
    first, second, low = state.moments.first, state.moments.second, state.low
    joint = (second.view(torch.int16).int() << 16) + (first.int() & 0xFF) * 256
    if low is not None:
        joint += low.int() & 0xFF
    kept, wide, groups = old.shape
    joint = pick(put(joint, old, joint.new_zeros(kept + wide - 1, groups)), new)
    second.copy_((joint >> 16).to(torch.int16).view(torch.bfloat16))
    first.copy_(joint << 16 >> 24)
    if low is not None:
        low.copy_(joint << 24 >> 24)


def _to_bits(x: Tensor) -> Tensor:
    """The bits of each number as float32.  # -> int32"""
    return x.float().view(torch.int32)


def slots_of(mask: Tensor, kept: int) -> Tensor:
    """All ones at [k, j] where weight k + j is the k-th kept one of its group, else zeros.

    # (M, G) int8 with N ones a group -> (N, M - N + 1, G) int32
    """
    wide, count = len(mask) - kept + 1, torch.zeros_like(mask[0])
    slots: list[list[Tensor]] = [[] for _ in range(kept)]
    for i, plane in enumerate(mask):
        count = count + plane
        chosen = count * plane  # k + 1 for the k-th kept one
        for k in range(max(0, i - wide + 1), min(i + 1, kept)):
            slots[k].append(-(chosen == k + 1).int())
    return torch.stack([torch.stack(planes) for planes in slots])


def pick(planes: Tensor, slots: Tensor) -> Tensor:
    """What the kept weights have.  # (M, G) int32, `slots_of` -> (N, G)"""
    kept, wide, _ = slots.shape
    picked = planes[:kept] & slots[:, 0]
    for j in range(1, wide):
        picked |= planes[j : j + kept] & slots[:, j]
    return picked


def put(picked: Tensor, slots: Tensor, planes: Tensor) -> Tensor:
    """Planes with what the kept weights have in its places.  # (N, G) int32, `slots_of`, (M, G) -> (M, G)"""
    kept, wide, _ = slots.shape
    out = planes.clone()
    for j in range(wide):
        part, chosen = out[j : j + kept], slots[:, j]
        part ^= (part ^ picked) & chosen
    return out


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
