"""Nodes that hold graphs (If, Loop, Scan and others), attributes that hold weights, and what a function takes from its call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto

from maskpro_deploy.onnx_graphs.nodes import MICROSOFT, STANDARD, get_integer, graphs_of
from maskpro_deploy.validation.graphs.ledger import Ledger
from maskpro_deploy.validation.graphs.multiply import Multiplier
from maskpro_deploy.validation.graphs.values import Constant, Input, Inputs, Kind, Opaque, Runtime, Value, is_table, origins_of
from maskpro_deploy.validation.source import Rule

Scope = tuple[object, ...]
Values = list[Value]
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


class Branches:
    """Follows values through the graphs that nodes hold. What a loop carries, or a branch returns, is chosen at run time."""

    def __init__(
        self, trace: Callable[[GraphProto, Mapping[str, Value], Scope], Values], ledger: Ledger, multiplier: Multiplier
    ) -> None:
        self._trace, self._ledger, self._multiplier = trace, ledger, multiplier

    def results(self, node: NodeProto, inputs: Inputs, values: Mapping[str, Value], scope: Scope) -> Values:
        graphs = graphs_of(node)
        touched = set(origins_of(*inputs))
        if node.op_type == "Loop":
            results = self._trace_loop(graphs[0], inputs, values, scope, len(node.output))
        elif node.op_type == "Scan":
            results = self._trace_scan(node, graphs[0], inputs, values, scope)
        elif node.op_type == "If":
            outputs = [self._run(g, values, {}, (*scope, i)) for i, g in enumerate(graphs)]
            results = [self._merge(node, column) for column in zip(*outputs, strict=False)]
        else:  # an operator of its own kind, such as a search: its graphs see activations
            for i, g in enumerate(graphs):
                self._run(g, values, {v.name: Runtime.ACTIVE for v in g.input}, (*scope, i))
            return [Runtime.ACTIVE] * len(node.output)
        self._ledger.touched |= touched  # each went into a graph, and was followed there
        return results

    def _run(self, graph: GraphProto, values: Mapping[str, Value], given: Mapping[str, Value], scope: Scope) -> Values:
        return self._trace(graph, {**values, **given}, scope)

    def _merge(self, node: NodeProto, column: Sequence[Value]) -> Value:
        chosen = _choose_one(column, f"{node.op_type} chooses it at run time")
        if chosen is not None:
            return chosen
        return Runtime.INPUT if all(v is Runtime.INPUT or isinstance(v, Constant) for v in column) else Runtime.ACTIVE

    def _carry(self, value: Input, what: str) -> Value:
        """A value that a loop may replace by another."""
        if isinstance(value, Opaque):
            return value if value.kind is not Kind.CONSTANT else Opaque(value.origins, Kind.SELECTED, value.reason)
        if isinstance(value, Constant) and is_table(value.shape):
            return Opaque(value.origins, Kind.SELECTED, f"it is carried through {what}")
        return Runtime.ACTIVE

    def _trace_loop(self, body: GraphProto, inputs: Inputs, values: Mapping[str, Value], scope: Scope, count: int) -> Values:
        state = [self._carry(v, "Loop") for v in inputs[2:]]
        self._ledger.exempt(origins_of(*inputs[:2]), Rule.INDEX)
        first: Values = [Runtime.ACTIVE, Runtime.INPUT]  # number of the pass, and whether to go on
        return self._repeat(body, values, scope, first, state, [])[:count]

    def _trace_scan(self, node: NodeProto, body: GraphProto, inputs: Inputs, values: Mapping[str, Value], scope: Scope) -> Values:
        count = get_integer(node, "num_scan_inputs", 0)
        first = len(inputs) - count
        state = [self._carry(v, "Scan") for v in inputs[:first]]
        parts = [self._carry(v, "Scan, a part at a time") for v in inputs[first:]]
        return self._repeat(body, values, scope, [], state, parts)

    def _repeat(
        self, body: GraphProto, values: Mapping[str, Value], scope: Scope, first: Values, state: Values, parts: Values
    ) -> Values:
        """Trace a body until what it carries does not change; each state can only get worse, so this ends."""
        names = [v.name for v in body.input]
        while True:
            mark = self._multiplier.mark()
            outputs = self._run(body, values, dict(zip(names, [*first, *state, *parts], strict=False)), scope)
            if first:  # a Loop's body says in front of the rest whether to go on
                del outputs[0]
            worse = [_join_states(old, new) for old, new in zip(state, outputs, strict=False)]
            if worse == state:
                return [*worse, *outputs[len(state) :]]
            self._multiplier.undo(mark)  # what the ledger holds against tensors stays
            state = worse


def _join_states(old: Value, new: Value) -> Value:
    both = _choose_one((old, new), old.reason if isinstance(old, Opaque) else "a loop carries it")
    if both is None:
        return Runtime.ACTIVE
    same = isinstance(old, Opaque) and (both.origins, both.kind) == (old.origins, old.kind)
    return old if same else both


def _choose_one(values: Sequence[Value], reason: str) -> Opaque | None:
    """One of several values, whichever it is when the graph runs; None if none of them holds a table."""
    held = [v for v in values if isinstance(v, Opaque) or (isinstance(v, Constant) and is_table(v.shape))]
    kinds = [v.kind if isinstance(v, Opaque) and v.kind is not Kind.CONSTANT else Kind.SELECTED for v in held]
    return Opaque(origins_of(*held), max(kinds), reason) if held else None
