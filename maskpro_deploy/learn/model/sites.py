"""Where masks are learned: linear layers of a model, each with its weight, its logits and its current mask.

Shapes: `O` outputs, `C` inputs (the reduction dimension), `M` weights in a group, `G = O * C / M` groups.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from maskpro_deploy.learn.distributions.base import Distribution, to_planes
from maskpro_deploy.learn.distributions.planes import centre, pack, top, top_of_centred, unpack
from maskpro_deploy.learn.model.masked_linear import MaskedLinear

_LARGEST_LOGIT = 60000.0  # float16 ends at 65504


class Site(MaskedLinear):
    """A masked layer whose mask is learned: its logits say how likely each mask is; initial ones are (M, G) float32."""

    def __init__(self, name: str, linear: nn.Linear, family: Distribution, logits: Tensor) -> None:
        super().__init__(name, linear, family.pattern)
        self.family = family
        # float16, relative to the cut of their group, see `optimizer`
        self.logits = self.centred(logits, family.pattern.n).clamp_(-_LARGEST_LOGIT, _LARGEST_LOGIT).half()
        self.kept = self.argmax()

    @staticmethod
    def centred(logits: Tensor, kept: int) -> Tensor:
        """Logits as they are stored, before they are rounded; `kept` is N of the pattern.  # (M, G) float32 -> (M, G)"""
        return centre(logits, kept)

    @staticmethod
    def logits_of(kept: Tensor, m: int) -> Tensor:
        """Initial logits whose argmax is a mask.  # (O, C) boolean -> (M, G) float32"""
        return to_planes(kept, m)

    def argmax(self) -> Tensor:
        """Bits of the mask of the N highest logits of every group.  # (ceil(O * C / 8),) uint8"""
        n = self.family.pattern.n
        return torch.cat([pack(top_of_centred(self.logits[:, chunk].contiguous(), n)) for _, chunk in self.chunks()])

    def sample(self, temperature: float, key: int, *, mirrored: bool = False) -> Tensor:
        """Bits of a sample from p_{θ/τ}; the same key gives the same one.  # (ceil(O * C / 8),) uint8

        `mirrored` takes 1 - u for every uniform number u: the other half of an antithetic pair.
        """
        generator = torch.Generator(device=self.logits.device).manual_seed(key)
        bits = torch.empty_like(self.kept)
        for _, chunk in self.chunks():
            logits = self.logits[:, chunk].float().div_(temperature)
            uniform = self.draw_uniform(logits.shape[1], generator, mirrored=mirrored)
            bits[self.bits_of(chunk)] = pack(self.family.sample(logits, uniform))
        return bits

    def draw_uniform(self, count: int, generator: torch.Generator, *, mirrored: bool) -> Tensor:
        """What samples of some groups are made from.  # (uniforms, count) in [0, 1)"""
        uniform = torch.rand(self.family.uniforms, count, generator=generator, device=self.logits.device)
        return uniform.neg_().add_(1 - 2**-24).clamp_min_(0) if mirrored else uniform  # torch draws multiples of 2^-24

    def entropy(self) -> float:
        """Entropy of the masks, the sum over groups; nats."""
        parts = [self.family.entropy(self.logits[:, chunk].float()).sum(dtype=torch.float64) for _, chunk in self.chunks()]
        return float(torch.stack(parts).sum())

    def mask(self, packed: Tensor | None = None) -> npt.NDArray[np.bool_]:
        """The argmax mask, or the one of the given bits.  # (O, C)

        A weight that is itself zero is kept only where its group has nothing better to keep.
        """
        m = self.family.pattern.m
        kept = unpack(self.kept if packed is None else packed, self.weight.numel()).view(-1, m)  # (G, M)
        zero = self.weight.view(-1, m) == 0  # (G, M)
        if (kept & zero).any():
            # keep what was kept, then any other nonzero weight, then zeros, each in its order
            rank = kept.float().mul_(2).add_(1).masked_fill_(zero, 0).t().contiguous()  # (M, G)
            kept = top(rank, self.family.pattern.n).t()
        array: npt.NDArray[np.bool_] = kept.reshape(self.weight.shape).cpu().numpy()
        return array
