"""Tensors of an ONNX file as flat arrays, inline or in external data files, and what DequantizeLinear makes of them."""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import ml_dtypes
import numpy as np
from onnx import TensorProto, numpy_helper

from maskpro_deploy.errors import FormatError
from maskpro_deploy.onnx_graphs.constants import external_entries
from maskpro_deploy.system.input_file import InputFile
from maskpro_deploy.validation.arrays import Array, FileArray, FlatArray, LoadedArray, MemoryArray, NibbleArray, fp4_array

_DTYPES: dict[int, tuple[str, np.dtype[Any]]] = {
    TensorProto.DOUBLE: ("f64", np.dtype(np.float64)),
    TensorProto.FLOAT: ("f32", np.dtype(np.float32)),
    TensorProto.FLOAT16: ("f16", np.dtype(np.float16)),
    TensorProto.BFLOAT16: ("bf16", np.dtype(ml_dtypes.bfloat16)),
    TensorProto.FLOAT8E4M3FN: ("f8_e4m3", np.dtype(ml_dtypes.float8_e4m3fn)),
    TensorProto.FLOAT8E5M2: ("f8_e5m2", np.dtype(ml_dtypes.float8_e5m2)),
    TensorProto.FLOAT8E4M3FNUZ: ("f8_e4m3fnuz", np.dtype(ml_dtypes.float8_e4m3fnuz)),
    TensorProto.FLOAT8E5M2FNUZ: ("f8_e5m2fnuz", np.dtype(ml_dtypes.float8_e5m2fnuz)),
    TensorProto.BOOL: ("bool", np.dtype(np.bool_)),
    TensorProto.INT8: ("i8", np.dtype(np.int8)),
    TensorProto.UINT8: ("u8", np.dtype(np.uint8)),
    TensorProto.INT16: ("i16", np.dtype(np.int16)),
    TensorProto.UINT16: ("u16", np.dtype(np.uint16)),
    TensorProto.INT32: ("i32", np.dtype(np.int32)),
    TensorProto.INT64: ("i64", np.dtype(np.int64)),
}
_NIBBLES = {TensorProto.INT4: ("int4", True), TensorProto.UINT4: ("uint4", False), TensorProto.FLOAT4E2M1: ("f4", False)}
_EAGER = 1 << 16  # elements


def type_name(data_type: int) -> str | None:
    """The short name of an element type, None if values of this type cannot be checked."""
    if data_type in _NIBBLES:
        return _NIBBLES[data_type][0]
    return _DTYPES[data_type][0] if data_type in _DTYPES else None


def cast_target(data_type: int) -> np.dtype[Any] | None:
    """The numpy dtype that a Cast to `data_type` yields; None for types whose rounding is not numpy's."""
    name, dtype = _DTYPES.get(data_type, ("", np.dtype(np.bool_)))
    return dtype if name and not name.startswith("f8") else None


def shape_of(tensor: TensorProto, path: Path) -> tuple[int, ...]:
    """A tensor's shape; a negative dimension is a FormatError."""
    if any(d < 0 for d in tensor.dims):
        raise FormatError(f"{path}: {tensor.name or 'a tensor'} has a negative dimension: {list(tensor.dims)}.")
    return tuple(tensor.dims)


def _read_inline(tensor: TensorProto, path: Path) -> Array:
    """The values of a tensor that is stored in the ONNX file itself, 4-bit integers as int8 or uint8."""
    try:
        values: Array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, NotImplementedError, AttributeError) as e:
        raise FormatError(f"{path}: the data of {tensor.name!r} does not fit its shape and type: {e}") from e
    if tensor.data_type not in _NIBBLES or tensor.data_type == TensorProto.FLOAT4E2M1:
        return values
    return values.astype(np.int8 if _NIBBLES[tensor.data_type][1] else np.uint8)


def _find_external_file(path: Path, location: str) -> Path:
    """The file of an external tensor: refused if it is absolute, missing or leaves the model's folder, also through links."""
    parts = (*PurePosixPath(location).parts, *PureWindowsPath(location).parts)
    target = path.parent / location
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).is_absolute()
    if not location or absolute or ".." in parts or not target.resolve().is_relative_to(path.parent.resolve()):
        raise FormatError(f"{path} refers to external data outside its folder: {location!r}.\nIt is not read.")
    if not target.is_file():
        raise FormatError(f"{path} refers to external data in {location!r}, which is missing.")
    return target


class ExternalFiles(dict[str, InputFile]):
    """The files of external data that the model at `path` names, each opened once, when it is first asked for."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def __missing__(self, location: str) -> InputFile:
        return self.setdefault(location, InputFile(_find_external_file(self._path, location)))


def flat_array(tensor: TensorProto, path: Path, files: ExternalFiles) -> FlatArray:
    """The values of a tensor whose dtype has a name; a FormatError if they are damaged, missing or do not fit its shape."""
    size = math.prod(shape_of(tensor, path))
    nibbles = tensor.data_type in _NIBBLES
    width = np.dtype(np.uint8) if nibbles else _DTYPES[tensor.data_type][1]
    need = -(-size // 2) if nibbles else size * width.itemsize
    if tensor.data_location != TensorProto.EXTERNAL:
        if size > max(len(tensor.raw_data), tensor.ByteSize()) * 2:
            raise FormatError(f"{path}: the data of {tensor.name!r} does not fit its shape and type: {size} values are missing.")
        if size < _EAGER:  # checked at once; larger ones when they are counted
            return MemoryArray(_read_inline(tensor, path))
        return LoadedArray(lambda: _read_inline(tensor, path), size)
    file, offset = _external_span(tensor, path, need, files)
    stored = FileArray(file=file, offset=offset, dtype=width, size=-(-size // 2) if nibbles else size)
    if not nibbles:
        return stored
    if tensor.data_type == TensorProto.FLOAT4E2M1:
        return fp4_array(stored, size)
    return NibbleArray(base=stored, size=size, signed=_NIBBLES[tensor.data_type][1])


def _external_span(tensor: TensorProto, path: Path, need: int, files: ExternalFiles) -> tuple[InputFile, int]:
    entries = external_entries(tensor)
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", str(need)))
    except ValueError:
        raise FormatError(f"{path}: the external data of {tensor.name!r} has no valid offset or length.") from None
    file = files[entries.get("location", "")]
    if length != need:
        raise FormatError(f"{path}: {tensor.name!r} needs {need} bytes, its external data has {length}.")
    if offset < 0 or offset + need > file.size:
        raise FormatError(f"{file.path} is truncated: {tensor.name!r} should end at byte {offset + need}, beyond its end.")
    return file, offset
