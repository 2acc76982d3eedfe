"""From every constant of an ONNX graph to all that uses it, and from every product to the axis that it sums over.

One pass over the nodes in their order carries, for each value, what it is made of (`values`). A constant that a product
multiplies with becomes a weight to check. All other uses are noted in the `Ledger`: a rule exempts them, or they are refused.
Where a node's results do not hold a table that went into it, and nothing was noted, the table is refused: what is not known to
be harmless is unaccounted for. Nothing recurses along the graph, so cycles cannot hang it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from maskpro_deploy.errors import FormatError
from maskpro_deploy.onnx_graphs.constants import QUANTISING, external_entries, tensor_bytes
from maskpro_deploy.onnx_graphs.nodes import STANDARD, constant_of, graphs_of, sort_nodes, title
from maskpro_deploy.validation.graphs import operators as ops
from maskpro_deploy.validation.graphs.branches import Branches, bind, large_attributes
from maskpro_deploy.validation.graphs.flow import Flow
from maskpro_deploy.validation.graphs.heads import mark_heads
from maskpro_deploy.validation.graphs.ledger import Ledger
from maskpro_deploy.validation.graphs.moves.pieces import make_pieces
from maskpro_deploy.validation.graphs.moves.steps import STEPS
from maskpro_deploy.validation.graphs.moves.tensors import ExternalFiles, flat_array, shape_of, type_name
from maskpro_deploy.validation.graphs.multiply import Multiplier
from maskpro_deploy.validation.graphs.products import PRODUCTS, product_of
from maskpro_deploy.validation.graphs.values import Constant, Input, Kind, Opaque, Runtime, Shapes, Value, is_table, origins_of
from maskpro_deploy.validation.source import Rule, Weight

Scope = tuple[object, ...]
_DEEPEST = 32  # functions in functions
_MOST_NODES = 100_000  # nodes that are traced, a function's again at each call


class Tracer:
    """One pass over a model."""

    def __init__(self, model: ModelProto, path: Path) -> None:
        self.files: set[str] = set()  # names of the files of external data
        self.ledger = Ledger()
        self._path = path
        self.external = ExternalFiles(path)
        self._functions = {(f.domain, f.name, f.overload): f for f in model.functions if f.domain not in ops.KNOWN_DOMAINS}
        self._shapes = Shapes(model)
        self._flow = Flow(self.ledger, self._shapes)
        self._multiplier = Multiplier(self.ledger, self._shapes, path)
        self._branches = Branches(self.trace, self.ledger, self._multiplier)
        self._depth = self._count = 0
        self._close_outputs(self.trace(model.graph, {}, ()))
        self._refuse_replacements(model.functions)
        for function in model.functions:  # constants of those that nothing calls
            for number, node in enumerate(function.node):
                self._enter_unused(node, (*_place_of(function), number))
        for number, info in enumerate(model.training_info):
            for graph in (info.initialization, info.algorithm):
                for tensor in graph.initializer:
                    shape_of(tensor, path)
                    self.ledger.enter(tensor, tensor.name, ("training", number))
        self.weights: tuple[Weight, ...] = mark_heads(model.graph, self.ledger, self._multiplier.weights)
        self.num_parameters = sum(s.elements for s in self.ledger.stored if s.rule is not Rule.UNUSED)
        self.multiply_adds = self._multiplier.multiply_adds

    def trace(self, graph: GraphProto, outer: Mapping[str, Value], scope: Scope) -> list[Value]:
        """The values of a graph's outputs; `outer` holds all that it may use, its own inputs included."""
        values: dict[str, Value] = {i.name: Runtime.INPUT for i in graph.input if i.name not in outer or not scope} | dict(outer)
        for tensor in graph.initializer:
            values[tensor.name] = self._enter_tensor(tensor, tensor.name, scope)
        for sparse in graph.sparse_initializer:
            size = tensor_bytes(sparse.values) + tensor_bytes(sparse.indices)
            key = self.ledger.enter_bytes(sparse.values.name, tuple(sparse.dims), size, scope)
            values[sparse.values.name] = Opaque(frozenset({key}), Kind.CONSTANT, "it is stored as a sparse tensor")
        self._trace_nodes(((node, (*scope, i)) for i, node in sort_nodes(graph.node, values)), values)
        return [values.get(output.name, Runtime.ACTIVE) for output in graph.output]

    def _enter_tensor(self, tensor: TensorProto, name: str, scope: Scope) -> Value:
        shape = shape_of(tensor, self._path)
        key = self.ledger.enter(tensor, name, scope)
        self.files.update(value for entry, value in external_entries(tensor).items() if entry == "location")
        origins, dtype = frozenset({key}), type_name(tensor.data_type)
        if dtype is None:
            onnx_name = TensorProto.DataType.Name(tensor.data_type) if tensor.data_type in TensorProto.DataType.values() else "?"
            return Opaque(origins, Kind.CONSTANT, f"its dtype is {onnx_name}")
        return Constant(key, shape, dtype, flat_array(tensor, self._path, self.external), tuple(range(len(shape))), origins)

    def _close_outputs(self, values: Iterable[Value]) -> None:
        """Note what becomes an output of the model without another product."""
        for value in values:
            if isinstance(value, Opaque) and value.kind is Kind.EXPANDED:
                self.ledger.refuse(value.origins, value.reason, "an output of the model")
            self.ledger.exempt(origins_of(value), Rule.ELEMENTWISE)

    def _trace_nodes(self, nodes: Iterable[tuple[NodeProto, Scope]], values: dict[str, Value]) -> None:
        for node, scope in nodes:
            for name in node.input:
                if name and name not in values:
                    raise FormatError(
                        f"{self._path}: {title(node)} uses {name!r}, which is not an input, initializer or earlier result.\n"
                        f"The graph lacks an initializer, or is not in topological order."
                    )
            inputs: list[Input] = [values[name] if name else None for name in node.input]
            self._count += 1
            if self._count > _MOST_NODES:
                raise FormatError(
                    f"{self._path}: its functions and loops come to more than {_MOST_NODES:,} nodes: it is not read."
                )
            self.ledger.consume(origins_of(*inputs), title(node))
            self.ledger.touched = set()
            self._shapes.known = self._multiplier.in_main_graph = len(scope) == 1
            try:
                results = self._trace_node(node, inputs, values, scope)
            except (IndexError, ZeroDivisionError, KeyError) as e:
                raise FormatError(f"{self._path}: {title(node)} lacks an input, an output or an attribute.") from e
            lost = self.ledger.tables(origins_of(*inputs) - origins_of(*results) - self.ledger.touched)
            if lost:
                self._multiplier.refuse(lost, f"{title(node)} uses it in a way that is not followed", node)
            values.update({name: value for name, value in zip(node.output, results, strict=False) if name})

    def _trace_node(self, node: NodeProto, inputs: list[Input], values: dict[str, Value], scope: Scope) -> list[Value]:
        count = len(node.output)
        function = self._functions.get((node.domain, node.op_type, node.overload))
        if function is not None:
            return self._call_function(function, node, inputs, scope)
        if node.op_type == "Constant" and node.domain in STANDARD:
            return [self._enter_constant(node, scope)] * count
        self._refuse_attributes(node, scope)
        if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute):
            return self._branches.results(node, inputs, values, scope)
        if node.op_type in ops.RANDOM and node.domain in STANDARD:
            shape = next((tuple(max(0, d) for d in a.ints) for a in node.attribute if a.name == "shape"), (0, 0))
            key = self.ledger.enter_bytes(node.output[0] if count else node.op_type, shape, 0, scope)
            self.ledger.exempt(origins_of(*inputs), Rule.INDEX)
            return [Opaque(frozenset({key}), Kind.SELECTED, f"its values come from {node.op_type}")] * count
        product = product_of(node)
        if product is not None:
            return [self._multiplier.multiply(node, inputs, product)] * count
        return self._follow_constant(node, inputs) or self._flow.results(node, inputs)

    def _refuse_attributes(self, node: NodeProto, scope: Scope) -> None:
        """Refuse what a node may multiply with that is not an input of it."""
        if node.domain not in ops.KNOWN_DOMAINS:
            self.ledger.refuse_node(title(node), "its operator is not known here: it may hold weights of its own")
        elif node.op_type in ops.SEALED:
            self.ledger.refuse_node(title(node), "it is an engine that was compiled elsewhere, with weights of its own")
        for name, size in large_attributes(node):
            key = self.ledger.enter_bytes(f"{node.output[0] if node.output else node.op_type}.{name}", (size,), size, scope)
            self.ledger.refuse([key], f"it is an attribute of {node.op_type}, which is not followed", title(node))

    def _follow_constant(self, node: NodeProto, inputs: list[Input]) -> list[Value] | None:
        """The results of a step through which constants stay known."""
        if node.domain not in STANDARD and node.op_type not in QUANTISING:
            return None
        source = inputs[0] if inputs else None
        made = make_pieces(node, inputs)
        if made is not None:
            self.ledger.exempt([k for v in inputs[1:] for k in origins_of(v) if k not in origins_of(*made)], Rule.INDEX)
            return list(made)
        step = STEPS.get(node.op_type)
        if step is None or not isinstance(source, Constant) or any(isinstance(v, Runtime) for v in inputs):
            return None
        followed = step(node, source, inputs)
        if followed is None:
            return None
        self.ledger.exempt(origins_of(*inputs[1:]), Rule.QUANTISATION if node.op_type in QUANTISING else Rule.INDEX)
        return [followed]

    def _enter_constant(self, node: NodeProto, scope: Scope) -> Value:
        tensor = constant_of(node)
        if tensor is None:
            sparse = next((a.sparse_tensor for a in node.attribute if a.HasField("sparse_tensor")), None)
            size = 0 if sparse is None else tensor_bytes(sparse.values) + tensor_bytes(sparse.indices)
            key = self.ledger.enter_bytes(node.output[0], () if sparse is None else tuple(sparse.dims), size, scope)
            return Opaque(frozenset({key}), Kind.CONSTANT, "it is a constant without a tensor")
        return self._enter_tensor(tensor, node.output[0], scope)

    def _call_function(self, function: FunctionProto, node: NodeProto, inputs: list[Input], scope: Scope) -> list[Value]:
        if self._depth >= _DEEPEST:
            raise FormatError(f"{self._path}: {title(node)} calls itself, or functions are nested more than {_DEEPEST} deep.")
        given = [v if v is not None else Runtime.INPUT for v in inputs]
        values: dict[str, Value] = dict.fromkeys(function.input, Runtime.INPUT) | dict(zip(function.input, given, strict=False))
        self._depth += 1
        # constants of the body are the function's own, however often it is called; what has attributes of the call is the call's
        place = _place_of(function)
        body = zip(bind(function, node), function.node, strict=True)
        self._trace_nodes(((n, (*place, i) if n is own else (*scope, i)) for i, (n, own) in enumerate(body)), values)
        self._depth -= 1
        self.ledger.touched |= origins_of(*given[: len(function.input)])
        return [values.get(name, Runtime.ACTIVE) for name in function.output]

    def _refuse_replacements(self, functions: Iterable[FunctionProto]) -> None:
        """A function in place of an operator that runtimes have themselves counts as that operator, and may not multiply."""
        for function in functions:
            multiplies = any(product_of(n) is not None or graphs_of(n) or _is_large_constant(n) for n in function.node)
            if function.domain in ops.KNOWN_DOMAINS and (multiplies or function.name in PRODUCTS):
                name = f"{function.domain}.{function.name}" if function.domain else function.name
                self.ledger.refuse_node(f"function {name}", "it stands for an operator that runtimes have themselves")

    def _enter_unused(self, node: NodeProto, scope: Scope) -> None:
        if node.op_type == "Constant" and (tensor := constant_of(node)) is not None and node.output:
            shape_of(tensor, self._path)
            self.ledger.enter(tensor, node.output[0], scope)
        for graph in graphs_of(node):
            for tensor in graph.initializer:
                shape_of(tensor, self._path)
                self.ledger.enter(tensor, tensor.name, scope)
            for number, inner in enumerate(graph.node):
                self._enter_unused(inner, (*scope, number))


def _place_of(function: FunctionProto) -> Scope:
    return ("function", function.domain, function.name, function.overload)


def _is_large_constant(node: NodeProto) -> bool:
    return (tensor := constant_of(node)) is not None and is_table(tuple(tensor.dims))
