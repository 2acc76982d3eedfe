"""From every MatMul, Gemm and Conv of an ONNX graph back to the constant it multiplies with, and to its reduction axis.

One pass over the nodes in their order carries, for each value that does not depend on the graph's inputs, which tensor it is and
how its axes were permuted. `onnx_steps` has what is followed: Transpose, Cast, Identity, Reshape and its kin, QuantizeLinear and
DequantizeLinear. Through anything else a constant becomes `Opaque`, and a weight that arrives so is reported as not checked.
Nothing recurses along the graph, so cycles cannot hang it: a value used before it was made is an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from maskpro_deploy.errors import FormatError
from maskpro_deploy.validation.inputs import InputFile
from maskpro_deploy.validation.onnx_steps import STEPS, Constant, Opaque, Value, constant_value, integer
from maskpro_deploy.validation.onnx_tensors import ExternalFiles, dtype_name, flat_array, shape_of
from maskpro_deploy.validation.source import Unchecked, Weight, is_linear

# operators that multiply by a constant in a way that is not followed yet
_NOT_FOLLOWED = frozenset(
    (
        *("BiasGemm", "ConvInteger", "ConvTranspose", "DynamicQuantizeMatMul", "Einsum", "FusedConv", "FusedGemm", "FusedMatMul"),
        *("GRU", "LSTM", "RNN", "MatMulBnb4", "MatMulFpQ4", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits"),
        *("MoE", "QMoE", "QAttention", "QLinearConv", "QLinearMatMul", "TransposeMatMul"),
    )
)
_WEIGHT_SECOND = frozenset({"MatMulBnb4", "MatMulFpQ4", "MatMulNBits"})  # beside it come scales and zero points
# between the last product and the output `logits`
_AFTER_HEAD = frozenset({"Add", "Cast", "Div", "Identity", "Mul", "Tanh"})


class Tracer:
    """One pass over a model; the result is in `weights`, `unchecked` and `files` (of external data)."""

    def __init__(self, model: ModelProto, path: Path) -> None:
        self.weights: list[Weight] = []
        self.unchecked: list[Unchecked] = []
        self.num_parameters = 0
        self.files: set[str] = set()
        self.multiply_adds = 0
        self._path = path
        self._external = ExternalFiles(path)
        self._functions = {(f.domain, f.name) for f in model.functions}
        self._embeddings: set[str] = set()
        self._heads = _head_products(model.graph)
        self._seen: dict[tuple[str, int, int], int] = {}  # to its place in `weights`
        self._graph(model.graph, {})
        for function in model.functions:
            self._nodes(function.node, dict.fromkeys(function.input))
        # a tied embedding serves as the output head: it is looked up, and multiplied with
        self.weights = [replace(w, linear=w.linear and w.name not in self._embeddings) for w in self.weights]

    @property
    def inputs(self) -> tuple[InputFile, ...]:
        """The files of external data that were opened."""
        return self._external.opened

    def _graph(self, graph: GraphProto, outer: Mapping[str, Value]) -> None:
        values: dict[str, Value] = {**outer, **{i.name: None for i in graph.input}}
        for tensor in graph.initializer:
            values[tensor.name] = self._stored(tensor, tensor.name)
        for sparse in graph.sparse_initializer:
            shape = tuple(sparse.dims)
            values[sparse.values.name] = Opaque(sparse.values.name, shape, "it is stored as a sparse tensor")
            self.num_parameters += math.prod(shape)
        self._nodes(graph.node, values)

    def _stored(self, tensor: TensorProto, name: str) -> Constant | Opaque:
        shape = shape_of(tensor, self._path)
        self.num_parameters += math.prod(shape)
        if tensor.data_location == TensorProto.EXTERNAL:
            self.files.update(e.value for e in tensor.external_data if e.key == "location")
        dtype = dtype_name(tensor)
        if dtype is None:
            type_name = TensorProto.DataType.Name(tensor.data_type) if tensor.data_type in TensorProto.DataType.values() else "?"
            return Opaque(name, shape, f"its dtype is {type_name}")
        return Constant(name, shape, dtype, flat_array(tensor, self._path, self._external), tuple(range(len(shape))))

    def _nodes(self, nodes: Iterable[NodeProto], values: dict[str, Value]) -> None:
        for node in nodes:
            for name in node.input:
                if name and name not in values:
                    raise FormatError(
                        f"{self._path}: {_title(node)} uses {name!r}, which is no input, initializer or earlier result.\n"
                        f"The graph lacks an initializer, or is not in topological order."
                    )
            inputs = [values[name] if name else None for name in node.input]
            for graph in _subgraphs(node):
                self._graph(graph, values)
            self._products(node, inputs)
            values.update(self._results(node, inputs))

    def _results(self, node: NodeProto, inputs: list[Value]) -> dict[str, Value]:
        constants = [v for v in inputs if v is not None]
        present = sum(1 for name in node.input if name)
        result: Value = None
        if node.op_type == "Constant" and not node.domain:
            result = self._constant_node(node)
        elif constants and len(constants) == present and not any(True for _ in _subgraphs(node)):
            result = self._followed(node, inputs)
        return {name: result for name in node.output if name}

    def _constant_node(self, node: NodeProto) -> Value:
        for attribute in node.attribute:
            if attribute.name == "value" and attribute.HasField("t"):
                return self._stored(attribute.t, node.output[0])
        values = constant_value(node)
        return values or Opaque(node.output[0], (), "it is a constant without a tensor")

    def _followed(self, node: NodeProto, inputs: list[Value]) -> Value:
        source = next(v for v in inputs if v is not None)
        if isinstance(source, Constant) and source is inputs[0] and not node.domain:
            step = STEPS.get(node.op_type)
            followed = step(node, source, inputs) if step is not None else None
            if followed is not None:
                return followed
        if isinstance(source, Opaque):
            return source
        return Opaque(source.name, source.shape, f"it passes through {node.op_type}, which is not followed")

    def _products(self, node: NodeProto, inputs: list[Value]) -> None:
        if node.op_type == "Gather" and inputs and isinstance(inputs[0], Constant):
            self._embeddings.add(inputs[0].name)
        if (node.domain, node.op_type) in self._functions or node.op_type in _NOT_FOLLOWED:
            for value in inputs[1:2] if node.op_type in _WEIGHT_SECOND else inputs:
                if value is not None and len(value.shape) >= 2:
                    self._skip(value.name, value.shape, f"{node.op_type} is not followed", node)
            return
        if node.domain not in ("", "ai.onnx") or all(v is not None for v in inputs[:2]):
            return
        for index, axis in _reduction_axes(node):
            if index < len(inputs) and (value := inputs[index]) is not None:
                self._weight(node, value, axis)

    def _weight(self, node: NodeProto, value: Constant | Opaque, axis: int) -> None:
        if isinstance(value, Opaque):
            self._skip(value.name, value.shape, value.reason, node)
            return
        rank = len(value.shape)
        if not -rank <= axis < rank:
            raise FormatError(f"{self._path}: {_title(node)} has a weight {value.name!r} of {rank} dimensions.")
        at = value.perm[axis]
        if value.shape[at] == 1 or math.prod(value.shape) == value.shape[at]:
            self._skip(value.name, value.shape, "it is a vector, not a matrix", node, linear=False)
            return
        self.multiply_adds += math.prod(value.shape)
        if (key := (value.name, at, id(value.data))) in self._seen:
            place = self._seen[key]
            self.weights[place] = replace(self.weights[place], uses=self.weights[place].uses + 1)
            return
        self._seen[key] = len(self.weights)
        linear = is_linear(value.name) and not self._is_head(node)
        weight = Weight(name=value.name, shape=value.shape, dtype=value.dtype, axis=at, data=value.data, linear=linear)
        self.weights.append(weight)

    def _skip(self, name: str, shape: tuple[int, ...], reason: str, node: NodeProto, *, linear: bool = True) -> None:
        if linear:
            self.multiply_adds += math.prod(shape)
        linear = linear and is_linear(name) and not self._is_head(node)
        self.unchecked.append(Unchecked(name=name, shape=shape, reason=reason, linear=linear))

    def _is_head(self, node: NodeProto) -> bool:
        return any(name in self._heads for name in node.output)


def _reduction_axes(node: NodeProto) -> list[tuple[int, int]]:
    """(input number, reduction axis) of a product, for each input that may be its weight."""
    if node.op_type == "MatMul":
        return [(0, -1), (1, -2)]
    if node.op_type == "Gemm":
        return [(0, 0 if integer(node, "transA", 0) else 1), (1, 1 if integer(node, "transB", 0) else 0)]
    if node.op_type == "Conv":
        return [(1, 1)]
    return []


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _title(node: NodeProto) -> str:
    return f"{node.op_type} {node.name!r}" if node.name else node.op_type


def _head_products(graph: GraphProto) -> set[str]:
    """Results of the products that become the output `logits`, directly or through elementwise steps."""
    maker = {name: node for node in graph.node for name in node.output if name}
    heads: set[str] = set()
    waiting = [o.name for o in graph.output if o.name == "logits"]
    while waiting:
        name = waiting.pop()
        if name in heads or name not in maker:
            continue
        heads.add(name)
        if maker[name].op_type in _AFTER_HEAD:
            waiting.extend(maker[name].input)
    return heads
