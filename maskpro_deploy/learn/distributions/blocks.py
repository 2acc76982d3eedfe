"""Transposable masks: blocks of M x M weights, N kept in every row and every column, and the best such mask for given scores.

A block is one column of planes (M * M, B), row by row, as a group is one of (M, G). With few masks a block (90 for 2:4) the best
one is found exactly, by one product with the table of all masks and an argmax; beyond that by `transport`.

Shapes: `O` outputs, `C` inputs, `B = O * C / M²` blocks of a layer in row-major order, `P = M * M` weights in a block, `S` masks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from maskpro_deploy.learn.distributions.planes import pack
from maskpro_deploy.learn.distributions.transport import transport_masks
from maskpro_deploy.pattern import LARGEST_LISTED_BLOCK, NMPattern

# worked on in one go: sums over all masks take 90 numbers a block of 16 weights
_CHUNK_WEIGHTS, _CHUNK_WEIGHTS_GPU = 1 << 16, 1 << 20


@dataclass(frozen=True, slots=True)
class BlockChunk:
    """Some rows of blocks of a layer."""

    number: int  # from 0
    rows: slice  # of the weight (O, C)
    blocks: slice  # of the planes (P, B)
    bits: slice  # of the mask's bytes (ceil(O * C / 8),)


def block_chunks(weight: Tensor, m: int) -> Iterator[BlockChunk]:
    """The blocks of a layer, some at a time: whole rows of blocks, whole bytes of bits.  # of (O, C)"""
    outputs, columns = weight.shape
    once = _CHUNK_WEIGHTS if weight.device.type == "cpu" else _CHUNK_WEIGHTS_GPU
    whole = 8 // math.gcd(8, m * columns)  # rows of blocks that fill whole bytes
    size = max(1, once // (m * columns * whole)) * whole * m
    for number, start in enumerate(range(0, outputs, size)):
        stop = min(start + size, outputs)
        bits = slice(start * columns // 8, -(-stop * columns // 8))
        yield BlockChunk(number, slice(start, stop), slice(start * columns // m**2, stop * columns // m**2), bits)


def to_blocks(x: Tensor, m: int) -> Tensor:
    """Bring the place in the block to the front.  # (O, C) -> (P, B) float32"""
    rows, columns = x.shape[0] // m, x.shape[1] // m
    planes = torch.empty(m, m, rows, columns, dtype=torch.float32, device=x.device)
    return planes.copy_(x.reshape(rows, m, columns, m).permute(1, 3, 0, 2)).view(m * m, -1)


def from_blocks(planes: Tensor, columns: int) -> Tensor:
    """The matrix again.  # (P, B) -> (O, C)"""
    m = math.isqrt(len(planes))
    return planes.view(m, m, -1, columns // m).permute(2, 0, 3, 1).reshape(-1, columns)


def pack_blocks(kept: Tensor, columns: int) -> Tensor:
    """Bits of a mask given by blocks, in the row-major order of the weight.  # (P, B) boolean -> (ceil(O * C / 8),) uint8"""
    m = math.isqrt(len(kept))
    return pack(from_blocks(kept, columns).view(-1, m).t().contiguous())


def centre_blocks(planes: Tensor) -> Tensor:
    """Numbers relative to their block's mean, where a float16 is finest; no transposable mask sees the shift.  # (P, B)"""
    return planes - planes.mean(0)


def best_of_blocks(scores: Tensor, pattern: NMPattern) -> Tensor:
    """The transposable mask of every block with the largest sum of kept scores.

    Exact for M up to `LARGEST_LISTED_BLOCK`, else by `transport`; of equal ones it is any, always the same.
    # (P, B) float32 -> (P, B) boolean
    """
    if pattern.m > LARGEST_LISTED_BLOCK:
        return transport_masks(scores, pattern)
    table = mask_table(pattern, scores.device).to(scores.dtype)  # (S, P)
    best = (table @ scores).max(0).indices  # several times faster than argmax
    return torch.nn.functional.embedding(best, table).t().contiguous() > 0


def best_transposable_mask(scores: Tensor, pattern: NMPattern) -> Tensor:
    """The mask of a matrix that holds N:M along rows and columns and has the largest sum of kept scores.

    Both dimensions are multiples of M; see `best_of_blocks`.  # (O, C) -> (O, C) boolean
    """
    chunks = (to_blocks(scores[chunk.rows], pattern.m) for chunk in block_chunks(scores, pattern.m))
    return torch.cat([from_blocks(best_of_blocks(planes, pattern), scores.shape[1]) for planes in chunks])


@functools.lru_cache(maxsize=8)
def mask_table(pattern: NMPattern, device: torch.device) -> Tensor:
    """All transposable masks of a block.  # (S, P) float32"""
    return torch.from_numpy(pattern.all_transposable_masks()).float().to(device)
