"""Quantised constants: what (De)QuantizeLinear makes of them, and weights that MatMulNBits and MatMulBnb4 pack into bytes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from maskpro_deploy.onnx_graphs.nodes import get_integer
from maskpro_deploy.validation.arrays import Array, DerivedArray, FlatArray, MappedArray
from maskpro_deploy.validation.graphs.values import Constant

_WIDE = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
Place = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]


def element_type(data: FlatArray) -> np.dtype[Any]:
    """The dtype of an array's elements."""
    dtype = data.read(0, min(1, data.size)).dtype
    data.release()
    return dtype


@dataclass(frozen=True, slots=True)
class Scales:
    """Scale and zero point of a quantised tensor."""

    axis: int  # the axis that `scale` runs along (per-channel or blocked)
    scale: Array  # a scalar, one value per index of `axis`, or one per block along `axis` (then of the rank of the tensor)
    zero_point: Array | None  # of the scale's shape
    block: int = 0  # elements of a block along `axis`; 0 if not blocked

    def flatten(self, wide: type[np.floating[Any]]) -> tuple[Array, Array]:
        """Scales and zero points in a wide type, as `_index_scales` counts them."""
        scales = self.scale.astype(wide).reshape(-1)
        return scales, self.zero_point.astype(wide).reshape(-1) if self.zero_point is not None else np.zeros_like(scales)


def dequantise(data: FlatArray, shape: tuple[int, ...], by: Scales) -> FlatArray | None:
    """What DequantizeLinear makes of a tensor, as far as zero and finite are concerned; None if the shapes contradict."""
    place = _index_scales(shape, by)
    if place is None:
        return None
    if _keeps_zeros(by.scale, by.zero_point, element_type(data)):
        return data
    scales, zeros = by.flatten(np.float64)

    def apply(piece: Array, start: int) -> Array:
        at = place(np.arange(start, start + piece.size))
        with np.errstate(all="ignore"):
            result: Array = ((piece.astype(np.float64) - zeros[at]) * scales[at]).astype(by.scale.dtype)
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


def _index_scales(shape: tuple[int, ...], by: Scales) -> Place | None:
    """A function from flat indices of the tensor to flat indices of its scale; None if the shapes contradict."""
    zero_point, scale, axis, block = by.zero_point, by.scale, by.axis, by.block
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

    def find_block(flat: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return (flat // (inner * length) * blocks + flat // inner % length // block) * inner + flat % inner

    return find_block


def quantise(
    data: FlatArray, shape: tuple[int, ...], by: Scales, target: np.dtype[Any], limits: tuple[int, int] | None
) -> FlatArray | None:
    """What QuantizeLinear makes of floats: values too small for the scale become the zero point; None as for `dequantise`.

    Args:
        data: float values.
        shape: the tensor's shape.
        by: scale and zero point.
        target: dtype of the result. What is returned is of a wider float type, and NaN where `data` is not finite.
        limits: least and largest integer of the result; None for float types, which saturate too.
    """
    place, scale = _index_scales(shape, by), by.scale.astype(np.float64)
    if place is None or not np.isfinite(scale).all() or np.any(scale == 0):
        return None
    # the division is made in the type of the data, at least single precision, as runtimes do
    wide: type[np.floating[Any]] = np.float64 if element_type(data) == np.float64 else np.float32
    scales, zeros = by.flatten(wide)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class NBitsArray(DerivedArray):
    """The dequantised weights (N, K) of MatMulNBits, read in whole rows: 2, 4 or 8 bits each, in blocks along K.

    Stored are `B` (N, blocks, bytes of a block), the first weight of a byte in its lowest bits; scales (N * blocks); zero points
    (N rows of as many bytes as those of the blocks fill), half of the range where they are omitted, or floats (N * blocks).
    """

    rows: int  # N
    columns: int  # K
    bits: int  # of each weight
    block: int  # weights of a block
    scales: npt.NDArray[np.float32]  # (N, blocks)
    zeros: npt.NDArray[np.float32]  # (N, blocks), zero points

    @property
    def size(self) -> int:
        return self.rows * self.columns

    def read(self, start: int, stop: int) -> Array:
        first, last = start // self.columns, -(-stop // self.columns)
        width = self.base.size // self.rows  # bytes of a row
        codes = _unpack_bits(self.base.read(first * width, last * width), self.bits).reshape(last - first, -1, self.block)
        with np.errstate(all="ignore"):
            values = (codes - self.zeros[first:last, :, None]) * self.scales[first:last, :, None]
        flat: Array = np.ascontiguousarray(values.reshape(last - first, -1)[:, : self.columns]).reshape(-1)
        return flat[start - first * self.columns : stop - first * self.columns]


def _unpack_bits(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.float32]:
    """The numbers in some bytes, the first in the lowest bits.  # (E,) -> (E * 8 / bits,)"""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((packed.reshape(-1, 1) >> shifts) & np.uint8((1 << bits) - 1)).astype(np.float32).reshape(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bnb4Array(DerivedArray):
    """Weights (N, K) that are zero and finite exactly where those of MatMulBnb4 are.

    Stored are 4 bits each, the first in the highest bits, which number the entries of a table of values; (N, K) as one run, in
    blocks with a scale. Entry 7 of the NF4 table is zero, entries 0 and 8 of the FP4 table are.
    """

    rows: int  # N
    columns: int  # K
    zeros: tuple[int, ...]  # numbers of the table's entries that are zero
    block: int  # weights of a block
    scales: npt.NDArray[np.float32]  # one a block

    @property
    def size(self) -> int:
        return self.rows * self.columns

    def read(self, start: int, stop: int) -> Array:
        first = start // 2
        packed = self.base.read(first, -(-stop // 2))
        codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[start - 2 * first : stop - 2 * first]
        table = np.array([0.0 if code in self.zeros else 1.0 for code in range(16)], np.float32)
        with np.errstate(all="ignore"):
            values: Array = table[codes] * self.scales[np.arange(start, stop) // self.block]
        return values


def unpack_weights(
    node: NodeProto, form: str, value: Constant, scales: Array, zeros: Array | None
) -> NBitsArray | Bnb4Array | None:
    """The weights of a MatMulNBits (form "nbits") or MatMulBnb4 ("bnb4"); None if the sizes contradict each other.

    `value` is the input `B`; scales and zero points are as stored, the latter None for half of the range.
    """
    if value.dtype != "u8":
        return None
    return _unpack_nbits(node, value, scales, zeros) if form == "nbits" else _unpack_bnb4(node, value, scales)


def _unpack_bnb4(node: NodeProto, value: Constant, scales: Array) -> Bnb4Array | None:
    rows, columns, block = (get_integer(node, name, 0) for name in ("N", "K", "block_size"))
    size = rows * columns
    if size < 1 or block < 1 or value.data.size != -(-size // 2) or scales.size != -(-size // block):
        return None
    entries = (7,) if get_integer(node, "quant_type", 1) == 1 else (0, 8)
    flat = scales.astype(np.float32).reshape(-1)
    return Bnb4Array(base=value.data, rows=rows, columns=columns, zeros=entries, block=block, scales=flat)


def _unpack_nbits(node: NodeProto, value: Constant, scales: Array, zeros: Array | None) -> NBitsArray | None:
    columns, block, bits = get_integer(node, "K", 0), get_integer(node, "block_size", 0), get_integer(node, "bits", 4)
    blocks = -(-columns // block) if block > 0 else 0
    rows, size = value.shape[0] if value.shape else 0, value.data.size
    if not blocks or not rows or columns < 1 or size * 8 != rows * blocks * block * bits or scales.size != rows * blocks:
        return None
    if zeros is None:
        zeros = np.full((rows, blocks), 1 << (bits - 1), np.float32)
    elif zeros.dtype == np.uint8:
        width = -(-blocks * bits // 8)
        if zeros.size != rows * width:
            return None
        zeros = _unpack_bits(zeros.reshape(-1), bits).reshape(rows, -1)[:, :blocks]
    elif zeros.size != rows * blocks:
        return None
    points, factors = (a.astype(np.float32).reshape(rows, blocks) for a in (zeros, scales))
    return NBitsArray(base=value.data, rows=rows, columns=columns, bits=bits, block=block, scales=factors, zeros=points)
