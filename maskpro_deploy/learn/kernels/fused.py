r"""What a step does to the masks of some groups: from the gradient of a masked weight to new logits and the bits of the mask.

That is some hundred elementwise operations. On a CPU they are one pass of native code where there is a C compiler
(`native_step`), else done one by one on chunks that stay in its cache. On a GPU each would be a launch and a trip to memory:
there they are one kernel (`triton_step`), or few of torch.compile's.

For few masks a group, the covariance is summed mask by mask, each a handful of operations over planes, which a compiler joins:

    Cov(m) h = Σ_s p_s m_s (⟨m_s, h⟩ - Σ_s' p_s' ⟨m_s', h⟩).

Shapes: `O` outputs, `C` inputs, `M` weights in a group, `G` groups.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from maskpro_deploy.errors import in_one_line
from maskpro_deploy.learn.distributions.base import Distribution, Pathwise
from maskpro_deploy.learn.distributions.packed import pack
from maskpro_deploy.learn.kernels.half_logits import noise
from maskpro_deploy.learn.kernels.native_step import native_step
from maskpro_deploy.learn.kernels.optimizer import LogitOptimizer, Moments, move
from maskpro_deploy.learn.kernels.triton_step import triton_step
from maskpro_deploy.learn.model.sites import Site, to_planes
from maskpro_deploy.pattern import NMPattern

log = logging.getLogger(__name__)

_FEW_MASKS = 8  # more would make long kernels; matrix products are better then
_CLAMP = 80.0  # e^-80 is a normal float32


class ChunkStep(Protocol):
    """Moves the logits of some groups.

    Takes ∂L/∂W and W of these groups as they lie in memory (M * G,), their logits (M, G) and moments, both changed in place, the
    roundings' noise (M, G), and the optimiser's scale and betas. Returns the new argmax mask's bits.  # (ceil(M * G / 8),) uint8
    """

    def __call__(
        self,
        grad: Tensor,
        weight: Tensor,
        logits: Tensor,
        moments: Moments,
        dither: Tensor,
        scale: float,
        betas: tuple[float, float],
    ) -> Tensor: ...


def chunk_step(family: Distribution, device: torch.device) -> ChunkStep:
    """The way to move logits on a device: compiled where that can be done, else operation by operation.

    Args:
        family: the distribution of the masks; it has `pathwise`.
        device: where the logits are.
    """
    eager = by_operations(family)
    if device.type == "cpu":
        return native_step(family.pattern, eager)
    return _Compiled(family.pattern, eager) if family.pattern.num_masks <= _FEW_MASKS else eager


class SiteStep(Protocol):
    """Carries ∂L/∂W of a layer to its logits, moves them, and refreshes its argmax mask."""

    @property
    def moved_by(self) -> str:
        """By what: "triton", "native", "compiled", or "torch" operation by operation."""

    def __call__(self, optimizer: LogitOptimizer, site: Site, grad_weight: Tensor, key: int) -> None:
        """Move a site.

        Args:
            optimizer: has the moments and the rate.
            site: whose logits.
            grad_weight: ∂L/∂W of the masked weight (O, C).
            key: of the roundings.
        """


class ByChunks:
    """A `SiteStep` that goes some groups at a time.

    Args:
        step: moves these.
    """

    def __init__(self, step: ChunkStep) -> None:
        self._step = step

    @property
    def moved_by(self) -> str:
        """See `SiteStep`."""
        return str(getattr(self._step, "moved_by", "torch"))

    def __call__(self, optimizer: LogitOptimizer, site: Site, grad_weight: Tensor, key: int) -> None:
        flat, weight, m = grad_weight.reshape(-1), site.weight.view(-1), site.family.pattern.m
        kept = torch.empty_like(site.kept)
        for number, chunk in site.chunks():
            part = slice(chunk.start * m, chunk.stop * m)
            dither = noise((m, chunk.stop - chunk.start), key + number * 7919, weight.device)
            moments = optimizer.part(site.name, site.logits, chunk)
            bits = self._step(flat[part], weight[part], site.logits[:, chunk], moments, dither, optimizer.scale, optimizer.betas)
            kept[site.bits_of(chunk)] = bits
        site.kept = kept


def site_step(family: Distribution, device: torch.device) -> SiteStep:
    """The way to move the logits of a layer on a device.

    Args:
        family: the distribution of the masks; it has `pathwise`.
        device: where the logits are.
    """
    by_chunks = ByChunks(chunk_step(family, device))
    return triton_step(family.pattern, by_chunks, by_operations(family), device) if device.type == "cuda" else by_chunks


def by_operations(family: Distribution) -> ChunkStep:
    """Operation by operation: anywhere, and what the other ways are measured against."""
    return functools.partial(_step, family.pattern, _pathwise(family))


def tell_if_changed(step: SiteStep, numbers: Mapping[str, Any]) -> None:
    """Warn where a saved state was come by in another way: the last bits of logits and moments will not be the same."""
    before, now = numbers.get("moved_by"), step.moved_by
    if before not in (None, now):
        log.warning("the logits were moved by %s so far, from here on by %s: the last bits will differ.", before, now)


def _step(
    pattern: NMPattern,
    covariance: Callable[[Tensor, Tensor], Tensor],
    grad: Tensor,
    weight: Tensor,
    logits: Tensor,
    moments: Moments,
    dither: Tensor,
    scale: float | Tensor,
    betas: tuple[float, float],
) -> Tensor:
    slope = covariance(logits.float(), to_planes(grad * weight, pattern.m))
    return pack(move(logits, moments, slope, dither, scale, kept=pattern.n, betas=betas))


def _pathwise(family: Distribution) -> Callable[[Tensor, Tensor], Tensor]:
    known: Pathwise = family  # type: ignore[assignment]
    return functools.partial(known.pathwise, is_centred=True)


class _Compiled:
    """The same step through torch.compile; operation by operation where that fails, which is told once.

    Args:
        pattern: has few masks a group.
        eager: what to do where compiling fails.
    """

    def __init__(self, pattern: NMPattern, eager: ChunkStep) -> None:
        masks = tuple(tuple(bool(x) for x in mask) for mask in pattern.all_masks())
        step = functools.partial(_flat_step, pattern, masks)
        self._eager = eager
        self._compiled: Callable[..., Tensor] | None = torch.compile(step, dynamic=True, fullgraph=True)

    @property
    def moved_by(self) -> str:
        """Whether compiling has not failed so far."""
        return "torch" if self._compiled is None else "compiled"

    def __call__(
        self,
        grad: Tensor,
        weight: Tensor,
        logits: Tensor,
        moments: Moments,
        dither: Tensor,
        scale: float,
        betas: tuple[float, float],
    ) -> Tensor:
        if self._compiled is not None:
            try:
                return self._compiled(grad, weight, logits, moments.first, moments.second, dither, torch.tensor(scale), betas)
            except Exception as e:  # no compiler, no Triton: torch raises many kinds, before anything has run
                log.warning("torch.compile does not work here (%s): steps take longer.", in_one_line(e, 200))
                self._compiled = None
        return self._eager(grad, weight, logits, moments, dither, scale, betas)


def _flat_step(
    pattern: NMPattern,
    masks: tuple[tuple[bool, ...], ...],
    grad: Tensor,
    weight: Tensor,
    logits: Tensor,
    first: Tensor,
    second: Tensor,
    dither: Tensor,
    scale: Tensor,
    betas: tuple[float, float],
) -> Tensor:
    return _step(
        pattern, functools.partial(covariance, masks), grad, weight, logits, Moments(first, second), dither, scale, betas
    )


def covariance(masks: tuple[tuple[bool, ...], ...], logits: Tensor, h: Tensor) -> Tensor:
    """Cov(m) h, mask by mask.

    Args:
        masks: all masks of a group.
        logits: relative to the cut (M, G).
        h: ∂L/∂m (M, G).

    Returns:
        (M, G).
    """
    # a flip out of the mode costs |θ|: all exponents are at most 0; and ⟨m, h⟩ counts from the mode, so nothing large cancels
    away = [x.abs() for x in logits]
    high = [x >= 0 for x in logits]
    zero = torch.zeros_like(away[0])
    weights, along = [], []
    for mask in masks:
        cost, gain = zero, zero
        for i, kept in enumerate(mask):
            flipped = ~high[i] if kept else high[i]
            cost = cost + torch.where(flipped, away[i], zero)
            gain = gain + torch.where(flipped, h[i] if kept else -h[i], zero)
        weights.append((-cost.clamp_max(_CLAMP)).exp())
        along.append(gain)
    total = sum(weights[1:], weights[0])
    mean = sum((w * a for w, a in zip(weights[1:], along[1:], strict=True)), weights[0] * along[0]) / total
    parts = [w * (a - mean) / total for w, a in zip(weights, along, strict=True)]
    planes = [sum((p for p, mask in zip(parts, masks, strict=True) if mask[i]), zero) for i in range(len(masks[0]))]
    return torch.stack(planes)
