"""How values that hold stored tensors pass through operators that are no matrix products.

Elementwise operators keep a value what it is. Where activations come in, a table that is added makes `ADDED` activations; one
that is multiplied must not lengthen them: (B, K, 1) times (K, N), summed over K, is a matrix product in disguise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from onnx import NodeProto

from maskpro_deploy.validation.accounts import Rule
from maskpro_deploy.validation.graphs import operators as ops
from maskpro_deploy.validation.graphs.ledger import Ledger
from maskpro_deploy.validation.graphs.picked import move_picked, pick, without_axes
from maskpro_deploy.validation.graphs.products import attribute
from maskpro_deploy.validation.graphs.shapes import Dims, Shapes
from maskpro_deploy.validation.graphs.values import (
    Constant,
    Input,
    Kind,
    Opaque,
    Runtime,
    Value,
    is_table,
    origins_of,
    reason_of,
    runtime_of,
)

_ACTIVATIONS = (Kind.LOOKED_UP, Kind.ADDED)


def title(node: NodeProto) -> str:
    """Operator and name of a node."""
    operator = f"{node.domain}.{node.op_type}" if node.domain not in ops.STANDARD else node.op_type
    return f"{operator} {node.name!r}" if node.name else operator


class Flow:
    """Follows values through nodes, and notes in the ledger what becomes of tables.

    Args:
        ledger: of the graph.
        shapes: of its values.
    """

    def __init__(self, ledger: Ledger, shapes: Shapes) -> None:
        self._ledger, self._shapes = ledger, shapes

    def results(self, node: NodeProto, inputs: Sequence[Input]) -> list[Value]:
        """What a node that is not a product makes, one value an output."""
        picked = move_picked(node, inputs)
        if picked is not None:
            self._ledger.exempt(origins_of(*inputs[1:]), Rule.INDEX)
            return [picked] * len(node.output)
        value = self._result(node, without_axes(inputs))
        if node.op_type == "DynamicQuantizeLinear":  # scale and zero point are single numbers
            return [value, Runtime.ACTIVE, Runtime.ACTIVE][: len(node.output)]
        return [value] * len(node.output)

    def _result(self, node: NodeProto, inputs: Sequence[Input]) -> Value:
        """What a node that is not a product makes; a table that it is not known to treat is left for the caller to refuse."""
        parameters = ops.PARAMETERS.get((node.domain if node.domain not in ops.STANDARD else "", node.op_type))
        if parameters is not None:
            return self._with_parameters(node, inputs, parameters)
        if node.domain not in (*ops.STANDARD, ops.MICROSOFT):
            return Runtime.ACTIVE
        kind = node.op_type
        if kind in ops.SHAPES:
            self._ledger.exempt(origins_of(*inputs), Rule.INDEX)
            return Runtime.INPUT
        if kind in ops.LOGIC:
            self._ledger.exempt(origins_of(*inputs), Rule.ELEMENTWISE)
            return runtime_of(*inputs)
        if kind in ("Gather", "GatherBlockQuantized"):
            return self._gather(node, inputs)
        if kind in ops.UNARY:
            return self._unary(node, inputs)
        if kind in ops.MOVING:
            return self._moved(node, inputs)
        if kind in ops.NORMALISING:
            return self._normalised(node, inputs, ops.NORMALISING[kind])
        if kind in ops.REDUCING:
            return self._reduced(node, inputs)
        if kind in ops.ADDING or kind in ops.MULTIPLYING:
            return self._combined(node, inputs)
        if all(v is None or isinstance(v, Constant) or (isinstance(v, Opaque) and v.kind is Kind.CONSTANT) for v in inputs):
            return Opaque(origins_of(*inputs), Kind.CONSTANT, f"it passes through {kind}, which is not followed")
        return Runtime.ACTIVE

    def _is_weighty(self, value: Input) -> TypeGuard[Constant | Opaque]:
        """Whether a value holds a table; a vector is exempt wherever it goes."""
        if isinstance(value, Constant):
            return is_table(value.shape) and self._ledger.holds_table(value.origins)
        return isinstance(value, Opaque) and self._ledger.holds_table(value.origins)

    def _with_parameters(self, node: NodeProto, inputs: Sequence[Input], parameters: dict[int, Rule]) -> Value:
        for number, rule in parameters.items():
            if number < len(inputs):
                self._ledger.exempt(origins_of(inputs[number]), rule)
        rotary = node.op_type == "RotaryEmbedding"  # keeps activations what they are
        data = [v for i, v in enumerate(inputs) if i not in parameters and self._is_weighty(v)]
        if rotary and data and isinstance(data[0], Opaque) and data[0].kind in _ACTIVATIONS:
            return data[0]
        return Runtime.ACTIVE

    def _gather(self, node: NodeProto, inputs: Sequence[Input]) -> Value:
        table, index = inputs[0], inputs[1] if len(inputs) > 1 else None
        self._ledger.exempt(origins_of(*inputs[1:2]), Rule.INDEX)
        self._ledger.exempt(origins_of(*inputs[2:]), Rule.QUANTISATION)
        if not isinstance(table, (Constant, Opaque)):
            return runtime_of(table, index)
        if isinstance(table, Opaque) and table.kind is not Kind.CONSTANT:
            return table
        if not isinstance(index, Runtime):
            return self._moved(node, inputs)
        flat = any(len(dims) == 2 for infer in (False, True) if (dims := self._dims(node, inputs, 0, infer)) is not None)
        if index is Runtime.INPUT and flat and attribute(node, "axis", 0) in (0, -2):
            self._ledger.exempt(table.origins, Rule.TOKEN_TABLE)
            return Opaque(table.origins, Kind.LOOKED_UP, "its rows are looked up")
        index_dims = self._shapes.dims(node.input[1])
        if isinstance(table, Constant) and len(table.dims) > 2 and attribute(node, "axis", 0) == 0 and node.op_type == "Gather":
            return pick(table, None if index_dims is None else len(index_dims))
        return Opaque(table.origins, Kind.SELECTED, "a part of it is selected at run time")

    def _unary(self, node: NodeProto, inputs: Sequence[Input]) -> Value:
        value, others = inputs[0] if inputs else None, inputs[1:]
        if node.op_type in ("DequantizeLinear", "QuantizeLinear"):
            self._ledger.exempt(origins_of(*others), Rule.QUANTISATION)
        else:
            self._ledger.exempt(origins_of(*others), Rule.ELEMENTWISE)
        if isinstance(value, (Constant, Opaque)) and any(isinstance(v, Runtime) for v in others):
            return Opaque(
                value.origins, Kind.SELECTED, f"{node.op_type} changes it by a value that is computed when the graph runs"
            )
        if isinstance(value, Opaque):
            return value
        if isinstance(value, Constant):
            return self._not_followed(node, inputs)
        return runtime_of(value)

    def _not_followed(self, node: NodeProto, inputs: Sequence[Input]) -> Opaque:
        reason = reason_of(*inputs) or f"it passes through {node.op_type}, which is not followed"
        return Opaque(origins_of(*inputs), Kind.CONSTANT, reason)

    def _moved(self, node: NodeProto, inputs: Sequence[Input]) -> Value:
        value, others = inputs[0] if inputs else None, inputs[1:]
        self._ledger.exempt(origins_of(*others), Rule.INDEX)
        if isinstance(value, Opaque) and value.kind is not Kind.CONSTANT:
            return value
        if isinstance(value, (Constant, Opaque)):
            if any(isinstance(v, Runtime) or (isinstance(v, Opaque) and v.kind is not Kind.CONSTANT) for v in others):
                return Opaque(value.origins, Kind.SELECTED, f"{node.op_type} takes parts of it that are chosen at run time")
            return self._not_followed(node, inputs[:1])
        return runtime_of(*inputs)

    def _normalised(self, node: NodeProto, inputs: Sequence[Input], count: int) -> Value:
        self._ledger.exempt(origins_of(*inputs[count:]), Rule.ELEMENTWISE)
        value = self._combined(node, inputs[:count]) if count > 1 else inputs[0]
        if isinstance(value, Opaque) and value.kind is Kind.EXPANDED:
            self._refuse_sum(node, value)
            return Runtime.ACTIVE
        if isinstance(value, Opaque) and value.kind is Kind.ADDED:
            self._ledger.exempt(value.origins, Rule.ELEMENTWISE)
            return Runtime.ACTIVE
        if isinstance(value, Constant):
            return self._not_followed(node, [value])
        return value if value is not None else Runtime.ACTIVE

    def _reduced(self, node: NodeProto, inputs: Sequence[Input]) -> Value:
        value = inputs[0] if inputs else None
        self._ledger.exempt(origins_of(*inputs[1:]), Rule.INDEX)
        if isinstance(value, Opaque):
            if value.kind is Kind.EXPANDED:
                self._refuse_sum(node, value)
                return Runtime.ACTIVE
            return value
        return self._not_followed(node, [value]) if isinstance(value, Constant) else runtime_of(value)

    def _refuse_sum(self, node: NodeProto, value: Opaque) -> None:
        self._ledger.refuse(value.origins, f"{value.reason}, and {node.op_type} sums over them", title(node))

    def _combined(self, node: NodeProto, inputs: Sequence[Input]) -> Value:
        """The result of adding, joining or multiplying element by element."""
        numbers = [i for i in ops.data_inputs(node.op_type, len(inputs)) if i < len(inputs)]
        self._ledger.exempt(origins_of(*(v for i, v in enumerate(inputs) if i not in numbers)), Rule.INDEX)
        chosen = any(isinstance(v, Runtime) for i, v in enumerate(inputs) if i not in numbers)
        data = [(i, inputs[i]) for i in numbers]
        weighty = [(i, v) for i, v in data if self._is_weighty(v)]
        runtime = [v for _, v in data if isinstance(v, Runtime)]
        if not weighty:
            return runtime_of(*(v for _, v in data)) if runtime or chosen else self._not_followed(node, inputs)
        active = bool(runtime) or any(isinstance(v, Opaque) and v.kind in _ACTIVATIONS for _, v in weighty)
        if not active:
            return self._joined(node, [v for _, v in weighty], chosen)
        if node.op_type in ops.MULTIPLYING:
            return self._multiplied(node, inputs, weighty, bool(runtime))
        origins = origins_of(*(v for _, v in weighty))
        self._ledger.exempt(origins, Rule.ELEMENTWISE)
        expanded = [v for _, v in weighty if isinstance(v, Opaque) and v.kind is Kind.EXPANDED]
        if expanded:
            return Opaque(origins, Kind.EXPANDED, expanded[0].reason)
        only_rows = not runtime and all(isinstance(v, Opaque) and v.kind is Kind.LOOKED_UP for _, v in weighty)
        return Opaque(origins, Kind.LOOKED_UP if only_rows else Kind.ADDED, "it is added to activations")

    def _joined(self, node: NodeProto, values: Sequence[Constant | Opaque], chosen: bool) -> Opaque:
        """Tables alone: still a table."""
        kinds = [v.kind if isinstance(v, Opaque) else Kind.CONSTANT for v in values]
        kind = max(*kinds, Kind.SELECTED) if chosen else max(kinds)
        reason = (
            f"{node.op_type} chooses between versions of it"
            if chosen
            else f"it passes through {node.op_type}, which is not followed"
        )
        return Opaque(origins_of(*values), kind, reason_of(*values) or reason)

    def _multiplied(
        self, node: NodeProto, inputs: Sequence[Input], weighty: Sequence[tuple[int, Constant | Opaque]], runtime: bool
    ) -> Value:
        kept: list[Opaque] = []
        for number, value in weighty:
            if isinstance(value, Opaque) and value.kind in (*_ACTIVATIONS, Kind.EXPANDED):
                kept.append(value)
            elif self._lengthens(node, inputs, number):
                reason = "it is multiplied with activations element by element, along dimensions that they may lack"
                kept.append(Opaque(value.origins, Kind.EXPANDED, reason))
            else:
                self._ledger.exempt(value.origins, Rule.ELEMENTWISE)
        if not kept:
            return Runtime.ACTIVE
        worst = max(kept, key=lambda v: v.kind)
        kind = Kind.ADDED if worst.kind is Kind.LOOKED_UP and runtime else worst.kind
        self._ledger.exempt(origins_of(*kept), Rule.ELEMENTWISE)
        return Opaque(origins_of(*kept), kind, worst.reason)

    def _lengthens(self, node: NodeProto, inputs: Sequence[Input], number: int) -> bool:
        """Whether a table may have a fixed dimension above 1 that the other operand lacks, or has as 1."""
        for infer in (False, True):
            table = self._dims(node, inputs, number, infer)
            others = [self._dims(node, inputs, i, infer) for i in range(len(inputs)) if i != number]
            if table is not None and all(o is not None and _covers(o, table) for o in others):
                return False
        return True

    def _dims(self, node: NodeProto, inputs: Sequence[Input], number: int, infer: bool) -> Dims | None:
        value = inputs[number]
        return value.dims if isinstance(value, Constant) else self._shapes.dims(node.input[number], infer=infer)


def _covers(dims: Dims, table: Dims) -> bool:
    """Whether every fixed dimension of the table above 1 is a dimension of the other operand."""
    padded = (1,) * (len(table) - len(dims)) + dims[max(0, len(dims) - len(table)) :]
    return all(t is None or t == 1 or t == d for t, d in zip(table, padded, strict=True))
