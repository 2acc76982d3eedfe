r"""Logits kept as float16: how they are rounded, and how a step of theirs is stored.

They are stored relative to the cut between the N-th and the (N+1)-th highest of a group, where a float16 is finest; no
distribution here sees a common shift. Rounding is stochastic: on average nothing is lost, however small a step is. Its noise is a
window into one fixed table of random numbers whose place is keyed by seed, step and site, so a resumed run draws the same.

Shapes: `M` weights in a group, `G` groups (of a chunk of a site).
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from maskpro_deploy.learn.distributions.top_n import centred, top_of_centred

HALF_BITS = 13  # mantissa bits that float32 has beyond float16
NOISE = 1 << 20  # numbers in the table on a CPU, where a chunk of groups has fewer weights
_NOISE_GPU = 1 << 22
_ALIGNED = 4  # windows start at multiples of 16 bytes, as compiled kernels like them
_NEXT = 7919  # from a chunk's place in the table to the next one's
_LIMIT = 60000.0  # float16 ends at 65504


def store(logits: Tensor, moved: Tensor, kept: int, noise: Tensor) -> Tensor:
    """Round new logits, which need not be centred, and put them in their place; `kept` is N of the pattern.

    Returns the argmax mask of what is stored.  # (M, G) float16, (M, G) float32, `noise` (M, G) -> (M, G) boolean
    """
    stored = round_to_half(centred(moved, kept), noise)
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
