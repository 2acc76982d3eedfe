"""What QuantizeLinear and DequantizeLinear make of a constant, as far as zero and finite are concerned."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from maskpro_deploy.validation.arrays import Array, FlatArray, MappedArray

_WIDE = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
Place = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]


def element_type(data: FlatArray) -> np.dtype[Any]:
    """The dtype of an array's elements."""
    dtype = data.read(0, min(1, data.size)).dtype
    data.release()
    return dtype


def dequantise(
    data: FlatArray, shape: tuple[int, ...], axis: int, scale: Array, zero_point: Array | None, block: int
) -> FlatArray | None:
    """What DequantizeLinear makes of `data`, as far as zero and finite are concerned; None if the shapes contradict.

    Args:
        data: the quantised values.
        shape: the tensor's shape.
        axis: the axis that `scale` runs along (per-channel or blocked).
        scale: a scalar, one value per index of `axis`, or one per block along `axis` (then of the rank of `shape`).
        zero_point: of the scale's shape.
        block: elements of a block along `axis`; 0 if not blocked.
    """
    place = _index_scales(shape, axis, scale, zero_point, block)
    if place is None:
        return None
    if _keeps_zeros(scale, zero_point, element_type(data)):
        return data
    scales, zeros = _flatten(scale, zero_point, np.float64)

    def apply(piece: Array, start: int) -> Array:
        at = place(np.arange(start, start + piece.size))
        with np.errstate(all="ignore"):
            result: Array = ((piece.astype(np.float64) - zeros[at]) * scales[at]).astype(scale.dtype)
        return result

    return MappedArray(base=data, function=apply)


def _keeps_zeros(scale: Array, zero_point: Array | None, number: np.dtype[Any]) -> bool:
    """Whether dequantised values are zero exactly where the stored ones are, and all finite: the usual, symmetric case."""
    if zero_point is not None and np.any(zero_point.astype(np.float32) != 0):
        return False
    if scale.dtype not in _WIDE:
        return False
    size = np.abs(scale.astype(np.float64))
    limits, (smallest, largest) = ml_dtypes.finfo(scale.dtype), _bound_magnitudes(number)
    # no product underflows to zero, none overflows; the bounds also refuse scales that are zero, NaN or infinite
    return bool(np.all(size * smallest >= float(limits.tiny)) and np.all(size * largest <= float(limits.max)))


def _bound_magnitudes(number: np.dtype[Any]) -> tuple[float, float]:
    """Smallest and largest magnitude, zero aside, of a stored type."""
    if number.kind in "iu":
        return 1.0, float(np.iinfo(number).max) + 1.0
    limits = ml_dtypes.finfo(number)
    return float(limits.smallest_subnormal), float(limits.max)


def _flatten(scale: Array, zero_point: Array | None, wide: type[np.floating[Any]]) -> tuple[Array, Array]:
    """Scales and zero points in a wide type, as `_index_scales` counts them."""
    scales = scale.astype(wide).reshape(-1)
    return scales, zero_point.astype(wide).reshape(-1) if zero_point is not None else np.zeros_like(scales)


def _index_scales(shape: tuple[int, ...], axis: int, scale: Array, zero_point: Array | None, block: int) -> Place | None:
    """A function from flat indices of the tensor to flat indices of its scale; None if the shapes contradict."""
    single = zero_point is not None and zero_point.size == scale.size == 1  # () and (1,) are both in use
    if zero_point is not None and not single and zero_point.shape != scale.shape:
        return None
    scale_shape = scale.shape
    if math.prod(scale_shape) == 1 and len(scale_shape) <= 1:
        return lambda flat: np.zeros_like(flat)
    if not 0 <= axis < len(shape):
        return None
    inner, length = math.prod(shape[axis + 1 :]), shape[axis]
    if block == 0:
        return (lambda flat: flat // inner % length) if scale_shape == (length,) else None
    blocks = -(-length // block)
    if scale_shape != (*shape[:axis], blocks, *shape[axis + 1 :]):
        return None

    def blocked(flat: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return (flat // (inner * length) * blocks + flat // inner % length // block) * inner + flat % inner

    return blocked


def quantise(
    data: FlatArray,
    shape: tuple[int, ...],
    axis: int,
    scale: Array,
    zero_point: Array | None,
    block: int,
    target: np.dtype[Any],
    limits: tuple[int, int] | None,
) -> FlatArray | None:
    """What QuantizeLinear makes of `data`: values too small for the scale become the zero point.

    Args:
        data: float values.
        shape: the tensor's shape.
        axis: the axis that `scale` runs along.
        scale: as for `dequantise`.
        zero_point: of the scale's shape.
        block: elements of a block along `axis`; 0 if not blocked.
        target: numpy dtype of the result; what is returned has its values in a wider float type, and NaN where `data` is not
            finite.
        limits: least and largest integer of the result; None for float types, which saturate too.
    """
    place = _index_scales(shape, axis, scale, zero_point, block)
    if place is None or not np.isfinite(scale.astype(np.float64)).all() or np.any(scale.astype(np.float64) == 0):
        return None
    # the division is made in the type of the data, at least single precision, as runtimes do
    wide: type[np.floating[Any]] = np.float64 if element_type(data) == np.float64 else np.float32
    scales, zeros = _flatten(scale, zero_point, wide)

    def apply(piece: Array, start: int) -> Array:
        at = place(np.arange(start, start + piece.size))
        with np.errstate(all="ignore"):
            values = piece.astype(wide)
            if limits is None:
                largest = wide(float(ml_dtypes.finfo(target).max))
                result: Array = np.clip(values / scales[at], -largest, largest).astype(target).astype(wide)
            else:
                result = np.clip(np.rint(values / scales[at]) + zeros[at], *limits).astype(wide)
            result[~np.isfinite(values)] = np.nan  # quantising would hide it
        return result

    return MappedArray(base=data, function=apply)
