"""Masks as bits: one bit a weight, and the frozen weight under such a mask.

Eight weights share a byte, first weight first, as `numpy.packbits` has them. A masked weight is made from the bytes by one table
look-up and one bitwise and: no mask is ever held in the weight's own dtype, and what is dropped becomes +0.0, never -0.0.

Shapes: `M` weights in a group, `G` groups, `n = M * G` weights of a layer in row-major order.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor


def pack(kept: Tensor) -> Tensor:
    """Bits of a mask given as planes.  # (M, G) boolean -> (ceil(n / 8),) uint8"""
    m, groups = kept.shape
    planes = as_bytes(kept)
    if 8 % m == 0 and groups % (8 // m) == 0:
        byte = _fold(planes)  # (G,): m bits each
        while m < 8:  # two neighbours share a byte
            pair = byte.view(-1, 2)
            byte = (pair[:, 0] << m).bitwise_or_(pair[:, 1])
            m *= 2
        return byte
    flat = planes.t().reshape(-1)
    if rest := -len(flat) % 8:
        flat = torch.cat([flat, flat.new_zeros(rest)])
    return _fold(flat.view(-1, 8).t())


def as_bytes(mask: Tensor) -> Tensor:
    """Ones and zeros: the same memory, except in compiled code, which cannot look at booleans as numbers.  # boolean -> uint8"""
    return mask.to(torch.uint8) if torch.compiler.is_compiling() else mask.view(torch.uint8)


def _fold(planes: Tensor) -> Tensor:
    """The number whose binary digits are the planes, first plane first.  # (m, G) -> (G,)"""
    number = planes[0].clone()
    for plane in planes[1:]:
        number.bitwise_left_shift_(1).bitwise_or_(plane)
    return number


def unpack(packed: Tensor, count: int) -> Tensor:
    """The mask of `count` weights.  # (ceil(n / 8),) uint8 -> (n,) boolean"""
    return torch.nn.functional.embedding(packed.int(), _boolean_table(packed.device)).view(-1)[:count].bool()


def flips(packed: Tensor, other: Tensor, m: int, count: int) -> int:
    """In how many groups two masks differ."""
    differs = packed ^ other
    if not differs.any():
        return 0
    return int(unpack(differs, count).view(-1, m).any(1).sum())


def masked(weight: Tensor, packed: Tensor) -> Tensor:
    """The weight where its mask has a one, +0.0 elsewhere.  # (O, C), (ceil(n / 8),) uint8 -> (O, C)"""
    if weight.numel() % 8:
        return torch.where(unpack(packed, weight.numel()).view(weight.shape), weight, torch.zeros((), dtype=weight.dtype))
    rows = torch.nn.functional.embedding(packed.int(), _table(weight.dtype, weight.device)).view(torch.int64)
    rows.bitwise_and_(weight.view(-1, 8).view(torch.int64))
    return rows.view(weight.dtype).view(weight.shape)


_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)  # (256, 8)


@functools.lru_cache(maxsize=8)
def _table(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Eight weights of all ones or all zeros for every byte.  # (256, itemsize) float64: torch gathers rows of floats fastest"""
    ones = np.repeat(_BITS * np.uint8(255), dtype.itemsize, axis=1)  # (256, 8 * itemsize)
    return torch.from_numpy(ones.view(np.float64).copy()).to(device)


@functools.lru_cache(maxsize=8)
def _boolean_table(device: torch.device) -> Tensor:
    return torch.from_numpy(_BITS.astype(np.float32)).to(device)
