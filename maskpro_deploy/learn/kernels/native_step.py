"""The step of the logits on a CPU, as native code: `native_step.c`.

Operation by operation a step makes some hundred passes over its numbers, each a vector or two of arithmetic between a load and a
store; as one loop it makes one. torch.compile does not help on a CPU: it vectorises nothing that mixes float16 and bfloat16.

Shapes: `M` weights in a group, `G` groups.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from maskpro_deploy.learn.distributions.planes import network
from maskpro_deploy.learn.kernels.contract import Chunk, ChunkStep
from maskpro_deploy.learn.kernels.native_code import AdamConstants, NativeCode, native_code
from maskpro_deploy.pattern import NMPattern

_MAX_MASKS = 8  # of a group, to be written out one by one; a recursion goes over more


class _Arguments(ctypes.Structure):
    """`chunk` in `native_step.c`."""

    _fields_ = (
        ("grad", ctypes.c_void_p), ("weight", ctypes.c_void_p), ("is_float32", ctypes.c_ssize_t),
        ("logits", ctypes.c_void_p), ("second", ctypes.c_void_p),
        ("logits_stride", ctypes.c_ssize_t), ("second_stride", ctypes.c_ssize_t),
        ("first", ctypes.c_void_p), ("first_stride", ctypes.c_ssize_t),
        ("dither", ctypes.c_void_p), ("dither_stride", ctypes.c_ssize_t),
        ("packed", ctypes.c_void_p), ("groups", ctypes.c_ssize_t), ("begun", ctypes.c_ssize_t),
        ("adam", AdamConstants), ("scale", ctypes.c_float),
    )  # fmt: skip


class NativeStep:
    """A `ChunkStep` in native code, divided among as many threads as torch has; their number changes no bit.

    Weights that are neither bfloat16 nor float32, and strided ones, go to the step `otherwise`.
    """

    moved_by = "native"

    def __init__(self, pattern: NMPattern, code: NativeCode, otherwise: ChunkStep) -> None:
        self._m, self._otherwise, self._code = pattern.m, otherwise, code

    def __call__(self, chunk: Chunk) -> Tensor:
        grad, weight, logits, dither = chunk.grad, chunk.weight, chunk.logits, chunk.dither
        first, second = chunk.moments.first, chunk.moments.second
        if grad.dtype == torch.float32:  # rewards of layers have more bits than the weights
            weight = weight.float()
        known = grad.dtype == weight.dtype and weight.dtype in (torch.bfloat16, torch.float32)
        rows = all(x.stride(1) == 1 for x in (logits, first, second, dither))
        if not (known and rows and grad.is_contiguous() and weight.is_contiguous()):
            return self._otherwise(chunk)
        groups = logits.shape[1]
        packed = torch.empty(-(-groups * self._m // 8), dtype=torch.uint8)
        arguments = _Arguments(
            grad=grad.data_ptr(), weight=weight.data_ptr(), is_float32=weight.dtype == torch.float32,
            logits=logits.data_ptr(), logits_stride=logits.stride(0), first=first.data_ptr(), first_stride=first.stride(0),
            second=second.data_ptr(), second_stride=second.stride(0), dither=dither.data_ptr(), dither_stride=dither.stride(0),
            packed=packed.data_ptr(), groups=groups, adam=AdamConstants.of(chunk.betas), scale=float(chunk.scale),
        )  # fmt: skip
        self._code.run(arguments, groups * self._m)
        return packed


def native_step(pattern: NMPattern, otherwise: ChunkStep) -> ChunkStep:
    """The step in native code, or the given one where there can be none."""
    code = native_code("native_step.c", pattern, _macros(pattern))
    return otherwise if code is None else NativeStep(pattern, code, otherwise)


def _macros(pattern: NMPattern) -> dict[str, str]:
    """What `native_step.c` speaks of."""
    places = range(pattern.m)
    masks = pattern.all_masks().tolist() if pattern.num_masks <= _MAX_MASKS else []

    def each(mask: list[bool], if_kept: str, if_dropped: str, joint: str) -> str:
        return joint.join(f"{if_kept if mask[i] else if_dropped}[{i}]" for i in places)

    products = [each(mask, "keep", "drop", " * ") for mask in masks]
    sums = [each(mask, "kept", "dropped", " + ") for mask in masks]
    parts = [" + ".join(f"part[{s}]" for s, mask in enumerate(masks) if mask[i]) or "0" for i in places]
    macros = {"EACH_WEIGHT(X)": " ".join(f"X({i}, {p})" for i, p in enumerate(parts))}
    macros["NETWORK(X)"] = " ".join(f"X({i}, {j})" for i, j in network(pattern.m))
    if masks:
        macros["EACH_MASK(X)"] = " ".join(f"X({s}, {p}, {a})" for s, (p, a) in enumerate(zip(products, sums, strict=True)))
    return macros
