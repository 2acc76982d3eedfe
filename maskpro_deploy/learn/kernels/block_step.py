"""How the logits of transposable masks move: by torch's operations, some rows of blocks at a time, on any device.

Shapes: `O` outputs, `C` inputs, `B` blocks of M x M weights, `P = M * M` weights in a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskpro_deploy.learn.distributions.base import Distribution, Pathwise
from maskpro_deploy.learn.distributions.blocks import block_chunks, centre_blocks, pack_blocks, to_blocks
from maskpro_deploy.learn.kernels.contract import LogitLayer
from maskpro_deploy.learn.kernels.optimizer import LogitOptimizer, advance, noise, round_to_half


class ByBlocks:
    """A `SiteStep` for a distribution over blocks that has `pathwise`."""

    moved_by = "torch"

    def __init__(self, family: Distribution) -> None:
        self._family: Pathwise = family  # type: ignore[assignment]

    def __call__(self, optimizer: LogitOptimizer, site: LogitLayer, grad_weight: Tensor, key: int) -> None:
        m, columns = self._family.pattern.m, site.weight.shape[1]
        kept = torch.empty_like(site.kept)
        for chunk in block_chunks(site.weight, m):
            logits, moments = site.logits[:, chunk.blocks], optimizer.part(site.name, site.logits, chunk.blocks)
            now = logits.float()
            slope = self._family.pathwise(now, to_blocks(grad_weight[chunk.rows] * site.weight[chunk.rows], m))
            dither = noise((m * m, now.shape[1]), key, now.device, chunk.number)
            moved = now.add_(advance(moments, slope, dither, optimizer.betas), alpha=-optimizer.scale)
            stored = round_to_half(centre_blocks(moved), dither)
            logits.copy_(stored)
            kept[chunk.bits] = pack_blocks(self._family.mode(stored.float()), columns)
        site.kept = kept
