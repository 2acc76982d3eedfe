"""Whether a tool's quantisation kept the zeros of the inner weights, from the stored numbers alone; and an exchange of weights.

It knows nothing of axes or graphs: a base graph holds 2:4 along each weight's reduction axis, and a mask that holds it along one
axis does not hold it along the other, so that a quantised matrix that holds it along some axis has kept its zeros.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from foreign_models import LENGTH, VOCAB
from onnx import numpy_helper

# operator -> places of its integer weight and of that weight's zero point
_PLACES = {
    "DequantizeLinear": (0, 2),
    "MatMulInteger": (1, 3),
    "DynamicQuantizeMatMul": (1, 3),
    "MatMulIntegerToFloat": (1, 5),
    "QLinearMatMul": (3, 5),
    "QLinearConv": (3, 5),
    "QGemm": (3, 5),
    "QAttention": (1, 7),
    "DynamicQuantizeAttention": (1, 5),
    "MatMulNBits": (1, 3),
    "MatMulBnb4": (1, 99),
}
_NOT_INNER = {VOCAB, LENGTH, LENGTH + 2, 2, 1}  # sizes of token, position and segment tables, and of vectors
_NF4_ZERO, _FP4_ZEROS = 7, (0, 8)


def broken_zeros(path: str) -> list[str]:
    """Names of quantised inner weights that are no longer 2:4."""
    model = onnx.load(path)
    tensors = constants(model)
    broken = []
    for node in nodes(model.graph):
        if node.op_type not in _PLACES:
            continue
        weight, zero = (node.input[i] if i < len(node.input) else "" for i in _PLACES[node.op_type])
        if weight not in tensors or tensors[weight].ndim < 2:
            continue
        zeros = _zeros(node, tensors[weight], tensors.get(zero))
        if not _NOT_INNER & set(zeros.shape) and not any(_holds(zeros, axis) for axis in range(zeros.ndim)):
            broken.append(weight)
    return broken


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of subgraphs included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes(attribute.g)


def stored(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """All stored tensors by name."""
    for graph in [model.graph, *(a.g for n in nodes(model.graph) for a in n.attribute if a.HasField("g"))]:
        yield from ((t.name, t) for t in graph.initializer)
        yield from ((n.output[0], a.t) for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value")


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The values of all stored tensors."""
    return {name: numpy_helper.to_array(tensor) for name, tensor in stored(model)}


def exchange(model: onnx.ModelProto, old: np.ndarray, new: np.ndarray) -> int:
    """Put a weight in the place of another wherever it is stored, as it is or transposed; return in how many places."""
    found = 0
    for _, tensor in stored(model):
        if tensor.data_type != onnx.TensorProto.FLOAT or sorted(tensor.dims) != sorted(old.shape):
            continue
        values = numpy_helper.to_array(tensor)
        for before, after in ((old, new), (np.swapaxes(old, -1, -2), np.swapaxes(new, -1, -2))):
            if np.array_equal(values, before):
                name = tensor.name
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(after), name))
                found += 1
                break
    return found


def _zeros(node: onnx.NodeProto, weight: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
    settings = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "MatMulBnb4":
        codes = _halves(weight).reshape(settings["N"], settings["K"])
        return codes == _NF4_ZERO if settings["quant_type"] == 1 else np.isin(codes, _FP4_ZEROS)
    if node.op_type == "MatMulNBits":
        return _nbits_zeros(settings, weight, zero)
    values = weight.astype(np.int64)
    if zero is None or zero.size == 1:
        return np.equal(values, 0 if zero is None else int(zero.reshape(())))
    axis = settings.get("axis", 1 if node.op_type == "DequantizeLinear" else 0 if settings.get("transB") else -1) % weight.ndim
    spread = zero.astype(np.int64)
    if spread.ndim == weight.ndim:
        spread = spread.repeat(settings.get("block_size") or weight.shape[axis], axis)
        return np.equal(values, spread.take(range(weight.shape[axis]), axis))
    return np.equal(values, spread.reshape([-1 if i == axis else 1 for i in range(weight.ndim)]))


def _nbits_zeros(settings: dict[str, int], weight: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
    n, k, size, width = settings["N"], settings["K"], settings["block_size"], settings.get("bits", 4)
    codes = _codes(weight, width).reshape(n, -1)[:, :k]
    blocks = -(-k // size)
    if zero is None:
        points = np.full((n, blocks), 1 << (width - 1))
    elif zero.dtype == np.uint8:
        points = _codes(zero.reshape(n, -1), width)[:, :blocks]
    else:
        points = zero.reshape(n, blocks)
    zeros: np.ndarray = np.equal(codes, points.repeat(size, 1)[:, :k])
    return zeros


def _codes(packed: np.ndarray, width: int) -> np.ndarray:
    flat = packed.reshape(packed.shape[0], -1)
    if width == 8:
        return flat
    mask = (1 << width) - 1
    return np.stack([flat >> (width * i) & mask for i in range(8 // width)], -1).reshape(len(flat), -1)


def _halves(packed: np.ndarray) -> np.ndarray:
    flat = packed.reshape(-1)
    return np.stack([flat >> 4, flat & 15], -1).reshape(-1)


def _holds(zeros: np.ndarray, axis: int) -> bool:
    if zeros.shape[axis] % 4:
        return False
    groups = np.moveaxis(zeros, axis, -1).reshape(-1, 4)
    return bool((groups.sum(-1) == 2).all())
