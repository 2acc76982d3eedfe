"""Constants that are attributes of nodes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto, numpy_helper

from maskpro_deploy.validation.graphs.operators import MICROSOFT, STANDARD

_LARGE = 64  # numbers or bytes of an attribute that may be weights


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


def large_attributes(node: NodeProto) -> Iterator[tuple[str, int]]:
    """Names and bytes of a node's attributes that are large enough for weights."""
    for a in node.attribute:
        size = max(4 * len(a.floats), 8 * len(a.ints), len(a.s), sum(map(len, a.strings)))
        for tensor in (*([a.t] if a.HasField("t") else []), *a.tensors):
            size = max(size, tensor.ByteSize())
        limit = 8 * _LARGE if node.domain in (*STANDARD, MICROSOFT) else 0  # models of ai.onnx.ml are attributes
        if size > limit and (limit or a.floats or a.HasField("t") or a.tensors):
            yield a.name, size


def graphs_of(node: NodeProto) -> tuple[GraphProto, ...]:
    """The graphs that a node holds."""
    return tuple(g for a in node.attribute for g in (*((a.g,) if a.HasField("g") else ()), *a.graphs))


def bind(function: FunctionProto, call: NodeProto) -> list[NodeProto]:
    """The nodes of a function, with the attributes that a call gives, or else their defaults."""
    if not function.attribute and not function.attribute_proto:
        return list(function.node)
    given = {a.name: a for a in function.attribute_proto} | {a.name: a for a in call.attribute}
    return [_bound(node, given) for node in function.node]


def _bound(node: NodeProto, given: dict[str, AttributeProto]) -> NodeProto:
    if not any(a.ref_attr_name or a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute):
        return node
    copy = NodeProto()
    copy.CopyFrom(node)
    del copy.attribute[:]
    for a in node.attribute:
        if not a.ref_attr_name:
            own = copy.attribute.add()
            own.CopyFrom(a)
            for graph in (*([own.g] if own.HasField("g") else []), *own.graphs):
                nodes = [_bound(inner, given) for inner in graph.node]
                del graph.node[:]
                graph.node.extend(nodes)
        elif a.ref_attr_name in given:
            own = copy.attribute.add()
            own.CopyFrom(given[a.ref_attr_name])
            own.name = a.name
    return copy
