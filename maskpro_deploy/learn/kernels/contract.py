"""What a step of the logits works on, and what every way of doing it offers.

Shapes: `O` outputs, `C` inputs, `M` weights in a group, `G` groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from maskpro_deploy.learn.distributions.base import Distribution
from maskpro_deploy.learn.kernels.optimizer import LogitOptimizer, Moments


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some groups of a layer in a step.

    Attributes:
        grad: ∂L/∂W of these groups in the order of memory.  # (M * G,)
        weight: W of these groups.  # (M * G,)
        logits: changed in place.  # (M, G) float16
        moments: changed in place, too.  # (M, G)
        dither: noise of the roundings.  # (M, G)
        scale: of the optimiser; a tensor where the step is compiled, as a number would become part of the code.
        betas: of the optimiser.
    """

    grad: Tensor
    weight: Tensor
    logits: Tensor
    moments: Moments
    dither: Tensor
    scale: float | Tensor
    betas: tuple[float, float]


class ChunkStep(Protocol):
    """Moves the logits of some groups."""

    @property
    def moved_by(self) -> str:
        """By what: "native", "compiled", or "torch" operation by operation."""

    def __call__(self, chunk: Chunk) -> Tensor:
        """Move them; returns the bits of the new argmax mask.  # (ceil(M * G / 8),) uint8"""


class MaskedLayer(Protocol):
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

    def __call__(self, optimizer: LogitOptimizer, site: MaskedLayer, grad_weight: Tensor, key: int) -> None:
        """Move a layer's logits.

        Args:
            optimizer: has the moments and the rate.
            site: whose logits.
            grad_weight: ∂L/∂W of the masked weight (O, C).
            key: of the roundings.
        """
