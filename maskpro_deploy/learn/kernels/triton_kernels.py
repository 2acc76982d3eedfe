r"""The GPU's kernels: the whole step of a layer's logits as one, and the frozen weight under a mask's bits as another.

A GPU that learns a small model waits for launches, and one that learns a large model for memory. Each kernel is one launch, reads
what it needs once and writes what has changed once. The arithmetic is that of `compiled.covariance`, `optimizer.move` and
`optimizer.store`, without the table of random numbers: the noise of the roundings is a hash of the key of seed, step and layer,
and of the place in the layer (twice the finaliser of MurmurHash3, each with half of the key).

This module imports Triton; `triton_step` decides whether there is one that works.

Shapes in the kernels: `B` bytes of a mask, `J = 8 / M` groups that share a byte, `M` weights in a group.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _places(key, M: tl.constexpr):
    """Place of every number in its group, 0 for the highest; of equal ones the first is the higher.  # (B, J, M) -> (B, J, M)"""
    at = tl.arange(0, M)
    own, other = key[:, :, :, None], key[:, :, None, :]
    earlier = at[None, None, None, :] < at[None, None, :, None]
    above = (other > own) | ((other == own) & earlier)
    return tl.sum(above.to(tl.int32), axis=3)


@triton.jit
def _mixed(x):
    """A bijection of 32 bits in which every bit of the result hangs on every bit of x."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit(do_not_specialize=["low", "high"])
def move(
    grad,  # (G * M,) of the masked weight, and
    weight,  # (G * M,), both in the order of memory
    logits,  # (M, G) float16, changed in place, as are
    first,  # (M, G) int8, and
    second,  # (M, G) bfloat16
    packed,  # (ceil(G * M / 8),) uint8: the new mask's bits
    groups,
    low,  # half of the key, 31 bits
    high,  # the other one
    scale,
    beta1: tl.constexpr,
    beta2: tl.constexpr,
    bound: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    CODES: tl.constexpr,  # eight bits a mask, the lowest for the first weight
    MASKS: tl.constexpr,  # how many
    J: tl.constexpr,
    B: tl.constexpr,
):
    """Move the logits of `B` bytes' groups and pack their new argmax masks: see the module."""
    byte = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    in_byte, at = tl.arange(0, J), tl.arange(0, M)
    group = (byte[:, None] * J + in_byte[None, :])[:, :, None]  # (B, J, 1)
    there = (group < groups) & (at[None, None, :] < M)  # (B, J, M)
    flat = group * M + at[None, None, :]
    plane = at[None, None, :] * groups + group

    theta = tl.load(logits + plane, mask=there, other=0.0).to(tl.float32)
    h = tl.load(grad + flat, mask=there, other=0.0).to(tl.float32) * tl.load(weight + flat, mask=there, other=0.0).to(tl.float32)

    # Cov(m) h: costs and gains of every mask count from the mode, see `compiled.covariance`
    above = theta >= 0
    away, change = tl.abs(theta), tl.where(above, -h, h)
    total = tl.full((B, J), 0.0, tl.float32)
    mean = tl.full((B, J), 0.0, tl.float32)
    for s in tl.static_range(MASKS):
        kept = ((tl.full((M,), (CODES >> (8 * s)) & 255, tl.int32) >> at) & 1)[None, None, :] == 1
        flipped = kept != above
        p = tl.exp(-tl.minimum(tl.sum(tl.where(flipped, away, 0.0), axis=2), 80.0))
        total += p
        mean += p * tl.sum(tl.where(flipped, change, 0.0), axis=2)
    mean = mean / total
    slope = tl.full((B, J, M), 0.0, tl.float32)
    for s in tl.static_range(MASKS):  # made again: to keep them all would take more registers than there are
        kept = ((tl.full((M,), (CODES >> (8 * s)) & 255, tl.int32) >> at) & 1)[None, None, :] == 1
        flipped = kept != above
        p = tl.exp(-tl.minimum(tl.sum(tl.where(flipped, away, 0.0), axis=2), 80.0))
        part = p * (tl.sum(tl.where(flipped, change, 0.0), axis=2) - mean) / total
        slope += tl.where(kept, part[:, :, None], 0.0)

    # Adam, see `optimizer.move`
    noise = (_mixed(_mixed(plane.to(tl.uint32) ^ low.to(tl.uint32)) ^ high.to(tl.uint32)) >> 19).to(tl.int32)  # 13 bits
    old = tl.load(second + plane, mask=there, other=0.0).to(tl.float32)
    new = old * beta2 + slope * slope * (1 - beta2)
    inverse = 1.0 / tl.sqrt(new + 1e-24)
    relative = tl.load(first + plane, mask=there, other=0).to(tl.float32) * tl.sqrt(old) * inverse * (beta1 * bound / 127)
    relative += slope * inverse * (1 - beta1)
    tl.store(second + plane, new.to(tl.bfloat16), mask=there)
    level = ((relative * (127 / bound * 8192)).to(tl.int32) + noise) >> 13
    tl.store(first + plane, tl.minimum(tl.maximum(level, -127), 127).to(tl.int8), mask=there)

    # relative to the cut, rounded stochastically, see `optimizer.store`
    moved = theta - relative * scale
    place = _places(moved, M)
    middle = tl.sum(tl.where((place == N - 1) | (place == N), moved, 0.0), axis=2) * 0.5
    moved = moved - middle[:, :, None]
    lost = moved != moved
    moved = tl.minimum(tl.maximum(moved, -60000.0), 60000.0)
    bits = (moved.to(tl.int32, bitcast=True) + noise) & -8192
    rounded = tl.where(lost, float("inf"), bits.to(tl.float32, bitcast=True)).to(tl.float16)
    tl.store(logits + plane, rounded, mask=there)

    # the N highest, -0.0 below +0.0, see `planes.top_of_centred`
    half = rounded.to(tl.int16, bitcast=True).to(tl.int32)
    kept = (_places(tl.where(half < 0, -1 - (half & 32767), half), M) < N) & there
    shift = 7 - (in_byte[None, :, None] * M + at[None, None, :])
    value = tl.sum(tl.sum(kept.to(tl.int32) << shift, axis=2), axis=1)
    tl.store(packed + byte, value.to(tl.uint8), mask=byte * J < groups)


@triton.jit
def masked(weight, packed, out, count, BLOCK: tl.constexpr):
    """Write the weights whose bit is one, and +0.0 for the others.  # (n,), (ceil(n / 8),) -> (n,)"""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = place < count
    byte = tl.load(packed + place // 8, mask=there, other=0).to(tl.int32)
    kept = (byte >> (7 - place % 8).to(tl.int32)) & 1
    x = tl.load(weight + place, mask=there, other=0.0)
    tl.store(out + place, tl.where(kept == 1, x, 0.0), mask=there)
