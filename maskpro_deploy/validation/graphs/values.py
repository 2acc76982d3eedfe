"""What a value of a graph is made of, as far as weights are concerned, and its shape, as far as that is known before it runs.

A value is a stored tensor that is still known element by element (`Constant`), something made of stored tensors that is not
(`Opaque`), or something that the graph's inputs decide (`Runtime`). A table with a dimension that the activations lack, or have
as 1, lengthens them: a sum over the result is a matrix product.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, checker, helper, shape_inference

from maskpro_deploy.validation.arrays import FlatArray

# a constant of one dimension that is longer than any norm or bias is treated as a matrix that was flattened
LARGE = 1 << 14


class Kind(enum.IntEnum):
    """How a value was made of stored tensors; what it may be multiplied with follows from it."""

    CONSTANT = 0  # of constants alone, by a step that is not followed
    LOOKED_UP = 1  # rows of a table of two dimensions, at indices from the graph's inputs: activations
    ADDED = 2  # activations, to which a table was added
    SCALED = 3  # activations, multiplied element by element by a table that has no dimension which they lack
    SELECTED = 4  # a part or a version of a stored tensor, chosen when the graph runs
    EXPANDED = 5  # activations, multiplied by a table along dimensions that they lacked: half of a matrix product


# tables went into them, and yet they are activations: a proven weight may multiply with them
ACTIVATIONS = (Kind.LOOKED_UP, Kind.ADDED, Kind.SCALED)


class Runtime(enum.Enum):
    """A value without stored tensors in it."""

    INPUT = "input"  # depends on the graph's inputs through no product
    ACTIVE = "active"


@dataclass(frozen=True, slots=True)
class Constant:
    """A value that is a stored tensor with permuted axes: axis `i` of the value is axis `perm[i]` of the tensor."""

    name: str  # of the tensor; for a part of one, with the part
    shape: tuple[int, ...]  # of the data
    dtype: str  # of the stored tensor
    data: FlatArray  # the values, in the order of `shape`
    perm: tuple[int, ...]
    origins: frozenset[str]  # keys of the stored tensors it is made of

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(self.shape[i] for i in self.perm)


@dataclass(frozen=True, slots=True)
class Opaque:
    """A value made of the stored tensors `origins`, and why its elements are not known."""

    origins: frozenset[str]
    kind: Kind
    reason: str


@dataclass(frozen=True, slots=True)
class Picked(Opaque):
    """Whole entries of a constant's first axis, chosen at run time; the other axes are those of the constant in any case."""

    base: Constant
    axes: tuple[int | None, ...]  # for each axis of the value the one of the constant; None for those that the index made
    whole: bool = True  # whether these are all axes; else the index made some more in front of them

    @property
    def plain(self) -> Opaque:
        return Opaque(self.origins, self.kind, self.reason)


Value = Constant | Opaque | Runtime
Input = Value | None  # None: an optional input that is not given
Inputs = Sequence[Input]


def is_table(shape: tuple[int, ...]) -> bool:
    """Whether a constant of this shape could be a weight: two dimensions above 1, or more elements than a vector has."""
    return sum(d > 1 for d in shape) > 1 or math.prod(shape) > LARGE


def is_constant(value: Input) -> bool:
    """Whether a value depends on no input of the graph."""
    return isinstance(value, Constant) or (isinstance(value, Opaque) and value.kind is Kind.CONSTANT)


def origins_of(*values: Input) -> frozenset[str]:
    """Keys of all stored tensors in some values."""
    return frozenset(key for v in values if isinstance(v, (Constant, Opaque)) for key in v.origins)


def reason_of(*values: Input) -> str:
    """The first reason that one of the values has."""
    return next((v.reason for v in values if isinstance(v, Opaque)), "")


def runtime_of(*values: Input) -> Runtime:
    """The runtime value that depends on all of these."""
    quiet = all(v is None or v is Runtime.INPUT or isinstance(v, Constant) for v in values)
    return Runtime.INPUT if quiet else Runtime.ACTIVE


Dims = tuple[int | None, ...]
_SMALL = 1 << 10  # elements of a constant whose values may decide shapes


class Shapes:
    """Shapes by value name: those that follow from the graph, else those that the file gives. Weights are not copied."""

    def __init__(self, model: ModelProto) -> None:
        self.known = True  # whether names mean those of the main graph now; functions and branches have their own
        self._model = model
        self._dims: dict[str, Dims] | None = None

    def dims(self, name: str) -> Dims | None:
        """The dimensions of a value, None where one is not fixed; None if not even their number is known."""
        if not self.known:
            return None
        if self._dims is None:
            self._dims = _read_declared(self._model.graph) | self._infer()
        return self._dims.get(name)

    def scaled_kind(self, node: NodeProto, inputs: Inputs, number: int, value: Constant | Opaque) -> Kind:
        """What one operand of an elementwise product makes of the result."""
        kind = value.kind if isinstance(value, Opaque) else Kind.CONSTANT
        others = [v for i, v in enumerate(inputs) if i != number]
        if kind in (Kind.ADDED, Kind.SCALED, Kind.EXPANDED):
            return kind
        if kind is Kind.LOOKED_UP and not any(
            isinstance(v, Runtime) or (isinstance(v, Opaque) and v.kind in (Kind.ADDED, Kind.SCALED)) for v in others
        ):
            return kind  # rows of a table times constants, or times what was made of rows
        if kind is Kind.LOOKED_UP and all(v is Runtime.INPUT for v in others):
            return kind if all(self._is_single(node, i) for i in range(len(inputs)) if i != number) else Kind.SCALED
        if self._lengthens(node, inputs, number):
            return Kind.EXPANDED
        if kind is not Kind.LOOKED_UP and all(v is Runtime.INPUT for v in others):
            return Kind.SELECTED
        return Kind.SCALED

    def _is_single(self, node: NodeProto, number: int) -> bool:
        dims = self.dims(node.input[number])
        return dims is not None and all(d == 1 for d in dims)

    def _lengthens(self, node: NodeProto, inputs: Inputs, number: int) -> bool:
        """Whether a table may have a fixed dimension above 1 that the other operand lacks, or has as 1."""
        table = self.dims_of(node, inputs, number)
        others = [self.dims_of(node, inputs, i) for i in range(len(inputs)) if i != number]
        return table is None or not all(o is not None and _covers(o, table) for o in others)

    def surely_lengthens(self, node: NodeProto, inputs: Inputs, number: int) -> bool:
        """Whether a table has a fixed dimension above 1 where the other operands are known to have 1."""
        table = self.dims_of(node, inputs, number)
        others = [self.dims_of(node, inputs, i) for i in range(len(inputs)) if i != number]
        return table is not None and bool(others) and all(o is not None and _lacks(o, table) for o in others)

    def dims_of(self, node: NodeProto, inputs: Inputs, number: int) -> Dims | None:
        value = inputs[number]
        return value.dims if isinstance(value, Constant) else self.dims(node.input[number])

    def _infer(self) -> dict[str, Dims]:
        try:
            return _read_declared(shape_inference.infer_shapes(_drop_weights(self._model), data_prop=True).graph)
        except (shape_inference.InferenceError, checker.ValidationError, RuntimeError, ValueError, TypeError):
            return {}


def _read_declared(graph: GraphProto) -> dict[str, Dims]:
    shapes = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            shapes[value.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    return shapes


def _drop_weights(model: ModelProto) -> ModelProto:
    """The model with its large constants as inputs."""
    light = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = light.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    named = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _SMALL and tensor.data_location != TensorProto.EXTERNAL:
            graph.initializer.append(tensor)
        elif tensor.name not in named:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return light


def _lacks(dims: Dims, table: Dims) -> bool:
    """Whether the other operand has 1, or nothing, where the table has a fixed dimension above 1, and is more than a number."""
    padded = (1,) * (len(table) - len(dims)) + dims[max(0, len(dims) - len(table)) :]
    grown = any(t is not None and t > 1 and d == 1 for t, d in zip(table, padded, strict=True))
    return grown and any(d != 1 for d in padded)


def is_active(value: Constant | Opaque) -> bool:
    """Whether a value is activations that tables went into."""
    return isinstance(value, Opaque) and value.kind in ACTIVATIONS


def may_meet(value: Input, others: Inputs) -> bool:
    """Whether activations with tables in them may be multiplied with other activations: both were scaled by the same table.

    Queries and keys are rotated by one table of sines; nothing else that is multiplied so is known to be harmless.
    """
    if not isinstance(value, Opaque) or value.kind is not Kind.SCALED:
        return False
    return any(isinstance(v, Opaque) and v.kind is Kind.SCALED and v.origins & value.origins for v in others)


def _covers(dims: Dims, table: Dims) -> bool:
    """Whether every fixed dimension of the table above 1 is a dimension of the other operand."""
    padded = (1,) * (len(table) - len(dims)) + dims[max(0, len(dims) - len(table)) :]
    return all(t is None or t == 1 or t == d for t, d in zip(table, padded, strict=True))
