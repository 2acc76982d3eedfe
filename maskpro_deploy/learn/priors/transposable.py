"""The transposable mask of a layer from the importance of its weights, and logits of blocks whose argmax it is.

Masks of rows need the order of the scores alone. One of blocks weighs weights of several rows against each other, so it matters
what is added up: squares of the scores, as a dropped weight adds the square of |W| times the norm of its input to the layer's
squared error (inputs taken to be orthogonal). On the demo model the sum of the scores themselves did worse.

Shapes: `O` outputs, `C` inputs, `B` blocks of M x M weights, `P = M * M` weights in a block, `S` masks of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskpro_deploy.learn.distributions.blocks import best_transposable_mask, block_chunks, mask_table, to_blocks
from maskpro_deploy.learn.priors.base import MARGIN, relative_logits
from maskpro_deploy.pattern import LARGEST_LISTED_BLOCK, NMPattern


def top_transposable_mask(importance: Tensor, pattern: NMPattern) -> Tensor:
    """The transposable mask with the largest sum of squared scores.  # (O, C) -> (O, C) boolean"""
    return best_transposable_mask(importance.square(), pattern)


def transposable_logits(importance: Tensor, mask: Tensor, pattern: NMPattern, strength: float) -> Tensor:
    """Logits as `base.initial_logits` has them, relative to the block's mean score; kept weights lifted as far as `mask` needs.

    Where there are too many masks a block to learn, kept weights get 1 and others -1.
    # (O, C), (O, C) boolean -> (P, B) float32
    """
    if pattern.m > LARGEST_LISTED_BLOCK:
        return to_blocks(mask, pattern.m).mul_(2).sub_(1)
    table, parts = mask_table(pattern, importance.device), []
    for chunk in block_chunks(importance, pattern.m):
        logits = relative_logits(to_blocks(importance[chunk.rows], pattern.m), strength)
        kept = to_blocks(mask[chunk.rows], pattern.m)
        parts.append(logits.addcmul_(kept, _lift(logits, kept, table, MARGIN * strength)))
    return torch.cat(parts, dim=1)


def _lift(logits: Tensor, kept: Tensor, table: Tensor, margin: float) -> Tensor:
    """What the kept weights of a block lack to be the argmax, by a margin for every weight in which another mask differs.

    Lifting them by δ puts the mask ahead of one that drops d of them by dδ: δ is the largest lag per weight.
    # (P, B), (P, B), (S, P) -> (B,)
    """
    dropped = kept.sum(0) - table @ kept  # (S, B)
    lag = (table @ logits - (kept * logits).sum(0)) / dropped + margin
    return lag.masked_fill_(dropped == 0, -torch.inf).amax(0).clamp_min_(0)
