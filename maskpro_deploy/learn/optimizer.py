r"""How logits move, and how little of their state is kept: about 4 bytes a weight.

Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1) with three changes that save memory:

- one second moment a group and not a weight: $v = E[\frac{1}{M}\sum_i g_i^2]$ in bf16. A group's gradient sums to zero, so its
  weights share one scale anyway.
- the first moment is kept relative to it, $r_i = m_i / \sqrt{v}$, as an int8. Cauchy's inequality bounds it, see `_bound`.
- logits are float16, relative to the cut between the N-th and the (N+1)-th highest, where a float16 is finest; the
  distribution does not see a common shift.

Both roundings are stochastic: on average nothing is lost, however small a step is. Their noise is a window into one fixed table
of random numbers whose place is keyed by seed, step and site, so a resumed run draws the same.

Shapes: `M` weights in a group, `G` groups (of a chunk of a site).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from maskpro_deploy.learn.top_n import centred, top_of_centred

_EPSILON = 1e-24  # of a squared gradient; gradients of a mask are small (1e-6 and less): Adam's usual 1e-8 would damp them
_HALF_BITS = 13  # mantissa bits that float32 has beyond float16
_LIMIT = 60000.0  # float16 ends at 65504
_LEVELS = 127  # of the first moment, on either side of zero
NOISE = 1 << 20  # numbers in the table; a chunk of groups has fewer weights


@dataclass(frozen=True, slots=True)
class Moments:
    """Both moments of one site's gradient.

    Attributes:
        first: relative to the second, in units of `_bound` / 127.  # (M, G) int8
        second: of a group.  # (G,) bfloat16
    """

    first: Tensor
    second: Tensor


@dataclass(slots=True, kw_only=True)
class LogitOptimizer:
    """Adam over the logits of many sites.

    Attributes:
        beta1, beta2: decay of the two moments.
        step: steps begun, counted from 1 by `begin`.
        rate: the learning rate of the current step.
        moments: site name -> its moments.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    step: int = 0
    rate: float = 0.0
    moments: dict[str, Moments] = field(default_factory=dict)
    _noise: dict[torch.device, Tensor] = field(default_factory=dict)

    def begin(self, rate: float) -> None:
        """Start a step: every gradient that arrives until the next `begin` belongs to it."""
        self.step += 1
        self.rate = rate

    def update(self, name: str, logits: Tensor, grad: Tensor, chunk: slice, *, kept: int, key: int) -> Tensor:
        """Move the logits of some groups of a site, in place.

        Args:
            name: the site's.
            logits: of the whole site, (M, all groups) float16.
            grad: of the groups in `chunk`, (M, G) float32.
            chunk: which groups.
            kept: N of the pattern.
            key: of the roundings' noise: another number for every site, chunk and step.

        Returns:
            The new argmax mask of the chunk.  # (M, G) boolean
        """
        m, groups = grad.shape
        moments, bound = self._moments(name, logits), self._bound(m)
        noise = self._window(grad.device, m * groups, key).view(m, groups)

        old = moments.second[chunk].float()
        new = old * self.beta2
        for plane in grad:
            new.addcmul_(plane, plane, value=(1 - self.beta2) / m)
        inverse = (new + _EPSILON).rsqrt_()
        carried = old.sqrt_().mul_(inverse).mul_(self.beta1 * bound / _LEVELS)
        relative = moments.first[:, chunk].float().mul_(carried)
        relative.addcmul_(grad, inverse, value=1 - self.beta1)

        correction = math.sqrt(1 - self.beta2**self.step) / (1 - self.beta1**self.step)
        moved = logits[:, chunk].float().add_(relative, alpha=-self.rate * correction)
        stored = round_to_half(centred(moved, kept), noise)
        logits[:, chunk] = stored
        moments.second[chunk] = new
        levels = relative.mul_(_LEVELS / bound * (1 << _HALF_BITS)).int()
        moments.first[:, chunk] = levels.add_(noise).bitwise_right_shift_(_HALF_BITS).clamp_(-_LEVELS, _LEVELS)
        return top_of_centred(stored, kept)

    def tensors(self) -> dict[str, Tensor]:
        """The state, for saving."""
        first = {f"first/{name}": moments.first for name, moments in self.moments.items()}
        return first | {f"second/{name}": moments.second for name, moments in self.moments.items()}

    def restore(self, name: str, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Take one site's saved state, if it has any."""
        if f"first/{name}" in tensors:
            self.moments[name] = Moments(tensors[f"first/{name}"].to(device), tensors[f"second/{name}"].to(device))

    def _moments(self, name: str, logits: Tensor) -> Moments:
        if name not in self.moments:
            first = torch.zeros(logits.shape, dtype=torch.int8, device=logits.device)
            second = torch.zeros(logits.shape[1], dtype=torch.bfloat16, device=logits.device)
            self.moments[name] = Moments(first, second)
        return self.moments[name]

    def _bound(self, m: int) -> float:
        """The largest |first| / sqrt(second) there can be, by Cauchy's inequality over all past gradients."""
        spread = (1 - self.beta1) ** 2 / (1 - self.beta2) / (1 - self.beta1**2 / self.beta2)
        return math.sqrt(m * spread)

    def _window(self, device: torch.device, count: int, key: int) -> Tensor:
        """`count` random integers of 13 bits; the key says where in the table they start."""
        if device not in self._noise:
            table = np.random.default_rng(0).integers(0, 1 << _HALF_BITS, NOISE, dtype=np.int32)
            self._noise[device] = torch.from_numpy(table).to(device)
        start = key % (NOISE - count + 1)
        return self._noise[device][start : start + count]


def round_to_half(planes: Tensor, noise: Tensor) -> Tensor:
    """Round to one of the two nearest float16, the nearer the likelier; the planes are overwritten.

    Adding random bits below the float16's last one and cutting them off does it: the sum carries with the right probability.

    Args:
        planes: float32.
        noise: integers of 13 random bits, of the same shape.
    """
    bits = planes.clamp_(-_LIMIT, _LIMIT).view(torch.int32)
    bits.add_(noise).bitwise_and_(-(1 << _HALF_BITS))
    return planes.half()
