"""Nodes of an ONNX graph: their domains, their names in messages, and what their attributes hold."""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

STANDARD = ("", "ai.onnx")
MICROSOFT = "com.microsoft"


def title(node: NodeProto) -> str:
    """Operator and name of a node."""
    operator = f"{node.domain}.{node.op_type}" if node.domain not in STANDARD else node.op_type
    return f"{operator} {node.name!r}" if node.name else operator


def get_integer(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute of a node."""
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def get_integers(node: NodeProto, name: str) -> list[int] | None:
    """A list of integers among the attributes of a node; None if it has none of this name."""
    return next((list(a.ints) for a in node.attribute if a.name == name), None)


def graphs_of(node: NodeProto) -> tuple[GraphProto, ...]:
    """The graphs that a node holds."""
    return tuple(g for a in node.attribute for g in (*((a.g,) if a.HasField("g") else ()), *a.graphs))


def constant_of(node: NodeProto) -> TensorProto | None:
    """The tensor of a Constant node, however it is written; None if it has none."""
    for a in node.attribute:
        if a.name == "value" and a.HasField("t"):
            return a.t
        if a.name in ("value_int", "value_ints"):
            return numpy_helper.from_array(np.array(a.i if a.name == "value_int" else list(a.ints), dtype=np.int64))
        if a.name in ("value_float", "value_floats"):
            return numpy_helper.from_array(np.array(a.f if a.name == "value_float" else list(a.floats), dtype=np.float32))
        if a.name in ("value_string", "value_strings"):
            texts = [a.s] if a.name == "value_string" else list(a.strings)
            return TensorProto(
                data_type=TensorProto.STRING, string_data=texts, dims=[] if a.name == "value_string" else [len(texts)]
            )
    return None
