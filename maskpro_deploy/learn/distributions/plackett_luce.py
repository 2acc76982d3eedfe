r"""Plackett-Luce: N draws without replacement, each weight in proportion to exp(θ); the mask is the set that was drawn.

MaskPro's distribution (arXiv 2506.12876). With K the kept weights, R the rest, and D(A) = Σ_{j ∈ R ∪ K∖A} exp(θ_j) what is left
to draw from after A, the probability of the set is a sum over its N! orders, which a recursion over its subsets takes at once:

    f(∅) = 1,   f(A) = Σ_{i ∈ A} f(A∖i) exp(θ_i) / D(A∖i),   p(m) = f(K).

With b(A), the probability of going on from A to K, P(A) = f(A) b(A) / f(K) is the chance of drawing A first, and

    ∂ log p(m) / ∂θ_k = m_k - Σ_{A ⊊ K, k ∉ A} P(A) exp(θ_k) / D(A).

All of it in log space, and sums of positive terms only: no 1 - p appears anywhere, so nothing breaks when one weight takes all
probability. The cost is 2^N N a group, so N is limited to `MAX_KEPT`.

Shapes: `M` weights in a group, `G` groups; planes are (M, G).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from maskpro_deploy.errors import PatternError
from maskpro_deploy.learn.distributions.planes import top
from maskpro_deploy.pattern import NMPattern

MAX_KEPT = 8
MAX_MASKS = 70  # for what sums over all masks: marginals and entropy
_TINY = 2.0**-25  # stands for a uniform number of 0


class PlackettLuce:
    """The distribution for one pattern; the logits live on the given device."""

    def __init__(self, pattern: NMPattern, device: torch.device | str = "cpu") -> None:
        if pattern.n > MAX_KEPT:
            raise PatternError(
                f"--sparsity {pattern}: draws without replacement are learned for up to {MAX_KEPT} kept weights a group.\n"
                f"Use --distribution conditional-bernoulli, which has no such limit."
            )
        self.pattern, self.uniforms = pattern, pattern.m
        self._masks = torch.from_numpy(pattern.all_masks()).to(device) if pattern.num_masks <= MAX_MASKS else None  # (S, M)
        self._members = [[i for i in range(pattern.n) if a >> i & 1] for a in range(1 << pattern.n)]  # of every subset

    def log_prob(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Log-probability of a mask, in whatever order it was drawn.  # (M, G), (M, G) boolean -> (G,)"""
        kept, _, left = self._split(logits, mask)
        return self._forward(kept, left)[-1]

    def score(self, logits: Tensor, mask: Tensor) -> Tensor:
        kept, places, left = self._split(logits, mask)
        forward, backward = self._forward(kept, left), self._backward(kept, left)
        strict = len(left) - 1
        # log of P(A) / D(A) for every strict subset
        weight = torch.stack([forward[a] + backward[a] - forward[-1] - left[a] for a in range(strict)])  # (2^N - 1, G)
        out = -(logits + torch.logsumexp(weight, dim=0)).exp()
        outside = [[a for a in range(strict) if not a >> i & 1] for i in range(self.pattern.n)]
        drawn = torch.stack([1 - (kept[i] + torch.logsumexp(weight[outside[i]], dim=0)).exp() for i in range(self.pattern.n)])
        return out.scatter_(0, places, drawn)

    def marginals(self, logits: Tensor) -> Tensor:
        return self._over_masks(logits, lambda p, mask: p * mask)

    def entropy(self, logits: Tensor) -> Tensor:
        return self._over_masks(logits, lambda p, mask: -torch.xlogy(p, p))

    def sample(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """The N highest of θ + Gumbel noise.  # (M, G), (M, G) in [0, 1) -> (M, G) boolean"""
        noise = uniform.clamp(_TINY, 1 - _TINY).log_().neg_().log_().neg_()
        return top(noise.add_(logits), self.pattern.n)

    def mode(self, logits: Tensor) -> Tensor:
        return top(logits, self.pattern.n)

    def stay(self, logits: Tensor) -> Tensor:
        return self.log_prob(logits, self.mode(logits)).exp_()

    def _split(self, logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logits of the kept weights, their places, and log D(A) for every subset A of them.  # (N, G), (N, G), 2^N times (G,)"""
        places = mask.int().argsort(dim=0, descending=True, stable=True)[: self.pattern.n]
        kept = logits.gather(0, places)
        remaining = [torch.logsumexp(logits.masked_fill(mask, -torch.inf), dim=0)]  # by which of K is still to be drawn
        for subset in range(1, 1 << self.pattern.n):
            last = self._members[subset][-1]
            remaining.append(torch.logaddexp(remaining[subset & ~(1 << last)], kept[last]))
        return kept, places, remaining[::-1]  # what is left after A is the complement of A

    def _forward(self, kept: Tensor, left: list[Tensor]) -> list[Tensor]:
        """The logarithm of f(A) for every subset A."""
        f = [torch.zeros_like(left[0])]
        for members, a in zip(self._members[1:], range(1, len(left)), strict=True):
            terms = [f[a & ~(1 << i)] + kept[i] - left[a & ~(1 << i)] for i in members]
            f.append(torch.logsumexp(torch.stack(terms), dim=0))
        return f

    def _backward(self, kept: Tensor, left: list[Tensor]) -> list[Tensor]:
        """The logarithm of b(A) for every subset A."""
        whole = len(left) - 1
        b = [torch.zeros_like(left[0])] * len(left)
        for a in range(whole - 1, -1, -1):
            terms = [b[a | 1 << i] + kept[i] - left[a] for i in range(self.pattern.n) if not a >> i & 1]
            b[a] = torch.logsumexp(torch.stack(terms), dim=0)
        return b

    def _over_masks(self, logits: Tensor, term: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Sum of a term of p(m) and m over all masks."""
        if self._masks is None:
            raise PatternError(f"{self.pattern} has {self.pattern.num_masks} masks a group: too many to sum over.")
        masks = [row[:, None].expand_as(logits) for row in self._masks]
        return functools.reduce(torch.add, (term(self.log_prob(logits, mask).exp(), mask.to(logits.dtype)) for mask in masks))
