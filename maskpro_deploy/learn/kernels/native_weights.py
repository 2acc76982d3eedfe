"""The step of kept weights on a CPU, as native code: `native_weights.c`.

Shapes: `N` kept of `M` weights in a group, `G` groups.
"""

from __future__ import annotations

import ctypes

import torch

from maskpro_deploy.learn.kernels.kept_weights import KeptChunk, KeptStep
from maskpro_deploy.learn.kernels.native_code import AdamConstants, NativeCode, native_code
from maskpro_deploy.pattern import NMPattern

_KNOWN = (torch.bfloat16, torch.float32)


class _Arguments(ctypes.Structure):
    """`chunk` in `native_weights.c`."""

    _fields_ = (
        ("grad", ctypes.c_void_p), ("weight", ctypes.c_void_p),
        ("grad_is_float32", ctypes.c_ssize_t), ("weight_is_float32", ctypes.c_ssize_t),
        ("first", ctypes.c_void_p), ("low", ctypes.c_void_p), ("second", ctypes.c_void_p), ("dither", ctypes.c_void_p),
        ("first_stride", ctypes.c_ssize_t), ("low_stride", ctypes.c_ssize_t),
        ("second_stride", ctypes.c_ssize_t), ("dither_stride", ctypes.c_ssize_t),
        ("under", ctypes.c_void_p), ("after", ctypes.c_void_p), ("groups", ctypes.c_ssize_t), ("begun", ctypes.c_ssize_t),
        ("adam", AdamConstants), ("scale", ctypes.c_float), ("remains", ctypes.c_float),
    )  # fmt: skip


class NativeKeptStep:
    """A `KeptStep` in native code, divided among as many threads as torch has; their number changes no bit.

    Numbers that are neither bfloat16 nor float32, and strided ones, go to the step `otherwise`.
    """

    moved_by = "native"

    def __init__(self, code: NativeCode, otherwise: KeptStep) -> None:
        self._code, self._otherwise = code, otherwise

    def __call__(self, chunk: KeptChunk) -> None:
        grad, weight, under, after, dither = chunk.grad, chunk.weight, chunk.under, chunk.after, chunk.dither
        first, second, low = chunk.state.moments.first, chunk.state.moments.second, chunk.state.low
        whole = [x for x in (grad, weight, under, after) if x is not None]
        rows = [x for x in (first, second, low, dither) if x is not None]
        known = grad.dtype in _KNOWN and weight.dtype in _KNOWN and (low is None) == (weight.dtype == torch.float32)
        if not (known and all(x.is_contiguous() for x in whole) and all(x.stride(1) == 1 for x in rows)):
            self._otherwise(chunk)
            return
        arguments = _Arguments(
            grad=grad.data_ptr(), grad_is_float32=grad.dtype == torch.float32,
            weight=weight.data_ptr(), weight_is_float32=weight.dtype == torch.float32,
            first=first.data_ptr(), first_stride=first.stride(0), second=second.data_ptr(), second_stride=second.stride(0),
            dither=dither.data_ptr(), dither_stride=dither.stride(0),
            under=under.data_ptr(), groups=len(weight),
            adam=AdamConstants.of(chunk.betas), scale=float(chunk.scale), remains=1 - float(chunk.shrink),
        )  # fmt: skip
        if low is not None:
            arguments.low, arguments.low_stride = low.data_ptr(), low.stride(0)
        if after is not None:
            arguments.after = after.data_ptr()
        self._code.run(arguments, weight.numel())


def native_kept_step(pattern: NMPattern, otherwise: KeptStep) -> KeptStep:
    """The step in native code, or the given one where there can be none."""
    code = native_code("native_weights.c", pattern, {"EACH_PLACE(X)": " ".join(f"X({i})" for i in range(pattern.m))})
    return otherwise if code is None else NativeKeptStep(code, otherwise)
