"""Where masks live: the linear layers of a model, each with its frozen weight, its logits and its current mask.

A `Site` stands in for one `nn.Linear`. In a forward pass it multiplies the frozen weight with a mask (the argmax, one that its
hook draws, or none); in the backward pass it hands the weight's gradient to its hook and forgets it, so that no gradient is ever
stored for the whole model. Nor is a masked weight: the backward pass makes it again from the mask's bits.

Shapes: `O` outputs, `C` inputs (the reduction dimension), `M` weights in a group, `G = O * C / M` groups, `T` tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from maskpro_deploy.learn.distributions.base import Distribution
from maskpro_deploy.learn.distributions.planes import centre, pack, top, top_of_centred, unpack
from maskpro_deploy.learn.kernels.triton_step import masked_weight

# worked on in one go: large enough that launching an operation costs little, small enough for a CPU's cache
_CHUNK_WEIGHTS, _CHUNK_WEIGHTS_GPU = 1 << 18, 1 << 20
_LARGEST_LOGIT = 60000.0  # float16 ends at 65504


class Mode(Enum):
    """What a site does in a forward pass."""

    SAMPLE = "sample"  # the weight times the mask that the hook draws
    ARGMAX = "argmax"  # times the argmax mask
    DENSE = "dense"  # the weight as it is
    HOOK = "hook"  # whatever the hook computes


class SiteHook:
    """Who moves the logits of sites, and what sites ask of it; this one samples nothing and moves nothing."""

    def draw_mask(self, site: Site) -> Tensor:
        """The mask in `Mode.SAMPLE`: bits, or factors (O, C) for a mask that is not a yes or no."""
        return site.kept

    def take_gradient(self, site: Site, grad_weight: Tensor) -> None:
        """Take ∂L/∂W of the masked weight, and perhaps move the logits.  # (O, C)"""

    def compute_outputs(self, site: Site, x: Tensor) -> Tensor:
        """The outputs in `Mode.HOOK`.  # (..., C) -> (..., O)"""
        raise NotImplementedError


class Site(nn.Module):
    """One masked linear layer, in the place of the one whose weight `name` is; initial logits are (M, G) float32."""

    def __init__(self, name: str, linear: nn.Linear, family: Distribution, logits: Tensor) -> None:
        super().__init__()
        self.name = name
        self.weight, self.bias = linear.weight.detach().contiguous(), linear.bias
        self.family = family
        # float16, relative to the cut of their group, see `optimizer`
        self.logits = centre(logits, family.pattern.n).clamp_(-_LARGEST_LOGIT, _LARGEST_LOGIT).half()
        self.kept = self.argmax()  # bits, which whoever moves the logits keeps up to date
        self.mode = Mode.ARGMAX
        self.hook = SiteHook()

    def key(self, *numbers: int) -> int:
        """A number of 63 bits for this site and numbers such as (run seed, step): what randomness is keyed by."""
        text = ":".join([*map(str, numbers), self.name])
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1

    def chunks(self) -> Iterator[tuple[int, slice]]:
        """The groups of the site, some at a time: number and slice.  # of (G,)"""
        groups, m = self.logits.shape[1], self.family.pattern.m
        weights = _CHUNK_WEIGHTS if self.logits.device.type == "cpu" else _CHUNK_WEIGHTS_GPU
        size = max(8, weights // m // 8 * 8)  # whole bytes of packed bits
        for number, start in enumerate(range(0, groups, size)):
            yield number, slice(start, min(start + size, groups))

    def bits_of(self, chunk: slice) -> slice:
        """Where the packed bits of some groups are."""
        m = self.family.pattern.m
        return slice(chunk.start * m // 8, -(-chunk.stop * m // 8))

    def planes(self, bits: Tensor, chunk: slice) -> Tensor:
        """The mask of some groups.  # (ceil(O * C / 8),) uint8 -> (M, g) boolean"""
        m = self.family.pattern.m
        return unpack(bits[self.bits_of(chunk)], (chunk.stop - chunk.start) * m).view(-1, m).t().contiguous()

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
            uniform = torch.rand(self.family.uniforms, logits.shape[1], generator=generator, device=logits.device)
            if mirrored:
                uniform = uniform.neg_().add_(1 - 2**-24).clamp_min_(0)  # torch draws multiples of 2^-24: so are these, in [0, 1)
            bits[self.bits_of(chunk)] = pack(self.family.sample(logits, uniform))
        return bits

    def entropy(self) -> float:
        """Entropy of the masks, the sum over groups; nats."""
        parts = [self.family.entropy(self.logits[:, chunk].float()).sum(dtype=torch.float64) for _, chunk in self.chunks()]
        return float(torch.stack(parts).sum())

    def choose(self) -> Tensor | None:
        """The current mode's mask: bits, or factors (O, C), or None for no mask."""
        if self.mode is Mode.DENSE:
            return None
        return self.hook.draw_mask(self) if self.mode is Mode.SAMPLE else self.kept

    def under(self, mask: Tensor | None) -> Tensor:
        """The weight under a mask that `choose` gave.  # (O, C)"""
        if mask is None:
            return self.weight
        return masked_weight(self.weight, mask) if mask.dtype == torch.uint8 else self.weight * mask

    def masked_weight(self) -> Tensor:
        """The weight under the current mode's mask.  # (O, C)"""
        return self.under(self.choose())

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

    def forward(self, x: Tensor) -> Tensor:
        if self.mode is Mode.HOOK:
            return self.hook.compute_outputs(self, x)
        y: Tensor = _MaskedLinear.apply(x, self)  # type: ignore[no-untyped-call]
        return y


def set_mode(sites: Sequence[Site], mode: Mode) -> None:
    """Let several sites do the same in forward passes."""
    for site in sites:
        site.mode = mode


class _MaskedLinear(torch.autograd.Function):
    """y = x (W ∘ m)^T + b, whose backward pass hands ∂L/∂W to the site instead of returning it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, site: Site) -> Tensor:
        ctx.site, ctx.mask = site, site.choose()
        ctx.save_for_backward(x)
        return nn.functional.linear(x, site.under(ctx.mask), site.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        site, grad = ctx.site, grads[0]
        # the gradient of x first: taking the other one moves the site's logits, and with them perhaps its mask
        grad_x = grad @ site.under(ctx.mask)
        site.hook.take_gradient(site, grad.flatten(0, -2).t() @ x.flatten(0, -2))
        return grad_x, None
