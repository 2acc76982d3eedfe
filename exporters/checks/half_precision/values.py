"""What the values of a rewritten half-precision graph are: of which layer, and whether they hide tokens from attention.

A mask holds the lowest number of its type on purpose. It, and what it is added to, may be as low as it likes until the softmax.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_NUMBER = re.compile(r"(?:^|[./_])(?:layers?|h|blocks?)[./_](\d+)(?:[./_]|$)")
_ENDS_OF_MASKS = frozenset(("Softmax", "LogSoftmax", "Exp", "Attention", "GroupQueryAttention"))
EMBEDDING, HEAD = "embedding", "head"


def parse_layer(name: str) -> str:
    """The layer that a name tells, "" if it tells none."""
    number = _NUMBER.search(name)
    return f"layer {number[1]}" if number else ""


def assign_layers(graph: onnx.GraphProto) -> dict[str, str]:
    """Value -> "layer 0" and so on, `EMBEDDING` for what comes before, `HEAD` for what comes after.

    A node belongs to the layer that its name or a weight of it names; a node without either, to that of what it reads.
    """
    weights = {tensor.name for tensor in graph.initializer if tensor.data_location == TensorProto.EXTERNAL}
    number: dict[str, int] = {}
    after = 1 << 30
    for node in graph.node:
        reads = [name for name in node.input if name]
        if node.op_type == "Cast" and set(reads) <= weights:  # a weight as it is read
            weights.update(node.output)
            continue
        named = [int(m[1]) for name in (node.name, *(w for w in reads if w in weights)) if (m := _NUMBER.search(name))]
        before = max((number.get(name, -1) for name in reads), default=-1)
        unnamed = after if before >= 0 and weights & set(reads) else before
        own = named[0] if named else unnamed
        number.update((name, own) for name in node.output if name)
    return {name: HEAD if i == after else EMBEDDING if i < 0 else f"layer {i}" for name, i in number.items()}


def find_masked_values(graph: onnx.GraphProto, lowest: float) -> set[str]:
    """Values that hold the lowest numbers to hide tokens.

    Args:
        graph: its nodes stand in an order in which they can run.
        lowest: of the float type.
    """
    masked = {t.name for t in graph.initializer if t.data_location != TensorProto.EXTERNAL and _is_low(t, lowest)}
    for node in graph.node:
        if node.op_type in _ENDS_OF_MASKS:
            continue
        if masked & set(node.input) or any(_is_low(tensor, lowest) for tensor in _constants(node)):
            masked.update(name for name in node.output if name)
    return masked


def _constants(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        if node.op_type == "Constant" and attribute.name == "value_float":
            yield helper.make_tensor("", TensorProto.FLOAT, [], [attribute.f])


def _is_low(tensor: onnx.TensorProto, lowest: float) -> bool:
    """Whether it holds numbers that a real value would hardly be."""
    if tensor.data_type not in (TensorProto.FLOAT, TensorProto.DOUBLE):
        return False
    values = numpy_helper.to_array(tensor)
    return bool(values.size) and float(np.min(values)) <= lowest / 2
