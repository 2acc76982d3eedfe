"""What a step of the logits works on, what every way of doing it offers, and the way that needs nothing compiled.

That one, `ByOperations`, is some hundred elementwise operations on chunks that stay in a CPU's cache. It runs anywhere, and is
what the other ways are measured against.

Shapes: `O` outputs, `C` inputs, `M` weights in a group, `G` groups.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from maskpro_deploy.learn.distributions.base import Distribution, Pathwise, to_planes
from maskpro_deploy.learn.distributions.planes import pack
from maskpro_deploy.learn.kernels.optimizer import LogitOptimizer, Moments, move
from maskpro_deploy.pattern import NMPattern


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some groups of a layer in a step; logits and moments are changed in place."""

    grad: Tensor  # ∂L/∂W of these groups in the order of memory (M * G,)
    weight: Tensor  # W of these groups (M * G,)
    logits: Tensor  # (M, G) float16
    moments: Moments  # (M, G)
    dither: Tensor  # noise of the roundings (M, G)
    scale: float | Tensor  # of the optimiser; a tensor where the step is compiled: a number would become part of the code
    betas: tuple[float, float]


class ChunkStep(Protocol):
    """Moves the logits of some groups."""

    @property
    def moved_by(self) -> str:
        """By what: "native", "compiled", or "torch" operation by operation."""

    def __call__(self, chunk: Chunk) -> Tensor:
        """Move them; returns the bits of the new argmax mask.  # (ceil(M * G / 8),) uint8"""


class LogitLayer(Protocol):
    """A layer whose logits are moved: what a step needs of `model.sites.Site`."""

    name: str
    weight: Tensor
    family: Distribution
    logits: Tensor
    kept: Tensor

    def chunks(self) -> Iterator[tuple[int, slice]]:
        """The groups, some at a time: number and slice."""

    def bits_of(self, chunk: slice) -> slice:
        """Where the packed bits of some groups are."""


class SiteStep(Protocol):
    """Carries ∂L/∂W of a layer to its logits, moves them, and refreshes its argmax mask."""

    @property
    def moved_by(self) -> str:
        """By what: "triton", or what `ChunkStep.moved_by` says."""

    def __call__(self, optimizer: LogitOptimizer, site: LogitLayer, grad_weight: Tensor, key: int) -> None:
        """Move a layer's logits, given ∂L/∂W of the masked weight; `key` is that of the roundings.  # (O, C)"""


class ByOperations:
    """A `ChunkStep` of torch's operations, for a distribution that has `pathwise`."""

    moved_by = "torch"

    def __init__(self, family: Distribution) -> None:
        differentiable: Pathwise = family  # type: ignore[assignment]
        self._pattern = family.pattern
        self._covariance = functools.partial(differentiable.pathwise, is_centred=True)

    def __call__(self, chunk: Chunk) -> Tensor:
        return move_chunk(self._pattern, self._covariance, chunk)


def move_chunk(pattern: NMPattern, covariance: Callable[[Tensor, Tensor], Tensor], chunk: Chunk) -> Tensor:
    """Move the logits of some groups, given Cov(m) h as a function of logits and h = ∂L/∂m; the new mask's bits."""
    slope = covariance(chunk.logits.float(), to_planes(chunk.grad * chunk.weight, pattern.m))
    return pack(move(chunk.logits, chunk.moments, slope, chunk.dither, chunk.scale, kept=pattern.n, betas=chunk.betas))
