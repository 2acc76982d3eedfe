r"""Distributions over the transposable masks of a block, N of M in every row and every column.

`TransposableBernoulli` is conditional Bernoulli over them: one logit a weight, p(m) = exp⟨θ, m⟩ / Σ_{m'} exp⟨θ, m'⟩, the sum over
the table of all masks (90 of a block for 2:4). As for groups, ∂E[m]/∂θ = Cov(m), exactly. `OneShotBlocks` is for patterns with
too many masks to list: all probability is on one mask, and nothing is learned.

Shapes: `B` blocks, `P = M * M` weights in a block, `S` masks; planes are (P, B), see `blocks`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskpro_deploy.errors import PatternError
from maskpro_deploy.learn.distributions.blocks import best_of_blocks, mask_table
from maskpro_deploy.learn.distributions.conditional_bernoulli import Enumerated, number_masks
from maskpro_deploy.pattern import LARGEST_LISTED_BLOCK, NMPattern


def transposable_bernoulli(pattern: NMPattern, device: torch.device | str = "cpu") -> TransposableBernoulli | OneShotBlocks:
    """The distribution for a pattern; the logits live on the given device."""
    if pattern.m > LARGEST_LISTED_BLOCK:
        return OneShotBlocks(pattern)
    return TransposableBernoulli(pattern, device)


class TransposableBernoulli(Enumerated):
    """Conditional Bernoulli over the transposable masks of a block; see `Enumerated`, with blocks in place of groups."""

    def __init__(self, pattern: NMPattern, device: torch.device | str = "cpu") -> None:
        self.pattern = pattern
        self.masks = mask_table(pattern, torch.device(device)) > 0  # (S, P)
        self._bits = number_masks(self.masks.t())

    def _log_weights(self, logits: Tensor) -> Tensor:
        """Log of p(m) relative to the mode's, for every mask: at most 0.  # (P, B) -> (S, B)"""
        along = self.masks.to(logits.dtype) @ logits
        return along - along.amax(0)

    def mode(self, logits: Tensor) -> Tensor:
        """The mask with the largest sum of kept logits.  # (P, B) -> (P, B) boolean"""
        return best_of_blocks(logits, self.pattern)

    def pathwise(self, logits: Tensor, grad_mask: Tensor, *, is_centred: bool = False) -> Tensor:
        """Cov(m) h with h = ∂L/∂m, by sums over all masks; logits need not be centred.  # (P, B), (P, B) -> (P, B)

        With a = ⟨m, h⟩ relative to the mode's it is E[m a] - E[m] E[a]: nothing large cancels in blocks that are certain. Sums of
        numbers over masks are those over weights of their sums over the masks that keep them, as all keep equally many.
        """
        kept = self.masks.to(logits.dtype)
        weights, along = kept @ logits, kept @ grad_mask  # (S, B)
        largest, mode = weights.max(0, keepdim=True)
        along -= along.gather(0, mode)
        p = weights.sub_(largest).exp_()  # times Z
        mean, product = kept.t() @ p, kept.t() @ along.mul_(p)  # Z E[m], Z E[m a]
        total = mean.sum(0)  # N M Z
        product.addcmul_(mean, product.sum(0) / total, value=-1)
        return product.mul_(self.pattern.n * self.pattern.m / total)


class OneShotBlocks:
    """A mask that stays: its weights have logits above 0, all others below."""

    uniforms = 1

    def __init__(self, pattern: NMPattern) -> None:
        self.pattern = pattern

    def mode(self, logits: Tensor) -> Tensor:
        return logits > 0

    def sample(self, logits: Tensor, uniform: Tensor) -> Tensor:
        return self.mode(logits)

    def marginals(self, logits: Tensor) -> Tensor:
        return self.mode(logits).to(logits.dtype)

    def entropy(self, logits: Tensor) -> Tensor:
        return torch.zeros_like(logits[0])

    def stay(self, logits: Tensor) -> Tensor:
        return torch.ones_like(logits[0])

    def log_prob(self, logits: Tensor, mask: Tensor) -> Tensor:
        same = (self.mode(logits) == mask).all(0)
        return torch.zeros_like(logits[0]).masked_fill_(~same, -torch.inf)

    def score(self, logits: Tensor, mask: Tensor) -> Tensor:
        raise self._refusal()

    def pathwise(self, logits: Tensor, grad_mask: Tensor, *, is_centred: bool = False) -> Tensor:
        """Nothing moves such a mask."""
        raise self._refusal()

    def _refusal(self) -> PatternError:
        return PatternError(f"transposable {self.pattern} masks are too many a block to be learned.")
