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
from maskpro_deploy.learn.priors.base import MARGIN
from maskpro_deploy.pattern import LARGEST_LISTED_BLOCK, NMPattern

_CLIP = 8.0  # times the mean of the block is as certain as squares get
_TINY = 1e-30  # stands for a largest or mean score of zero


def top_transposable_mask(importance: Tensor, pattern: NMPattern) -> Tensor:
    """The transposable mask with the largest sum of squared scores.  # (O, C) -> (O, C) boolean"""
    return best_transposable_mask((importance / importance.amax().clamp_min(_TINY)).square_(), pattern)


def transposable_logits(importance: Tensor, mask: Tensor, pattern: NMPattern, strength: float) -> Tensor:
    """Logits in proportion to squared scores, relative to their mean in the block, so that masks differ by the error they make.

    The kept weights of a block are lifted as far as `mask` needs to be the argmax by a margin. Where there are too many masks a
    block to learn, kept weights get 1 and others -1.  # (O, C), (O, C) boolean -> (P, B) float32
    """
    if pattern.m > LARGEST_LISTED_BLOCK:
        return to_blocks(mask, pattern.m).mul_(2).sub_(1)
    table, parts = mask_table(pattern, importance.device), []
    for chunk in block_chunks(importance, pattern.m):
        planes = to_blocks(importance[chunk.rows], pattern.m)
        squares = planes.div_(planes.mean(0).clamp_min_(_TINY)).square_()
        logits = squares.div_(squares.mean(0).clamp_min_(_TINY)).clamp_max_(_CLIP).mul_(strength)
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
