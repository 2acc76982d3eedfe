r"""The proximal step of ProxSparse's regulariser (arXiv 2502.00258): groups of four weights are pushed towards two.

    R(w) = |w1 w2 w3| + |w2 w3 w4| + |w3 w4 w1| + |w4 w1 w2|,      prox(y) = argmin_w ½ ‖w - y‖² + λ R(w)

R is zero where at most two weights are left. The minimum has the signs of y, and drops smallest weights first, so it is one of
three: the two largest as they are; the three largest, or all four, each being what the pair products of the others leave of it,

    |w_i| = max(|y_i| - λ Σ_{j<k} |w_j w_k|, 0),

found by taking the weights in turn until none moves. The one of least objective is the answer. R is not convex, and taking turns
ends where no weight alone can gain: from zero, or from y, that is another point in a few groups of a thousand; from half of y no
such group was found.

Shapes: `G` groups; planes are (4, G), as in `distributions.planes`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskpro_deploy.learn.distributions.planes import top

_TURNS = 100  # at most
_STILL = 1e-6  # of the largest weight: what counts as no movement


def regulariser(w: Tensor) -> Tensor:
    """R of every group.  # (4, G) -> (G,)"""
    a, b, c, d = w.abs().unbind()
    return a * b * (c + d) + c * d * (a + b)


def objective(w: Tensor, y: Tensor, strength: float) -> Tensor:
    """What the proximal step minimises; `strength` is λ.  # (4, G), (4, G) -> (G,)"""
    return (w - y).square().sum(0).mul_(0.5).add_(regulariser(w), alpha=strength)


def prox(y: Tensor, strength: float) -> Tensor:
    """The proximal step of every group.  # (4, G) -> (4, G)"""
    size = y.abs()
    best = size * top(size, 2)
    cost = objective(best, size, strength)
    for left in (size * top(size, 3), size):
        w = _take_turns(left, strength)
        other = objective(w, size, strength)
        best = torch.where(other < cost, w, best)
        cost = torch.minimum(cost, other)
    return best * y.sign()


def _take_turns(z: Tensor, strength: float) -> Tensor:
    """The fixed point of the formula; what is zero stays so.  # (4, G), none negative -> (4, G)"""
    w = z * 0.5
    still = _STILL * float(z.max())
    for _ in range(_TURNS):
        before = w.clone()
        for i in (3, 2, 1, 0):
            a, b, c = (w[j] for j in range(4) if j != i)
            w[i] = z[i].sub(a * (b + c) + b * c, alpha=strength).clamp_min_(0)
        if float((w - before).abs_().max()) <= still:
            break
    return w
