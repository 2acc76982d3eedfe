"""Low-rank deltas of a layer's weight (LoRA, Hu et al., arXiv 2106.09685): s B A next to the weight, which stays as it is.

Shapes: `O` outputs, `C` inputs, `R` rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


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
