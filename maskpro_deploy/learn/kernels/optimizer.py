"""How logits move, and how little of their state is kept: about 5 bytes a weight.

Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1) whose state takes less room:

- the second moment v is bfloat16;
- the first moment m is kept relative to it, m / sqrt(v), as an int8. Cauchy's inequality bounds it, see `first_bound`;
- logits are float16 (see `half_logits`).

The last two roundings are stochastic. One second moment a group instead of a weight would save 1.5 bytes more, and measured worse
at the same rate: it moves the weights of a group by up to twice the rate.

Shapes: `M` weights in a group, `G` groups (of a chunk of a site).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from maskpro_deploy.learn.kernels.half_logits import HALF_BITS, store

_EPSILON = 1e-24  # of a squared gradient; gradients of a mask are small (1e-6 and less): Adam's usual 1e-8 would damp them
LEVELS = 127  # of the first moment, on either side of zero


@dataclass(frozen=True, slots=True)
class Moments:
    """Both moments of one site's gradient."""

    first: Tensor  # relative to the root of the second, in units of `first_bound` / 127 (M, G) int8
    second: Tensor  # (M, G) bfloat16


@dataclass(slots=True, kw_only=True)
class LogitOptimizer:
    """Adam over the logits of many sites."""

    betas: tuple[float, float] = (0.9, 0.95)  # decay of the first and of the second moment
    step: int = 0  # steps begun, counted from 1 by `begin`
    rate: float = 0.0  # the learning rate of the current step
    moments: dict[str, Moments] = field(default_factory=dict)  # by the site's name

    def begin(self, rate: float) -> None:
        """Start a step: every gradient that arrives until the next `begin` belongs to it."""
        self.step += 1
        self.rate = rate

    @property
    def scale(self) -> float:
        """The learning rate of the current step, with the correction of both moments' start at zero."""
        beta1, beta2 = self.betas
        return self.rate * math.sqrt(1 - beta2**self.step) / (1 - beta1**self.step)

    def part(self, name: str, logits: Tensor, chunk: slice) -> Moments:
        """Views of both moments of some groups of a site, whose logits are (M, all groups)."""
        moments = self.whole(name, logits)
        return Moments(moments.first[:, chunk], moments.second[:, chunk])

    def whole(self, name: str, logits: Tensor) -> Moments:
        """Both moments of a site, whose logits are (M, G); zero before its first step."""
        if name not in self.moments:
            first = torch.zeros(logits.shape, dtype=torch.int8, device=logits.device)
            second = torch.zeros(logits.shape, dtype=torch.bfloat16, device=logits.device)
            self.moments[name] = Moments(first, second)
        return self.moments[name]

    def tensors(self) -> dict[str, Tensor]:
        """The state, for saving."""
        first = {f"first/{name}": moments.first for name, moments in self.moments.items()}
        return first | {f"second/{name}": moments.second for name, moments in self.moments.items()}

    def restore(self, name: str, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Take one site's saved state, if it has any."""
        if f"first/{name}" in tensors:
            self.moments[name] = Moments(tensors[f"first/{name}"].to(device), tensors[f"second/{name}"].to(device))


def move(
    logits: Tensor, moments: Moments, grad: Tensor, dither: Tensor, scale: float | Tensor, *,
    kept: int, betas: tuple[float, float],
) -> Tensor:  # fmt: skip
    """One step of Adam, in place. Tensors in, tensors out, and no branch on their values: this can be compiled.

    Args:
        logits: (M, G) float16.
        moments: of the same groups.
        grad: (M, G) float32.
        dither: random integers for the roundings, see `half_logits.noise`; (M, G).
        scale: see `LogitOptimizer.scale` and `contract.Chunk`.
        kept: N of the pattern.
        betas: of `LogitOptimizer`.

    Returns:
        The new argmax mask.  # (M, G) boolean
    """
    beta1, beta2 = betas
    bound = first_bound(beta1, beta2)
    old = moments.second.float()
    new = (old * beta2).addcmul_(grad, grad, value=1 - beta2)
    inverse = (new + _EPSILON).rsqrt_()
    carried = old.sqrt_().mul_(inverse).mul_(beta1 * bound / LEVELS)
    relative = moments.first.float().mul_(carried)
    relative.addcmul_(grad, inverse, value=1 - beta1)
    moved = logits.float()
    moved = moved.sub_(relative * scale) if isinstance(scale, Tensor) else moved.add_(relative, alpha=-scale)
    mask = store(logits, moved, kept, dither)
    moments.second.copy_(new)
    levels = relative.mul_(LEVELS / bound * (1 << HALF_BITS)).int()
    moments.first.copy_(levels.add_(dither).bitwise_right_shift_(HALF_BITS).clamp_(-LEVELS, LEVELS))
    return mask


def first_bound(beta1: float, beta2: float) -> float:
    """The largest |first| / sqrt(second) there can be, by Cauchy's inequality over all past gradients."""
    return (1 - beta1) / math.sqrt((1 - beta2) * (1 - beta1**2 / beta2))
