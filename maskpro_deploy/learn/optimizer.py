"""How logits move: Adam with a linearly decaying rate, one site at a time as its gradient arrives.

Shapes: `M` weights in a group, `G` groups.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

_EPSILON = 1e-12  # gradients of a mask are small (1e-6 and less): Adam's usual 1e-8 would damp them


@dataclass(slots=True, kw_only=True)
class LogitOptimizer:
    """Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1) over the logits of many sites.

    Attributes:
        beta1, beta2: decay of the two moments.
        step: steps begun, counted from 1 by `begin`.
        rate: the learning rate of the current step.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    step: int = 0
    rate: float = 0.0
    first: dict[str, Tensor] = field(default_factory=dict)
    second: dict[str, Tensor] = field(default_factory=dict)

    def begin(self, rate: float) -> None:
        """Start a step: every site's gradient that arrives until the next `begin` belongs to it."""
        self.step += 1
        self.rate = rate

    def update(self, name: str, logits: Tensor, grad: Tensor) -> None:
        """Move one site's logits, in place.  # (M, G), (M, G)"""
        if name not in self.first:
            self.first[name], self.second[name] = torch.zeros_like(grad), torch.zeros_like(grad)
        first, second = self.first[name], self.second[name]
        first.lerp_(grad, 1 - self.beta1)
        second.mul_(self.beta2).addcmul_(grad, grad, value=1 - self.beta2)
        scale = (second / (1 - self.beta2**self.step)).sqrt_().add_(_EPSILON)
        logits.addcdiv_(first, scale, value=-self.rate / (1 - self.beta1**self.step))
