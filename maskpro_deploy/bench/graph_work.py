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

from onnx import ModelProto, NodeProto, TensorProto

from maskpro_deploy.onnx_graphs.constants import ConstantFinder, read_model, tensor_bytes
from maskpro_deploy.onnx_graphs.nodes import get_integer

# operator -> its inputs that are tables
_TABLES = {"Gather": (0,), "RotaryEmbedding": (1, 2), "GroupQueryAttention": (7, 8)}


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphWork:
    """The work of one step."""

    weight_bytes: int  # bytes of the weights that a step reads whole, as stored: all but those that are only looked up
    products: dict[tuple[int, int], int]  # (K, N) -> how many products with such a constant weight each token goes through
    last: tuple[int, int] | None = None  # shape of the product that makes the logits, or None
    structure_sha256: str = field(default="", compare=False)  # hash of all of the graph but the values of its weights

    @property
    def operations_per_token(self) -> int:
        """Multiplications and additions of these products."""
        return sum(2 * k * n * count for (k, n), count in self.products.items())


def graph_work(model: Path) -> GraphWork:
    """Read an `.onnx` file, without its external data; a `FormatError` if it is none."""
    loaded = read_model(model)
    graph = loaded.graph
    read_whole = {name for node in graph.node for i, name in enumerate(node.input) if i not in _list_lookup_inputs(node)}
    read_whole |= {output.name for output in graph.output}
    constants = ConstantFinder(graph)
    shapes = [shape for node in graph.node if (shape := _product_shape(node, constants)) is not None]
    return GraphWork(
        weight_bytes=sum(tensor_bytes(t) for t in graph.initializer if t.name in read_whole),
        products=dict(Counter(shapes)),
        last=shapes[-1] if shapes else None,
        structure_sha256=_hash_structure(loaded),
    )


def _hash_structure(model: ModelProto) -> str:
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
    """Whether an initializer is not a weight but a shape, an axis or the like."""
    integer = tensor.data_type in (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)
    return integer and len(tensor.dims) <= 1 and sum(tensor.dims) <= 64


def _list_lookup_inputs(node: NodeProto) -> tuple[int, ...]:
    """The inputs of which a node reads a few rows, however large they are."""
    if node.op_type == "RotaryEmbedding" and len(node.input) < 4:  # without positions it reads its tables whole
        return ()
    return _TABLES.get(node.op_type, ())


def _product_shape(node: NodeProto, constants: ConstantFinder) -> tuple[int, int] | None:
    """(K, N) of a product with a constant weight, or None for any other node."""
    if node.op_type == "MatMulNBits":
        return get_integer(node, "K", 0), get_integer(node, "N", 0)
    if node.op_type not in ("MatMul", "Gemm"):
        return None
    weight = constants.find(node.input[1])
    if weight is None or len(weight.shape) != 2:
        return None
    k, n = weight.shape
    return (n, k) if node.op_type == "Gemm" and get_integer(node, "transB", 0) else (k, n)
