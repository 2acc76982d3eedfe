"""What becomes of activations that a table is multiplied with, or added to, element by element.

It depends on shapes: a table with a dimension that the activations lack, or have as 1, lengthens them, and a sum over the result
is a matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto

from maskpro_deploy.validation.graphs.shapes import Dims, Shapes
from maskpro_deploy.validation.graphs.values import ACTIVATIONS, Constant, Input, Kind, Opaque, Runtime


class Scaling:
    """Compares the shapes of tables and activations.

    Args:
        shapes: of the graph's values.
    """

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes

    def scaled_kind(self, node: NodeProto, inputs: Sequence[Input], number: int, value: Constant | Opaque) -> Kind:
        """What one operand of an elementwise product makes of the result."""
        kind = value.kind if isinstance(value, Opaque) else Kind.CONSTANT
        others = [v for i, v in enumerate(inputs) if i != number]
        if kind in (Kind.ADDED, Kind.SCALED, Kind.EXPANDED):
            return kind
        if kind is Kind.LOOKED_UP and not any(isinstance(v, Runtime) or _is_mixed(v) for v in others):
            return kind  # rows of a table times constants, or times what was made of rows
        if kind is Kind.LOOKED_UP and all(v is Runtime.INPUT for v in others):
            return kind if all(self._is_single(node, i) for i in range(len(inputs)) if i != number) else Kind.SCALED
        if self._lengthens(node, inputs, number):
            return Kind.EXPANDED
        if kind is not Kind.LOOKED_UP and all(v is Runtime.INPUT for v in others):
            return Kind.SELECTED
        return Kind.SCALED

    def _is_single(self, node: NodeProto, number: int) -> bool:
        """Whether an operand is a single number."""
        dims = self._shapes.dims(node.input[number])
        return dims is not None and all(d == 1 for d in dims)

    def _lengthens(self, node: NodeProto, inputs: Sequence[Input], number: int) -> bool:
        """Whether a table may have a fixed dimension above 1 that the other operand lacks, or has as 1."""
        table = self.dims(node, inputs, number)
        others = [self.dims(node, inputs, i) for i in range(len(inputs)) if i != number]
        return table is None or not all(o is not None and _covers(o, table) for o in others)

    def surely_lengthens(self, node: NodeProto, inputs: Sequence[Input], number: int) -> bool:
        """Whether a table has a fixed dimension above 1 where the other operands are known to have 1."""
        table = self.dims(node, inputs, number)
        others = [self.dims(node, inputs, i) for i in range(len(inputs)) if i != number]
        return table is not None and bool(others) and all(o is not None and _lacks(o, table) for o in others)

    def dims(self, node: NodeProto, inputs: Sequence[Input], number: int) -> Dims | None:
        """The dimensions of an input."""
        value = inputs[number]
        return value.dims if isinstance(value, Constant) else self._shapes.dims(node.input[number])


def _lacks(dims: Dims, table: Dims) -> bool:
    """Whether the other operand has 1, or nothing, where the table has a fixed dimension above 1, and is more than a number."""
    padded = (1,) * (len(table) - len(dims)) + dims[max(0, len(dims) - len(table)) :]
    grown = any(t is not None and t > 1 and d == 1 for t, d in zip(table, padded, strict=True))
    return grown and any(d != 1 for d in padded)


def is_active(value: Constant | Opaque) -> bool:
    """Whether a value is activations that tables went into."""
    return isinstance(value, Opaque) and value.kind in ACTIVATIONS


def _is_mixed(value: Input) -> bool:
    return isinstance(value, Opaque) and value.kind in (Kind.ADDED, Kind.SCALED)


def may_meet(value: Input, others: Sequence[Input]) -> bool:
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
