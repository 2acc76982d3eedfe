"""Which way a layer's logits are moved on a device, and a layer as a run of chunks.

On a CPU a step is one pass of native code where there is a C compiler (`native_step`), else it is done operation by operation. On
a GPU each operation would be a launch and a trip to memory: there it is one kernel (`triton_step`), or few of torch.compile's.
The logits of transposable masks move operation by operation on both (`block_step`).

Shapes: `O` outputs, `C` inputs, `M` weights in a group, `G` groups.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from maskpro_deploy.learn.distributions.base import Distribution
from maskpro_deploy.learn.distributions.transposable import OneShotBlocks, TransposableBernoulli
from maskpro_deploy.learn.kernels import compiled
from maskpro_deploy.learn.kernels.block_step import ByBlocks
from maskpro_deploy.learn.kernels.compiled import CompiledStep
from maskpro_deploy.learn.kernels.contract import ByOperations, Chunk, ChunkStep, LogitLayer, SiteStep
from maskpro_deploy.learn.kernels.native_step import native_step
from maskpro_deploy.learn.kernels.optimizer import LogitOptimizer, noise
from maskpro_deploy.learn.kernels.triton_step import triton_step

log = logging.getLogger(__name__)


def site_step(family: Distribution, device: torch.device) -> SiteStep:
    """The way to move the logits of a layer on a device, for a distribution that has `pathwise`."""
    if isinstance(family, TransposableBernoulli | OneShotBlocks):
        return ByBlocks(family)
    by_chunks = ByChunks(chunk_step(family, device))
    return triton_step(family.pattern, by_chunks, ByOperations(family), device) if device.type == "cuda" else by_chunks


def chunk_step(family: Distribution, device: torch.device) -> ChunkStep:
    """The way to move some groups' logits on a device: compiled where that can be done, else operation by operation."""
    eager = ByOperations(family)
    if device.type == "cpu":
        return native_step(family.pattern, eager)
    return CompiledStep(family.pattern, eager) if family.pattern.num_masks <= compiled.MAX_MASKS else eager


class ByChunks:
    """A `SiteStep` that goes some groups at a time."""

    def __init__(self, step: ChunkStep) -> None:
        self._step = step

    @property
    def moved_by(self) -> str:
        return self._step.moved_by

    def __call__(self, optimizer: LogitOptimizer, site: LogitLayer, grad_weight: Tensor, key: int) -> None:
        flat, weight, m = grad_weight.reshape(-1), site.weight.view(-1), site.family.pattern.m
        kept = torch.empty_like(site.kept)
        for number, groups in site.chunks():
            part = slice(groups.start * m, groups.stop * m)
            logits, moments = site.logits[:, groups], optimizer.part(site.name, site.logits, groups)
            dither = noise((m, groups.stop - groups.start), key, weight.device, number)
            chunk = Chunk(flat[part], weight[part], logits, moments, dither, optimizer.scale, optimizer.betas)
            kept[site.bits_of(groups)] = self._step(chunk)
        site.kept = kept


def warn_if_moved_otherwise(what: str, before: str | None, now: str | None) -> None:
    """Warn where something else moved what a saved state holds ("logits", "weights"): its last bits will not be the same."""
    if before not in (None, now):
        log.warning("the %s were moved by %s so far, from here on by %s: the last bits will differ.", what, before, now)
