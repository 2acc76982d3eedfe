r"""What a distribution over the N:M masks of a group offers.

A group of M weights has one logit $\theta_i$ per weight, so M numbers stand for C(M, N) masks (linear space), and the likeliest
mask keeps the N highest logits. Two distributions are built on that:

    conditional Bernoulli   p(m) ∝ exp⟨θ, m⟩                  `conditional_bernoulli`, the default
    Plackett-Luce           N draws without replacement       `plackett_luce`, MaskPro's

Shapes: `M` weights in a group, `G` groups. Logits and masks are planes (M, G): every operation runs over contiguous
memory. All arithmetic is relative to the cut t between the N-th and the (N+1)-th highest logit of a group, so that no exponential
overflows and no small probability is the difference of two large numbers.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from maskpro_deploy.pattern import NMPattern


class Distribution(Protocol):
    """A distribution over the masks of a group; it holds tables only, the logits are arguments."""

    pattern: NMPattern
    uniforms: int  # how many uniform numbers a sample of one group takes

    def log_prob(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Log-probability of a mask.  # (M, G), (M, G) boolean -> (G,)"""

    def score(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Derivative of `log_prob` in θ.  # (M, G), (M, G) boolean -> (M, G)"""

    def marginals(self, logits: Tensor) -> Tensor:
        """μ = E[m].  # (M, G) -> (M, G)"""

    def entropy(self, logits: Tensor) -> Tensor:
        """Entropy of each group, in nats.  # (M, G) -> (G,)"""

    def sample(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Draw one mask a group.  # (M, G), (uniforms, G) in [0, 1) -> (M, G) boolean"""

    def mode(self, logits: Tensor) -> Tensor:
        """The mask of the N highest logits; of equal ones those that come first.  # (M, G) -> (M, G) boolean"""

    def stay(self, logits: Tensor) -> Tensor:
        """Probability that a sample is the mode.  # (M, G) -> (G,)"""


class Pathwise(Distribution, Protocol):
    """A distribution whose marginals can be differentiated."""

    def pathwise(self, logits: Tensor, grad_mask: Tensor, *, is_centred: bool = False) -> Tensor:
        """∂E[m]/∂θ applied to ∂L/∂m; `is_centred` promises that the cut is at 0.  # (M, G), (M, G) -> (M, G)"""


def to_planes(x: Tensor, m: int) -> Tensor:
    """Group along the last axis and bring the place in the group to the front.  # (O, C) -> (M, G) float32"""
    planes = torch.empty(m, x.numel() // m, dtype=torch.float32, device=x.device)
    return planes.copy_(x.reshape(-1, m).t())
