"""Attributes that hold weights, and those that a function takes from its call."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import AttributeProto, FunctionProto, NodeProto

from maskpro_deploy.onnx_graphs.nodes import MICROSOFT, STANDARD

_LARGE = 64  # numbers or bytes of an attribute that may be weights


def large_attributes(node: NodeProto) -> Iterator[tuple[str, int]]:
    """Names and bytes of a node's attributes that are large enough for weights."""
    for a in node.attribute:
        size = max(4 * len(a.floats), 8 * len(a.ints), len(a.s), sum(map(len, a.strings)))
        for tensor in (*([a.t] if a.HasField("t") else []), *a.tensors):
            size = max(size, tensor.ByteSize())
        limit = 8 * _LARGE if node.domain in (*STANDARD, MICROSOFT) else 0  # models of ai.onnx.ml are attributes
        if size > limit and (limit or a.floats or a.HasField("t") or a.tensors):
            yield a.name, size


def bind(function: FunctionProto, call: NodeProto) -> list[NodeProto]:
    """The nodes of a function, with the attributes that a call gives, or else their defaults."""
    if not function.attribute and not function.attribute_proto:
        return list(function.node)
    given = {a.name: a for a in function.attribute_proto} | {a.name: a for a in call.attribute}
    return [_bind_node(node, given) for node in function.node]


def _bind_node(node: NodeProto, given: dict[str, AttributeProto]) -> NodeProto:
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
                nodes = [_bind_node(inner, given) for inner in graph.node]
                del graph.node[:]
                graph.node.extend(nodes)
        elif a.ref_attr_name in given:
            own = copy.attribute.add()
            own.CopyFrom(given[a.ref_attr_name])
            own.name = a.name
    return copy
