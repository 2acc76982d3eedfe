"""The work on a layer's masks and logits on a GPU, in kernels of our own where Triton is there and they work.

Torch's builds for CUDA bring Triton along; it compiles kernels at first use, with the machine's C compiler. Each kernel is first
tried on numbers whose result torch's operations tell. Whatever is lacking or wrong, these operations do the work, with more
launches; a line on stderr says so.

Shapes: `O` outputs, `C` inputs, `M` weights in a group, `G` groups, `n = M * G` weights of a layer.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import Tensor

from maskpro_deploy.errors import in_one_line
from maskpro_deploy.learn.distributions.planes import apply_mask, centre, pack, top_of_centred
from maskpro_deploy.learn.kernels.contract import Chunk, ChunkStep, LogitLayer, SiteStep
from maskpro_deploy.learn.kernels.optimizer import LogitOptimizer, Moments, first_bound, noise
from maskpro_deploy.pattern import NMPattern

log = logging.getLogger(__name__)

MAX_MASKS = 8  # of a group: their sums are written out
_BYTES = 128  # of a mask's bits, a program's share: 1024 weights
_HALF = (1 << 31) - 1  # of a key
_BETAS = (0.9, 0.95)  # of the trial, as its scale and its sizes
_SCALE, _GROUPS = 0.1, 1000


class TritonStep:
    """A `SiteStep` that is one launch, for patterns of at most `MAX_MASKS` masks a group whose M divides 8."""

    moved_by = "triton"

    def __init__(self, pattern: NMPattern, kernels: Any) -> None:
        self._kernels = kernels
        masks = pattern.all_masks().tolist()
        codes = [sum(1 << i for i, kept in enumerate(mask) if kept) for mask in masks]
        packed_codes = sum(code << 8 * s for s, code in enumerate(codes))
        sizes = {"M": pattern.m, "N": pattern.n, "J": 8 // pattern.m, "B": _BYTES}
        self._constants = {**sizes, "CODES": packed_codes, "MASKS": len(codes)}

    def __call__(self, optimizer: LogitOptimizer, site: LogitLayer, grad_weight: Tensor, key: int) -> None:
        moments = optimizer.whole(site.name, site.logits)
        grad, weight = grad_weight.contiguous(), site.weight
        site.kept = self.move(grad, weight, site.logits, moments, key, optimizer.scale, optimizer.betas)

    def move(
        self, grad: Tensor, weight: Tensor, logits: Tensor, moments: Moments, key: int, scale: float, betas: tuple[float, float]
    ) -> Tensor:
        """Move the logits of all groups, in place as the moments; every tensor is contiguous. Returns the new mask's bits.

        # ∂L/∂W (n,), W (n,), (M, G) float16, (M, G) -> (ceil(n / 8),) uint8
        """
        m, groups = logits.shape
        bits = torch.empty(-(-m * groups // 8), dtype=torch.uint8, device=logits.device)
        beta1, beta2 = betas
        self._kernels.move[(-(-len(bits) // _BYTES),)](
            grad, weight, logits, moments.first, moments.second, bits, groups, key & _HALF, key >> 31 & _HALF, scale,
            beta1=beta1, beta2=beta2, bound=first_bound(beta1, beta2), **self._constants,
        )  # fmt: skip
        return bits


def triton_step(pattern: NMPattern, otherwise: SiteStep, reference: ChunkStep, device: torch.device) -> SiteStep:
    """The step as one kernel, or `otherwise` where there is none that agrees with `reference`, operation by operation."""
    kernels = load(device) if pattern.num_masks <= MAX_MASKS and 8 % pattern.m == 0 else None
    if kernels is None:
        return otherwise
    step = TritonStep(pattern, kernels)
    try:
        fault = find_differences(step, pattern, reference, device)
    except Exception as e:  # what a compiler, a driver and a device can come up with
        fault = in_one_line(e, 200)
    if fault:
        log.warning("the step's own GPU kernel does not work here (%s): steps take longer.", fault)
        return otherwise
    return step


def masked_weight(weight: Tensor, bits: Tensor) -> Tensor:
    """The weight where its mask has a one, +0.0 elsewhere.  # (O, C), (ceil(n / 8),) uint8 -> (O, C)"""
    kernels = load(weight.device) if weight.device.type == "cuda" else None  # shapes are tried out on other devices
    return apply_mask(weight, bits) if kernels is None else _apply_mask(kernels, weight, bits)


def _apply_mask(kernels: Any, weight: Tensor, bits: Tensor) -> Tensor:
    out, block = torch.empty_like(weight), 8 * _BYTES
    kernels.masked[(-(-weight.numel() // block),)](weight, bits, out, weight.numel(), BLOCK=block)
    return out


@functools.cache
def load(device: torch.device) -> Any:
    """The kernels, or None where they do not work on a GPU; found out once in a process."""
    try:
        from maskpro_deploy.learn.kernels import triton_kernels

        weight = torch.arange(-60.0, 60.0, device=device).view(8, 15).to(torch.bfloat16)
        bits = torch.arange(100, 115, dtype=torch.uint8, device=device)
        works = torch.equal(_apply_mask(triton_kernels, weight, bits), apply_mask(weight, bits))
        fault = "" if works else "a wrong result"
    except ImportError:
        log.info("no Triton here")
        return None
    except Exception as e:  # as above
        fault = in_one_line(e, 200)
    if fault:
        log.warning("own GPU kernels do not work here (%s): steps take longer.", fault)
        return None
    return triton_kernels


def find_differences(step: TritonStep, pattern: NMPattern, reference: ChunkStep, device: torch.device) -> str:
    """In what a step differs from operations by more than roundings; empty for nothing."""
    shape = (pattern.m, _GROUPS)
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(pattern.m * _GROUPS, generator=generator).mul_(1e-5).to(device)
    weight = torch.randn(pattern.m * _GROUPS, generator=generator).to(device)
    logits = centre(torch.randn(shape, generator=generator) * 6, pattern.n).half().to(device)
    first = torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator).to(device)
    second = (torch.rand(shape, generator=generator) * 1e-9).bfloat16().to(device)
    expected, moments = logits.clone(), Moments(first.clone(), second.clone())
    reference(Chunk(grad, weight, expected, moments, noise(shape, 0, device), _SCALE, _BETAS))
    bits = step.move(grad, weight, logits, Moments(first, second), 1 << 40, _SCALE, _BETAS)
    close = functools.partial(torch.allclose, atol=1e-5)
    checks = {
        "masks": torch.equal(bits, pack(top_of_centred(logits, pattern.n))),
        "logits": close(logits.float(), expected.float(), rtol=2**-9),  # rounded up by one, down by the other
        "first moments": int((first.int() - moments.first.int()).abs().max()) <= 1,
        "second moments": close(second.float() * 1e9, moments.second.float() * 1e9, rtol=2**-7),
    }
    return ", ".join(f"other {name}" for name, good in checks.items() if not good)
