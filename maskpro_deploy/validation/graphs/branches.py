"""Nodes that hold graphs: If, Loop, Scan and others. What a loop carries, or a branch returns, is chosen when the graph runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from onnx import GraphProto, NodeProto

from maskpro_deploy.onnx_graphs.nodes import get_integer, graphs_of
from maskpro_deploy.validation.accounts import Rule
from maskpro_deploy.validation.graphs.ledger import Ledger
from maskpro_deploy.validation.graphs.values import Constant, Input, Kind, Opaque, Runtime, Value, is_table, origins_of

Scope = tuple[object, ...]


class GraphTracer(Protocol):
    """What traces the graphs."""

    ledger: Ledger

    def trace(self, graph: GraphProto, outer: Mapping[str, Value], scope: Scope) -> list[Value]: ...

    def mark(self) -> object: ...

    def undo(self, mark: object) -> None: ...


class Branches:
    """Traces the graphs that nodes hold.

    Args:
        tracer: of the model.
    """

    def __init__(self, tracer: GraphTracer) -> None:
        self._tracer = tracer

    def results(self, node: NodeProto, inputs: Sequence[Input], values: Mapping[str, Value], scope: Scope) -> list[Value]:
        """The values of a node's outputs."""
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
        self._tracer.ledger.touched |= touched  # each went into a graph, and was followed there
        return results

    def _run(self, graph: GraphProto, values: Mapping[str, Value], given: Mapping[str, Value], scope: Scope) -> list[Value]:
        return self._tracer.trace(graph, {**values, **given}, scope)

    def _merge(self, node: NodeProto, column: Sequence[Value]) -> Value:
        """One of several values."""
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

    def _trace_loop(
        self, body: GraphProto, inputs: Sequence[Input], values: Mapping[str, Value], scope: Scope, count: int
    ) -> list[Value]:
        state = [self._carry(v, "Loop") for v in inputs[2:]]
        self._tracer.ledger.exempt(origins_of(*inputs[:2]), Rule.INDEX)
        names = [v.name for v in body.input]
        first: list[Value] = [Runtime.ACTIVE, Runtime.INPUT]  # number of the pass, and whether to go on
        return self._repeat(body, values, lambda s: dict(zip(names, [*first, *s], strict=False)), state, scope, skipped=1)[:count]

    def _trace_scan(
        self, node: NodeProto, body: GraphProto, inputs: Sequence[Input], values: Mapping[str, Value], scope: Scope
    ) -> list[Value]:
        count = get_integer(node, "num_scan_inputs", 0)
        first = len(inputs) - count
        state = [self._carry(v, "Scan") for v in inputs[:first]]
        parts = [self._carry(v, "Scan, a part at a time") for v in inputs[first:]]
        names = [v.name for v in body.input]
        return self._repeat(body, values, lambda s: dict(zip(names, [*s, *parts], strict=False)), state, scope, skipped=0)

    def _repeat(
        self,
        body: GraphProto,
        values: Mapping[str, Value],
        given: Callable[[list[Value]], dict[str, Value]],
        state: list[Value],
        scope: Scope,
        *,
        skipped: int,
    ) -> list[Value]:
        """Trace a body until what it carries does not change; each state can only get worse, so this ends."""
        while True:
            mark = self._tracer.mark()
            outputs = self._run(body, values, given(state), scope)[skipped:]
            worse = [_join_states(old, new) for old, new in zip(state, outputs, strict=False)]
            if worse == state:
                return [*worse, *outputs[len(state) :]]
            self._tracer.undo(mark)
            state = worse


def _join_states(old: Value, new: Value) -> Value:
    """A value that represents both."""
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
