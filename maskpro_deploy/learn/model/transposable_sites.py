"""Where transposable masks are learned: a `Site` whose logits are those of blocks.

Shapes: `O` outputs, `C` inputs, `B` blocks of M x M weights, `P = M * M` weights in a block.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskpro_deploy.learn.distributions.blocks import (
    best_of_blocks,
    block_chunks,
    centre_blocks,
    from_blocks,
    pack_blocks,
    to_blocks,
)
from maskpro_deploy.learn.distributions.planes import unpack
from maskpro_deploy.learn.model.sites import Site


class TransposableSite(Site):
    """Initial logits are (P, B) float32; the bits of masks stay in the order of the weight."""

    def argmax(self) -> Tensor:
        """Bits of the transposable mask with the largest sum of kept logits.  # (ceil(O * C / 8),) uint8"""
        modes = (self.family.mode(self.logits[:, chunk.blocks].float()) for chunk in block_chunks(self.weight, self.pattern.m))
        return torch.cat([pack_blocks(kept, self.weight.shape[1]) for kept in modes])

    def sample(self, temperature: float, key: int, *, mirrored: bool = False) -> Tensor:
        generator = torch.Generator(device=self.logits.device).manual_seed(key)
        bits = torch.empty_like(self.kept)
        for chunk in block_chunks(self.weight, self.pattern.m):
            logits = self.logits[:, chunk.blocks].float().div_(temperature)
            uniform = self.draw_uniform(logits.shape[1], generator, mirrored=mirrored)
            bits[chunk.bits] = pack_blocks(self.family.sample(logits, uniform), self.weight.shape[1])
        return bits

    def entropy(self) -> float:
        """Entropy of the masks, the sum over blocks; nats."""
        chunks = block_chunks(self.weight, self.pattern.m)
        parts = [self.family.entropy(self.logits[:, chunk.blocks].float()).sum(dtype=torch.float64) for chunk in chunks]
        return float(torch.stack(parts).sum())

    def mask(self, packed: Tensor | None = None) -> npt.NDArray[np.bool_]:
        """The argmax mask, or the one of the given bits.  # (O, C)

        In blocks where it keeps a weight that is itself zero, it is the one that keeps the fewest of them, and then the most of
        what was kept.
        """
        kept = unpack(self.kept if packed is None else packed, self.weight.numel()).view(self.weight.shape)
        alive = self.weight != 0
        m = self.pattern.m
        if bool((hurt := to_blocks(kept & ~alive, m).any(0)).any()):
            planes = to_blocks(kept, m)
            one_more = self.pattern.n * m + 1  # a weight that is not zero counts more than all that were kept
            scores = (to_blocks(alive, m) * (planes + one_more))[:, hurt]
            planes[:, hurt] = best_of_blocks(scores, self.pattern).float()
            kept = from_blocks(planes, kept.shape[1]) > 0
        array: npt.NDArray[np.bool_] = kept.cpu().numpy()
        return array

    @staticmethod
    def centred(logits: Tensor, kept: int) -> Tensor:
        return centre_blocks(logits)

    @staticmethod
    def logits_of(kept: Tensor, m: int) -> Tensor:
        return to_blocks(kept, m)
