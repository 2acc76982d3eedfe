"""How many bytes the tensors of an ONNX file take, and where their values are stored."""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto, helper

_SUB_BYTE = {
    getattr(TensorProto, name): bits
    for name, bits in (("INT4", 4), ("UINT4", 4), ("FLOAT4E2M1", 4), ("INT2", 2), ("UINT2", 2))
    if hasattr(TensorProto, name)
}


def tensor_bytes(tensor: TensorProto) -> int:
    """The bytes that the values of a tensor take when they are packed: no more than its type needs."""
    elements = int(math.prod(tensor.dims))
    if tensor.data_type == TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    if tensor.data_type in _SUB_BYTE:
        return -(-elements * _SUB_BYTE[tensor.data_type] // 8)
    try:
        return int(elements * np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize)
    except (KeyError, ValueError, TypeError):
        return len(tensor.raw_data)


def external_entries(tensor: TensorProto) -> dict[str, str]:
    """What a tensor says about its external data: location, offset and length, as text; empty for one in the ONNX file itself."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return {}
    return {entry.key: entry.value for entry in tensor.external_data}
