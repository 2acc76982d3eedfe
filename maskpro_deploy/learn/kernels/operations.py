r"""A step operation by operation: some hundred elementwise ones on chunks that stay in a CPU's cache, and nothing to compile.

It runs anywhere, and is what the other ways are measured against.

Shapes: `M` weights in a group, `G` groups.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor

from maskpro_deploy.learn.distributions.base import Distribution, Pathwise, to_planes
from maskpro_deploy.learn.distributions.packed import pack
from maskpro_deploy.learn.kernels.contract import Chunk
from maskpro_deploy.learn.kernels.optimizer import move
from maskpro_deploy.pattern import NMPattern


class ByOperations:
    """A `ChunkStep` of torch's operations.

    Args:
        family: the distribution of the masks; it has `pathwise`.
    """

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
