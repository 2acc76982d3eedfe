"""Tensors of an ONNX file as flat arrays, inline or in external data files, and what DequantizeLinear makes of them."""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from onnx import TensorProto, numpy_helper

from maskpro_deploy.errors import FormatError
from maskpro_deploy.validation.arrays import Array, FileArray, FlatArray, MappedArray, MemoryArray, NibbleArray

_DTYPES: dict[int, tuple[str, np.dtype[Any]]] = {
    TensorProto.DOUBLE: ("f64", np.dtype(np.float64)),
    TensorProto.FLOAT: ("f32", np.dtype(np.float32)),
    TensorProto.FLOAT16: ("f16", np.dtype(np.float16)),
    TensorProto.BFLOAT16: ("bf16", np.dtype(ml_dtypes.bfloat16)),
    TensorProto.FLOAT8E4M3FN: ("f8_e4m3", np.dtype(ml_dtypes.float8_e4m3fn)),
    TensorProto.FLOAT8E5M2: ("f8_e5m2", np.dtype(ml_dtypes.float8_e5m2)),
    TensorProto.FLOAT8E4M3FNUZ: ("f8_e4m3fnuz", np.dtype(ml_dtypes.float8_e4m3fnuz)),
    TensorProto.FLOAT8E5M2FNUZ: ("f8_e5m2fnuz", np.dtype(ml_dtypes.float8_e5m2fnuz)),
    TensorProto.INT8: ("i8", np.dtype(np.int8)),
    TensorProto.UINT8: ("u8", np.dtype(np.uint8)),
    TensorProto.INT16: ("i16", np.dtype(np.int16)),
    TensorProto.UINT16: ("u16", np.dtype(np.uint16)),
    TensorProto.INT32: ("i32", np.dtype(np.int32)),
    TensorProto.INT64: ("i64", np.dtype(np.int64)),
}
_NIBBLES = {TensorProto.INT4: ("int4", True), TensorProto.UINT4: ("uint4", False)}
_WIDE = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)


def dtype_name(tensor: TensorProto) -> str | None:
    """The short name of a tensor's dtype, None if its values cannot be checked."""
    if tensor.data_type in _NIBBLES:
        return _NIBBLES[tensor.data_type][0]
    return _DTYPES[tensor.data_type][0] if tensor.data_type in _DTYPES else None


def cast_target(data_type: int) -> np.dtype[Any] | None:
    """The numpy dtype that a Cast to `data_type` yields; None for types whose rounding is not numpy's."""
    name, dtype = _DTYPES.get(data_type, ("", np.dtype(np.bool_)))
    return dtype if name and not name.startswith("f8") else None


def shape_of(tensor: TensorProto, path: Path) -> tuple[int, ...]:
    """A tensor's shape.

    Raises:
        FormatError: it has a negative dimension.
    """
    if any(d < 0 for d in tensor.dims):
        raise FormatError(f"{path}: {tensor.name or 'a tensor'} has a negative dimension: {list(tensor.dims)}.")
    return tuple(tensor.dims)


def external_file(path: Path, location: str) -> Path:
    """The file that an external tensor of the model at `path` lies in.

    Raises:
        FormatError: the location is absolute, leaves the model's folder (also through links), or is no file.
    """
    parts = (*PurePosixPath(location).parts, *PureWindowsPath(location).parts)
    target = path.parent / location
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).is_absolute()
    if not location or absolute or ".." in parts or not target.resolve().is_relative_to(path.parent.resolve()):
        raise FormatError(f"{path} refers to external data outside its folder: {location!r}.\nIt is not read.")
    if not target.is_file():
        raise FormatError(f"{path} refers to external data in {location!r}, which is missing.")
    return target


def flat_array(tensor: TensorProto, path: Path) -> FlatArray:
    """The values of a tensor whose dtype has a name.

    Raises:
        FormatError: its data is damaged, missing, or of another size than its shape says.
    """
    size = math.prod(shape_of(tensor, path))
    if tensor.data_location != TensorProto.EXTERNAL:
        try:
            values = numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError) as e:
            raise FormatError(f"{path}: the data of {tensor.name!r} does not fit its shape and type: {e}") from e
        return MemoryArray(values.astype(np.int8) if tensor.data_type in _NIBBLES else values)
    nibbles = tensor.data_type in _NIBBLES
    width = np.dtype(np.uint8) if nibbles else _DTYPES[tensor.data_type][1]
    need = -(-size // 2) if nibbles else size * width.itemsize
    file, offset = _external_span(tensor, path, need)
    if nibbles:
        return NibbleArray(path=file, offset=offset, size=size, signed=_NIBBLES[tensor.data_type][1])
    return FileArray(path=file, offset=offset, dtype=width, size=size)


def _external_span(tensor: TensorProto, path: Path, need: int) -> tuple[Path, int]:
    entries = {e.key: e.value for e in tensor.external_data}
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", str(need)))
    except ValueError:
        raise FormatError(f"{path}: the external data of {tensor.name!r} has no valid offset or length.") from None
    file = external_file(path, entries.get("location", ""))
    if length != need:
        raise FormatError(f"{path}: {tensor.name!r} needs {need} bytes, its external data has {length}.")
    if offset < 0 or offset + need > file.stat().st_size:
        raise FormatError(f"{file} is truncated: {tensor.name!r} should end at byte {offset + need}, beyond its end.")
    return file, offset


def dequantised(
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
    if zero_point is not None and zero_point.size == scale.size == 1:  # () and (1,) are both in use
        zero_point = zero_point.reshape(scale.shape)
    if zero_point is not None and zero_point.shape != scale.shape:
        return None
    place = _scale_index(shape, axis, scale.shape, block)
    if place is None:
        return None
    number = data.read(0, min(1, data.size)).dtype
    if _transparent(scale, zero_point, number):
        return data
    scales = scale.astype(np.float64).reshape(-1)
    zeros = zero_point.astype(np.float64).reshape(-1) if zero_point is not None else np.zeros_like(scales)

    def apply(piece: Array, start: int) -> Array:
        at = place(np.arange(start, start + piece.size))
        with np.errstate(all="ignore"):
            result: Array = ((piece.astype(np.float64) - zeros[at]) * scales[at]).astype(scale.dtype)
        return result

    return MappedArray(base=data, function=apply)


def _transparent(scale: Array, zero_point: Array | None, number: np.dtype[Any]) -> bool:
    """Whether dequantised values are zero exactly where the stored ones are, and all finite: the usual, symmetric case."""
    if zero_point is not None and np.any(zero_point.astype(np.float32) != 0):
        return False
    if scale.dtype not in _WIDE:
        return False
    size = np.abs(scale.astype(np.float64))
    limits, (smallest, largest) = ml_dtypes.finfo(scale.dtype), _reach(number)
    # no product underflows to zero, none overflows; the bounds also refuse scales that are zero, NaN or infinite
    return bool(np.all(size * smallest >= float(limits.tiny)) and np.all(size * largest <= float(limits.max)))


def _reach(number: np.dtype[Any]) -> tuple[float, float]:
    """Smallest and largest magnitude, zero aside, of a stored type."""
    if number.kind in "iu":
        return 1.0, float(np.iinfo(number).max) + 1.0
    limits = ml_dtypes.finfo(number)
    return float(limits.smallest_subnormal), float(limits.max)


def _scale_index(shape: tuple[int, ...], axis: int, scale_shape: tuple[int, ...], block: int) -> Any:
    """A function from flat indices of the tensor to flat indices of its scale; None if the shapes contradict."""
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
