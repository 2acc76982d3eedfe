"""Low-rank deltas of a layer's weight (LoRA, Hu et al., arXiv 2106.09685): s B A next to the weight, which stays as it is.

Shapes: `O` outputs, `C` inputs, `R` rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class LowRank:
    """The delta s B A, with s = alpha / R; alpha / sqrt(R) where it is rank-stabilised (arXiv 2312.03732)."""

    a: Tensor  # (R, C) float32
    b: Tensor  # (O, R) float32
    alpha: float
    stabilised: bool = False

    @property
    def rank(self) -> int:
        """The rank R."""
        return len(self.a)

    @property
    def scale(self) -> float:
        """The factor s."""
        return self.alpha / (math.sqrt(self.rank) if self.stabilised else self.rank)

    @torch.no_grad()
    def add_to(self, weight: Tensor) -> Tensor:
        """W + s B A, computed in float32 and rounded once to the dtype of W.  # (O, C) -> (O, C)"""
        return torch.addmm(weight.float(), self.b, self.a, alpha=self.scale).to(weight.dtype)

    @torch.no_grad()
    def gradients(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """∂L/∂A and ∂L/∂B.  # ∂L/∂(s B A) (O, C) float32 -> (R, C), (O, R)"""
        return (self.b.t() @ grad).mul_(self.scale), (grad @ self.a.t()).mul_(self.scale)

    def same(self, other: LowRank) -> bool:
        """Whether both are the same delta, to the bit."""
        return self.scale == other.scale and torch.equal(self.a, other.a) and torch.equal(self.b, other.b)


def start_low_rank(weight: Tensor, rank: int, alpha: float, seed: int, *, stabilised: bool = False) -> LowRank:
    """A delta of zero for a weight, as PEFT starts it: A uniform within ±1 / sqrt(C) by the seed, B zero.  # (O, C)"""
    (outputs, inputs), device = weight.shape, weight.device
    generator = torch.Generator().manual_seed(seed)
    a = nn.init.kaiming_uniform_(torch.empty(rank, inputs), a=math.sqrt(5), generator=generator)
    return LowRank(a.to(device), torch.zeros(outputs, rank, device=device), alpha, stabilised)


def name_factors(name: str, a: Tensor, b: Tensor) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
    """Something of A and of B of a layer, by key."""
    return (f"lora_A/{name}", a), (f"lora_B/{name}", b)


def collect_factors(deltas: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """A and B of many layers, by key."""
    return {key: x for name, delta in deltas.items() for key, x in name_factors(name, delta.a, delta.b)}
