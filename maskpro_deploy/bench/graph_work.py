"""What one step of an ONNX model has to read and to compute: its weights, and its matrix products with constant weights.

Also a hash of the graph without the values of its weights: on a CPU onnxruntime chooses kernels by operators, types and shapes,
so models with the same hash run the same kernels.

Shapes: `K` inputs, `N` outputs of a product.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskpro_deploy.errors import FormatError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

# operator -> its inputs that are tables
_LOOKED_UP = {"Gather": (0,), "RotaryEmbedding": (1, 2), "GroupQueryAttention": (7, 8)}
_SAME_SHAPE = ("Cast", "DequantizeLinear", "Identity", "QuantizeLinear")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphWork:
    """The work of one step.

    Attributes:
        weight_bytes: bytes of the weights that a step reads whole, as stored: all but those that are only looked up.
        products: (K, N) -> how many products with such a constant weight each token goes through.
        last: shape of the product that makes the logits, or None.
        structure_sha256: hash of all of the graph but the values of its weights.
    """

    weight_bytes: int
    products: dict[tuple[int, int], int]
    last: tuple[int, int] | None = None
    structure_sha256: str = field(default="", compare=False)

    @property
    def operations_per_token(self) -> int:
        """Multiplications and additions of these products."""
        return sum(2 * k * n * count for (k, n), count in self.products.items())


def graph_work(model: Path) -> GraphWork:
    """Read an ONNX graph; external data is not read.

    Args:
        model: the `.onnx` file.

    Raises:
        FormatError: it is no ONNX file.
    """
    import onnx

    try:
        loaded = onnx.load(str(model), load_external_data=False)
    except Exception as e:  # the protobuf library raises its own kinds
        raise FormatError(f"{model} is no ONNX file: {e}") from e
    graph = loaded.graph
    read_whole = {name for node in graph.node for i, name in enumerate(node.input) if i not in _looked_up(node)}
    read_whole |= {output.name for output in graph.output}
    shapes = _Shapes(graph)
    products: Counter[tuple[int, int]] = Counter()
    last = None
    for node in graph.node:
        if (shape := shapes.product(node)) is not None:
            products[shape] += 1
            last = shape
    return GraphWork(
        weight_bytes=sum(_tensor_bytes(t) for t in graph.initializer if t.name in read_whole),
        products=dict(products),
        last=last,
        structure_sha256=_structure(loaded),
    )


def _structure(model: ModelProto) -> str:
    """Hash of operators, their attributes and order, of the names, types and shapes of all values, and of small whole numbers."""
    digest = hashlib.sha256()
    parts = [model.opset_import, model.functions, model.graph.input, model.graph.output]
    for message in (m for part in parts for m in part):
        digest.update(message.SerializeToString(deterministic=True) + b"\n")
    for node in model.graph.node:
        plain = type(node)()
        plain.CopyFrom(node)
        plain.ClearField("doc_string")
        plain.ClearField("metadata_props")
        digest.update(plain.SerializeToString(deterministic=True) + b"\n")
    for tensor in model.graph.initializer:
        digest.update(f"{tensor.name} {tensor.data_type} {list(tensor.dims)}\n".encode())
        if _is_setting(tensor):
            digest.update(tensor.raw_data + bytes(str([*tensor.int64_data, *tensor.int32_data]), "ascii") + b"\n")
    return digest.hexdigest()


def _is_setting(tensor: TensorProto) -> bool:
    """Whether an initializer is no weight but a shape, an axis or the like."""
    from onnx import TensorProto as Proto

    return tensor.data_type in (Proto.INT64, Proto.INT32, Proto.BOOL) and len(tensor.dims) <= 1 and sum(tensor.dims) <= 64


def _looked_up(node: NodeProto) -> tuple[int, ...]:
    """The inputs of which a node reads a few rows, however large they are."""
    if node.op_type == "RotaryEmbedding" and len(node.input) < 4:  # without positions it reads its tables whole
        return ()
    return _LOOKED_UP.get(node.op_type, ())


class _Shapes:
    """Shapes of values that are constant up to reordering and dequantising."""

    def __init__(self, graph: GraphProto) -> None:
        self._known = {t.name: tuple(t.dims) for t in graph.initializer}
        self._maker = {output: node for node in graph.node for output in node.output}

    def product(self, node: NodeProto) -> tuple[int, int] | None:
        """(K, N) of a product with a constant weight, or None for any other node."""
        attributes = {a.name: a for a in node.attribute}
        if node.op_type == "MatMulNBits":
            return int(attributes["K"].i), int(attributes["N"].i)
        if node.op_type not in ("MatMul", "Gemm"):
            return None
        shape = self._constant(node.input[1])
        if shape is None or len(shape) != 2:
            return None
        turned = node.op_type == "Gemm" and "transB" in attributes and attributes["transB"].i == 1
        return (shape[1], shape[0]) if turned else (shape[0], shape[1])

    def _constant(self, name: str) -> tuple[int, ...] | None:
        if name in self._known or name not in self._maker:
            return self._known.get(name)
        node = self._maker[name]
        if node.op_type in _SAME_SHAPE:
            return self._constant(node.input[0])
        if node.op_type == "Transpose" and (shape := self._constant(node.input[0])) is not None:
            order = next((list(a.ints) for a in node.attribute if a.name == "perm"), list(range(len(shape)))[::-1])
            return tuple(shape[i] for i in order)
        return None


def _tensor_bytes(tensor: Any) -> int:
    """Stored size of an initializer, from its shape and type (4-bit types are packed two to a byte)."""
    from onnx import TensorProto, helper

    count = 1
    for dim in tensor.dims:
        count *= dim
    if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1):
        return (count + 1) // 2
    return count * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
