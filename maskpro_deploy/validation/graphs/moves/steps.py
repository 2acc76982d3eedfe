"""The steps of an ONNX graph through which a constant is followed. Each takes a constant to another one, or gives up (None)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import ml_dtypes
import numpy as np
from onnx import NodeProto, TensorProto

from maskpro_deploy.onnx_graphs.constants import move_axes
from maskpro_deploy.onnx_graphs.nodes import get_integer, get_integers
from maskpro_deploy.validation.arrays import Array, LoadedArray, MappedArray
from maskpro_deploy.validation.graphs.moves.quantised import Scales, dequantise, element_type, quantise
from maskpro_deploy.validation.graphs.moves.tensors import cast_target, type_name
from maskpro_deploy.validation.graphs.values import Constant, Input, Inputs

EAGER_LIMIT = 1 << 26  # elements that are read at once

Step = Callable[[NodeProto, Constant, Inputs], Constant | None]


def _move(node: NodeProto, value: Constant, inputs: Inputs) -> Constant | None:
    axes = move_axes(node, value.perm)
    return replace(value, perm=axes) if axes is not None else None


def _cast(node: NodeProto, value: Constant, inputs: Inputs) -> Constant | None:
    target = cast_target(get_integer(node, "to", 0))
    if target is None:
        return None
    if np.can_cast(element_type(value.data), target, "safe"):
        return value

    def narrow(piece: Array, start: int) -> Array:
        with np.errstate(all="ignore"):
            return piece.astype(target)

    return replace(value, data=MappedArray(base=value.data, function=narrow))


def _dequantize(node: NodeProto, value: Constant, inputs: Inputs) -> Constant | None:
    scales = _read_scales(node, value, inputs)
    if scales is None:
        return None
    data = dequantise(value.data, value.shape, scales)
    if data is None:
        return None
    target = cast_target(get_integer(node, "output_dtype", 0))
    return replace(value, data=data) if target is None or target == scales.scale.dtype else None


def _quantize(node: NodeProto, value: Constant, inputs: Inputs) -> Constant | None:
    scales = _read_scales(node, value, inputs)
    if scales is None:
        return None
    zero_point = inputs[2] if len(inputs) > 2 else None
    given = zero_point.dtype if isinstance(zero_point, Constant) else None
    name = given or type_name(get_integer(node, "output_dtype", TensorProto.UINT8)) or ""
    if name not in _QUANTISED:
        return None
    target, limits = _QUANTISED[name]
    data = quantise(value.data, value.shape, scales, np.dtype(target), limits)
    return replace(value, data=data, dtype=name) if data is not None else None


def _read_scales(node: NodeProto, value: Constant, inputs: Inputs) -> Scales | None:
    """Scale and zero point of a quantisation, their axes in the stored order of the tensor."""
    small = [read_small(v) for v in inputs[1:]]
    if not small or small[0] is None or (len(small) > 1 and node.input[2] and small[1] is None):
        return None
    scale, zero_point = small[0], small[1] if len(small) > 1 else None
    rank, axis = len(value.perm), get_integer(node, "axis", 1)
    axis += rank if axis < 0 else 0
    block = get_integer(node, "block_size", 0)
    if block:  # the scale's axes are those of the value: bring them into the stored order
        if scale.ndim != rank:
            return None
        stored_order = np.argsort(value.perm)
        scale = scale.transpose(stored_order)
        zero_point = zero_point.transpose(stored_order) if zero_point is not None and zero_point.ndim == rank else zero_point
    return Scales(value.perm[axis] if 0 <= axis < rank else -1, scale, zero_point, block)


def _reshape(node: NodeProto, value: Constant, inputs: Inputs) -> Constant | None:
    wanted = read_integers(inputs[1]) if len(inputs) > 1 else None
    shape = value.dims
    if wanted is None:
        return None
    if not get_integer(node, "allowzero", 0):
        if any(d == 0 and i >= len(shape) for i, d in enumerate(wanted)):
            return None
        wanted = [shape[i] if d == 0 else d for i, d in enumerate(wanted)]
    if wanted.count(-1) == 1:
        known = -math.prod(wanted)
        if known <= 0 or math.prod(shape) % known:
            return None
        wanted = [math.prod(shape) // known if d == -1 else d for d in wanted]
    return _reshape_to(value, wanted)


def _squeeze(node: NodeProto, value: Constant, inputs: Inputs) -> Constant | None:
    shape = list(value.dims)
    given = given_axes(node, inputs)
    axes = axes_within(given, len(shape)) if given is not None else None
    if axes is None:
        return _reshape_to(value, [d for d in shape if d != 1]) if len(inputs) < 2 else None
    return _reshape_to(value, [d for i, d in enumerate(shape) if i not in axes])


def _unsqueeze(node: NodeProto, value: Constant, inputs: Inputs) -> Constant | None:
    shape = list(value.dims)
    given = given_axes(node, inputs)
    axes = axes_within(given, len(shape) + len(given)) if given is not None else None
    if axes is None:
        return None
    rest = iter(shape)
    return _reshape_to(value, [1 if i in axes else next(rest, 0) for i in range(len(shape) + len(axes))])


def _flatten(node: NodeProto, value: Constant, inputs: Inputs) -> Constant | None:
    shape, axis = list(value.dims), get_integer(node, "axis", 1)
    axis += len(shape) if axis < 0 else 0
    return _reshape_to(value, [math.prod(shape[:axis]), math.prod(shape[axis:])]) if 0 <= axis <= len(shape) else None


def _reshape_to(value: Constant, wanted: list[int]) -> Constant | None:
    """The value in another shape of as many elements; a permuted one is brought into its order first, if it is not too large."""
    size, shape, perm = math.prod(value.shape), value.shape, value.perm
    if min(wanted, default=1) < 0 or math.prod(wanted) != size:
        return None
    data = value.data
    moving = [i for i in perm if shape[i] != 1]
    if moving != sorted(moving):
        if size > EAGER_LIMIT:
            return None

        def transpose() -> Array:
            whole = np.ascontiguousarray(value.data.read(0, size).reshape(shape).transpose(perm))
            value.data.release()
            return whole

        data = LoadedArray(transpose, size)
    return replace(value, shape=tuple(wanted), data=data, perm=tuple(range(len(wanted))))


def given_axes(node: NodeProto, inputs: Inputs) -> list[int] | None:
    """The axes of a Squeeze or Unsqueeze, from its second input or, in old graphs, its attribute."""
    return read_integers(inputs[1]) if len(inputs) > 1 else get_integers(node, "axes")


def axes_within(given: Sequence[int], rank: int) -> set[int] | None:
    """Axes counted from the front; None if one is outside the rank."""
    return {a % rank for a in given} if all(-rank <= a < rank for a in given) else None


def read_integers(value: Input) -> list[int] | None:
    """The elements of a short constant of integers."""
    array = read_small(value)
    return [int(v) for v in array.reshape(-1)] if array is not None and array.dtype.kind == "i" and array.size <= 64 else None


def read_small(value: Input) -> Array | None:
    """The values of a small constant."""
    if not isinstance(value, Constant) or value.data.size > EAGER_LIMIT or value.perm != tuple(range(len(value.perm))):
        return None
    array = value.data.read(0, value.data.size).reshape(value.shape)
    value.data.release()
    return array


_QUANTISED: dict[str, tuple[type, tuple[int, int] | None]] = {
    "i8": (np.int8, (-128, 127)),
    "u8": (np.uint8, (0, 255)),
    "i16": (np.int16, (-32768, 32767)),
    "u16": (np.uint16, (0, 65535)),
    "int4": (np.int8, (-8, 7)),
    "uint4": (np.uint8, (0, 15)),
    "f8_e4m3": (ml_dtypes.float8_e4m3fn, None),
    "f8_e5m2": (ml_dtypes.float8_e5m2, None),
    "f4": (ml_dtypes.float4_e2m1fn, None),
}
STEPS: dict[str, Step] = {
    "Cast": _cast,
    "DequantizeLinear": _dequantize,
    "Flatten": _flatten,
    "Identity": _move,
    "QuantizeLinear": _quantize,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _move,
    "Unsqueeze": _unsqueeze,
}
