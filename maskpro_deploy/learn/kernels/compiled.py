r"""Steps through torch.compile: few kernels instead of some hundred launches.

That of kept weights, and that of the logits for GPUs without Triton kernels of our own. There, for few masks a group, the
covariance is summed mask by mask, each a few operations over planes, which a compiler joins:

    Cov(m) h = Σ_s p_s m_s (⟨m_s, h⟩ - Σ_s' p_s' ⟨m_s', h⟩).

Shapes: `M` weights in a group, `G` groups.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from maskpro_deploy.errors import in_one_line
from maskpro_deploy.learn.kernels.contract import Chunk, ChunkStep, move_chunk
from maskpro_deploy.learn.kernels.kept_weights import KeptChunk, KeptState, KeptStep, move_and_remap
from maskpro_deploy.learn.kernels.optimizer import Moments
from maskpro_deploy.pattern import NMPattern

log = logging.getLogger(__name__)

MAX_MASKS = 8  # of a group: more would make long kernels; matrix products are better then
MAX_GROUP = 8  # weights in it: kept ones are found by selections that are written out
_CLAMP = 80.0  # e^-80 is a normal float32
R = TypeVar("R")
Masks = tuple[tuple[bool, ...], ...]  # all of a group


class Compiled(Generic[R]):
    """A function of tensors through torch.compile for as long as that works; the first failure is logged and ends it."""

    def __init__(self, function: Callable[..., R]) -> None:
        self._compiled: Callable[..., R] | None = torch.compile(function, dynamic=True, fullgraph=True)

    @property
    def works(self) -> bool:
        """Whether nothing has failed so far."""
        return self._compiled is not None

    def __call__(self, *arguments: Any, otherwise: Callable[[], R]) -> R:
        """The function's result, or what is called otherwise."""
        if self._compiled is not None:
            try:
                return self._compiled(*arguments)
            except Exception as e:  # no compiler, no Triton: torch raises many kinds, before anything has run
                log.warning("torch.compile does not work here (%s): steps take longer.", in_one_line(e, 200))
                self._compiled = None
        return otherwise()


class CompiledStep:
    """A `ChunkStep` through torch.compile for up to `MAX_MASKS` masks; another one where that fails."""

    def __init__(self, pattern: NMPattern, otherwise: ChunkStep) -> None:
        masks = tuple(tuple(bool(x) for x in mask) for mask in pattern.all_masks())
        self._otherwise, self._step = otherwise, Compiled(functools.partial(_move_tensors, pattern, masks))

    @property
    def moved_by(self) -> str:
        return "compiled" if self._step.works else self._otherwise.moved_by

    def __call__(self, chunk: Chunk) -> Tensor:
        moments, scale = (chunk.moments.first, chunk.moments.second), torch.as_tensor(chunk.scale)
        arguments = (chunk.grad, chunk.weight, chunk.logits, *moments, chunk.dither, scale, chunk.betas)
        return self._step(*arguments, otherwise=lambda: self._otherwise(chunk))


class CompiledKeptStep:
    """A `KeptStep` through torch.compile; another one where that fails."""

    def __init__(self, otherwise: KeptStep) -> None:
        self._otherwise, self._step = otherwise, Compiled(_move_kept_tensors)

    @property
    def moved_by(self) -> str:
        return "compiled" if self._step.works else self._otherwise.moved_by

    def __call__(self, chunk: KeptChunk) -> None:
        moments, rates = chunk.state.moments, (torch.as_tensor(chunk.scale), torch.as_tensor(chunk.shrink))
        state = (moments.first, moments.second, chunk.state.low, chunk.dither)
        arguments = (chunk.grad, chunk.weight, chunk.under, chunk.after, *state, *rates, chunk.betas)
        self._step(*arguments, otherwise=lambda: self._otherwise(chunk))


def _move_tensors(
    pattern: NMPattern, masks: Masks, grad: Tensor, weight: Tensor, logits: Tensor, first: Tensor, second: Tensor,
    dither: Tensor, scale: Tensor, betas: tuple[float, float],
) -> Tensor:  # fmt: skip
    """The step as a function of plain tensors, as torch.compile wants it."""
    chunk = Chunk(grad, weight, logits, Moments(first, second), dither, scale, betas)
    return move_chunk(pattern, functools.partial(covariance, masks), chunk)


def _move_kept_tensors(
    grad: Tensor, weight: Tensor, under: Tensor, after: Tensor | None, first: Tensor, second: Tensor, low: Tensor | None,
    dither: Tensor, scale: Tensor, shrink: Tensor, betas: tuple[float, float],
) -> None:  # fmt: skip
    """The step of kept weights in the same form."""
    state = KeptState(Moments(first, second), low)
    move_and_remap(KeptChunk(grad, weight, under, after, state, dither, scale, shrink, betas))


def covariance(masks: Masks, logits: Tensor, h: Tensor) -> Tensor:
    """Cov(m) h over all masks, for logits relative to the cut and h = ∂L/∂m.  # (M, G), (M, G) -> (M, G)"""
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
