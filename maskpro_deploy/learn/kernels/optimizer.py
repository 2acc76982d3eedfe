r"""How logits move, how they are stored, and how little of their state is kept: about 5 bytes a weight.

Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1) whose state takes less room:

- the second moment v is bfloat16;
- the first moment m is kept relative to it, m / sqrt(v), as an int8. Cauchy's inequality bounds it, see `first_bound`;
- logits are float16, relative to the cut between the N-th and the (N+1)-th highest of a group, where a float16 is finest; no
  distribution here sees a common shift.

The last two roundings are stochastic: on average nothing is lost, however small a step is. Their noise is a window into one fixed
table of random numbers whose place is keyed by seed, step and site, so a resumed run draws the same. One second moment a group
instead of a weight would save 1.5 bytes more, and measured worse at the same rate: it moves the weights of a group by up to twice
the rate.

Shapes: `M` weights in a group, `G` groups (of a chunk of a site).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from maskpro_deploy.learn.distributions.planes import centre, top_of_centred

_EPSILON = 1e-24  # of a squared gradient; gradients of a mask are small (1e-6 and less): Adam's usual 1e-8 would damp them
LEVELS = 127  # of the first moment, on either side of zero
HALF_BITS = 13  # mantissa bits that float32 has beyond float16
NOISE = 1 << 20  # numbers in the table on a CPU, where a chunk of groups has fewer weights
_NOISE_GPU = 1 << 22
_ALIGNED = 4  # windows start at multiples of 16 bytes, as compiled kernels like them
_NEXT = 7919  # from a chunk's place in the table to the next one's
_LIMIT = 60000.0  # float16 ends at 65504


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
    """One step of Adam, in place; `kept` is N of the pattern, `dither` comes from `noise`. Returns the new argmax mask.

    Tensors in, tensors out, no branch on their values: this can be compiled.  # all (M, G); `logits` float16, `grad` float32
    """
    relative = advance(moments, grad, dither, betas)
    moved = logits.float()
    moved = moved.sub_(relative * scale) if isinstance(scale, Tensor) else moved.add_(relative, alpha=-scale)
    return store(logits, moved, kept, dither)


def advance(moments: Moments, grad: Tensor, dither: Tensor, betas: tuple[float, float]) -> Tensor:
    """Take a gradient into both moments, in place; returns the step for a rate of 1, first / sqrt(second).  # all of one shape"""
    beta1, beta2 = betas
    bound = first_bound(beta1, beta2)
    old = moments.second.float()
    new = (old * beta2).addcmul_(grad, grad, value=1 - beta2)
    inverse = (new + _EPSILON).rsqrt_()
    carried = old.sqrt_().mul_(inverse).mul_(beta1 * bound / LEVELS)
    relative = moments.first.float().mul_(carried)
    relative.addcmul_(grad, inverse, value=1 - beta1)
    moments.second.copy_(new)
    levels = (relative * (LEVELS / bound * (1 << HALF_BITS))).int()
    moments.first.copy_(levels.add_(dither).bitwise_right_shift_(HALF_BITS).clamp_(-LEVELS, LEVELS))
    return relative


def first_bound(beta1: float, beta2: float) -> float:
    """The largest |first| / sqrt(second) there can be, by Cauchy's inequality over all past gradients."""
    return (1 - beta1) / math.sqrt((1 - beta2) * (1 - beta1**2 / beta2))


def store(logits: Tensor, moved: Tensor, kept: int, noise: Tensor) -> Tensor:
    """Round new logits, which need not be centred, and put them in their place; `kept` is N of the pattern.

    Returns the argmax mask of what is stored.  # (M, G) float16, (M, G) float32, `noise` (M, G) -> (M, G) boolean
    """
    stored = round_to_half(centre(moved, kept), noise)
    logits.copy_(stored)
    return top_of_centred(stored, kept)


def noise(shape: tuple[int, int], key: int, device: torch.device, number: int = 0) -> Tensor:
    """Random integers of 13 bits; the key of seed, step and site says where in the table they start.  # (M, G) int32

    `number` is that of the chunk of the site.
    """
    count = shape[0] * shape[1]
    table = _table(device)
    start = (key + number * _NEXT) % ((len(table) - count) // _ALIGNED + 1) * _ALIGNED
    return table[start : start + count].view(shape)


def noise_bytes(device: torch.device) -> int:
    """Size of the table of `noise`."""
    return _table(device).nbytes


@functools.lru_cache(maxsize=4)
def _table(device: torch.device) -> Tensor:
    count = NOISE if device.type == "cpu" else _NOISE_GPU
    table = np.random.default_rng(0).integers(0, 1 << HALF_BITS, count, dtype=np.int32)
    return torch.from_numpy(table).to(device)


def round_to_half(planes: Tensor, noise: Tensor) -> Tensor:
    """Round to one of the two nearest float16, the nearer the likelier; the planes are overwritten.

    Adding random bits below the float16's last one and cutting them off does it: the sum carries with the right probability.
    A NaN becomes infinite: the bits of a NaN could carry to those of a zero.  # float32, 13 random bits each -> float16
    """
    bits = planes.clamp_(-_LIMIT, _LIMIT).nan_to_num_(nan=math.inf).view(torch.int32)
    bits.add_(noise).bitwise_and_(-(1 << HALF_BITS))
    return planes.half()
