"""From every MatMul, Gemm and Conv of an ONNX graph back to the constant it multiplies with, and to its reduction axis.

One pass over the nodes in their order carries, for each value that does not depend on the graph's inputs, which tensor it is and
how its axes were permuted. Transpose, Cast, Identity and DequantizeLinear are followed; through anything else a constant becomes
`Opaque`, and a weight that arrives so is reported as not checked. Nothing recurses along the graph, so cycles cannot hang it: a
value used before it was made is an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from maskpro_deploy.errors import FormatError
from maskpro_deploy.validation.arrays import Array, FlatArray, MappedArray
from maskpro_deploy.validation.onnx_tensors import cast_target, dequantised, dtype_name, flat_array, shape_of
from maskpro_deploy.validation.source import Unchecked, Weight, is_linear

# operators that multiply by a constant in a way that is not followed yet
_NOT_FOLLOWED = frozenset(
    (
        *("BiasGemm", "ConvInteger", "ConvTranspose", "DynamicQuantizeMatMul", "Einsum", "FusedConv", "FusedGemm", "FusedMatMul"),
        *("GRU", "LSTM", "RNN", "MatMulBnb4", "MatMulFpQ4", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits"),
        *("MoE", "QMoE", "QAttention", "QLinearConv", "QLinearMatMul", "TransposeMatMul"),
    )
)
# between the last product and the output `logits`
_AFTER_HEAD = frozenset({"Add", "Cast", "Div", "Identity", "Mul", "Tanh"})
_EAGER_LIMIT = 1 << 26  # elements of a scale that are read at once


@dataclass(frozen=True, slots=True)
class Constant:
    """A value that is a stored tensor with permuted axes: axis `i` of the value is axis `perm[i]` of the tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: FlatArray
    perm: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Opaque:
    """A constant value that is not followed, from the tensor `name`, for `reason`."""

    name: str
    shape: tuple[int, ...]
    reason: str


Value = Constant | Opaque | None  # None: depends on the graph's inputs


class Tracer:
    """One pass over a model; the result is in `weights`, `unchecked` and `files` (of external data)."""

    def __init__(self, model: ModelProto, path: Path) -> None:
        self.weights: list[Weight] = []
        self.unchecked: list[Unchecked] = []
        self.num_parameters = 0
        self.files: set[str] = set()
        self._path = path
        self._functions = {(f.domain, f.name) for f in model.functions}
        self._embeddings: set[str] = set()
        self._heads = _head_products(model.graph)
        self._seen: set[tuple[str, int, int]] = set()
        self._graph(model.graph, {})
        for function in model.functions:
            self._nodes(function.node, dict.fromkeys(function.input))
        # a tied embedding serves as the output head: it is looked up, and multiplied with
        self.weights = [replace(w, linear=w.linear and w.name not in self._embeddings) for w in self.weights]

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
        return Constant(name, shape, dtype, flat_array(tensor, self._path), tuple(range(len(shape))))

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
            if attribute.name == "value":
                return self._stored(attribute.t, node.output[0])
        return Opaque(node.output[0], (), "it is a constant without a tensor")

    def _followed(self, node: NodeProto, inputs: list[Value]) -> Value:
        source = next(v for v in inputs if v is not None)
        if isinstance(source, Constant) and source is inputs[0] and not node.domain:
            step = {"Transpose": _transpose, "Identity": _identity, "Cast": _cast, "DequantizeLinear": _dequantize}.get(
                node.op_type
            )
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
            for value in inputs:
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
        if (key := (value.name, at, id(value.data))) in self._seen:
            return
        self._seen.add(key)
        linear = is_linear(value.name) and not self._is_head(node)
        weight = Weight(name=value.name, shape=value.shape, dtype=value.dtype, axis=at, data=value.data, linear=linear)
        self.weights.append(weight)

    def _skip(self, name: str, shape: tuple[int, ...], reason: str, node: NodeProto, *, linear: bool = True) -> None:
        linear = linear and is_linear(name) and not self._is_head(node)
        self.unchecked.append(Unchecked(name=name, shape=shape, reason=reason, linear=linear))

    def _is_head(self, node: NodeProto) -> bool:
        return any(name in self._heads for name in node.output)


def _reduction_axes(node: NodeProto) -> list[tuple[int, int]]:
    """(input number, reduction axis) of a product, for each input that may be its weight."""
    if node.op_type == "MatMul":
        return [(0, -1), (1, -2)]
    if node.op_type == "Gemm":
        return [(0, 0 if _integer(node, "transA", 0) else 1), (1, 1 if _integer(node, "transB", 0) else 0)]
    if node.op_type == "Conv":
        return [(1, 1)]
    return []


def _identity(node: NodeProto, value: Constant, inputs: list[Value]) -> Constant | None:
    return value


def _transpose(node: NodeProto, value: Constant, inputs: list[Value]) -> Constant | None:
    order = next((list(a.ints) for a in node.attribute if a.name == "perm"), list(reversed(range(len(value.perm)))))
    if sorted(order) != list(range(len(value.perm))):
        return None
    return replace(value, perm=tuple(value.perm[i] for i in order))


def _cast(node: NodeProto, value: Constant, inputs: list[Value]) -> Constant | None:
    target = cast_target(_integer(node, "to", 0))
    if target is None:
        return None
    if np.can_cast(value.data.read(0, min(1, value.data.size)).dtype, target, "safe"):
        return value

    def narrow(piece: Array, start: int) -> Array:
        with np.errstate(all="ignore"):
            return piece.astype(target)

    return replace(value, data=MappedArray(base=value.data, function=narrow))


def _dequantize(node: NodeProto, value: Constant, inputs: list[Value]) -> Constant | None:
    small = [_whole(v) for v in inputs[1:]]
    if not small or small[0] is None or (len(small) > 1 and node.input[2] and small[1] is None):
        return None
    scale, zero_point = small[0], small[1] if len(small) > 1 else None
    rank, axis = len(value.perm), _integer(node, "axis", 1)
    axis += rank if axis < 0 else 0
    block = _integer(node, "block_size", 0)
    if block:  # the scale's axes are those of the value: bring them into the stored order
        if scale.ndim != rank:
            return None
        stored_order = np.argsort(value.perm)
        scale = scale.transpose(stored_order)
        zero_point = zero_point.transpose(stored_order) if zero_point is not None and zero_point.ndim == rank else zero_point
    at = value.perm[axis] if 0 <= axis < rank else -1
    data = dequantised(value.data, value.shape, at, scale, zero_point, block)
    return replace(value, data=data) if data is not None else None


def _whole(value: Value) -> Array | None:
    """The values of a small constant."""
    if not isinstance(value, Constant) or value.data.size > _EAGER_LIMIT or value.perm != tuple(range(len(value.perm))):
        return None
    return value.data.read(0, value.data.size).reshape(value.shape)


def _integer(node: NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


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
