"""How values that hold stored tensors pass through operators that are not matrix products.

Elementwise operators keep a value what it is. Where activations come in, a table that is added makes `ADDED` activations; one
that is multiplied must not lengthen them: (B, K, 1) times (K, N), summed over K, is a matrix product in disguise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from onnx import NodeProto

from maskpro_deploy.onnx_graphs.constants import QUANTISING
from maskpro_deploy.onnx_graphs.nodes import MICROSOFT, STANDARD, get_integer, title
from maskpro_deploy.validation.graphs import operators as ops
from maskpro_deploy.validation.graphs.ledger import Ledger
from maskpro_deploy.validation.graphs.moves.pieces import move_picked, pick, without_axes
from maskpro_deploy.validation.graphs.values import (
    ACTIVATIONS,
    Constant,
    Input,
    Inputs,
    Kind,
    Opaque,
    Runtime,
    Shapes,
    Value,
    is_active,
    is_constant,
    is_table,
    may_meet,
    origins_of,
    reason_of,
    runtime_of,
)
from maskpro_deploy.validation.source import Rule

_JOINING = frozenset(
    {"Concat", "QLinearConcat", "ScatterElements", "ScatterND", "SequenceConstruct", "SequenceInsert", "TensorScatter"}
)


class Flow:
    """Follows values through nodes, and notes in the ledger what becomes of tables."""

    def __init__(self, ledger: Ledger, shapes: Shapes) -> None:
        self._ledger, self._shapes = ledger, shapes

    def results(self, node: NodeProto, inputs: Inputs) -> list[Value]:
        """What a node that is not a product makes, one value an output."""
        picked = move_picked(node, inputs)
        if picked is not None:
            self._ledger.exempt(origins_of(*inputs[1:]), Rule.INDEX)
            return [picked] * len(node.output)
        value = self._follow(node, without_axes(inputs))
        if node.op_type == "DynamicQuantizeLinear":  # scale and zero point are single numbers
            return [value, Runtime.ACTIVE, Runtime.ACTIVE][: len(node.output)]
        return [value] * len(node.output)

    def _follow(self, node: NodeProto, inputs: Inputs) -> Value:
        """What a node that is not a product makes; a table that it is not known to treat is left for the caller to refuse."""
        parameters = ops.PARAMETERS.get((node.domain if node.domain not in STANDARD else "", node.op_type))
        if parameters is not None:
            return self._apply_parameters(node, inputs, parameters)
        kind = node.op_type
        if node.domain not in (*STANDARD, MICROSOFT):
            return Runtime.ACTIVE
        if kind in ops.SHAPES:
            self._ledger.exempt(origins_of(*inputs), Rule.INDEX)
            return Runtime.INPUT
        if all(v is None or is_constant(v) for v in inputs):
            return self._lose(node, inputs)
        if kind in ops.LOGIC:
            return self._compare(inputs)
        if kind in ("Gather", "GatherBlockQuantized"):
            return self._gather(node, inputs)
        if kind in ops.UNARY:
            return self._unary(node, inputs)
        if kind in ops.MOVING:
            return self._move(node, inputs)
        if kind in ops.NORMALISING:
            return self._normalise(node, inputs, ops.NORMALISING[kind])
        if kind in ops.REDUCING:
            return self._reduce(node, inputs)
        if kind in ops.ADDING or kind in ops.MULTIPLYING:
            return self._combine(node, inputs)
        return Runtime.ACTIVE

    def _is_weighty(self, value: Input) -> TypeGuard[Constant | Opaque]:
        """Whether a value holds a table; a vector is exempt wherever it goes."""
        if isinstance(value, Constant):
            return is_table(value.shape) and self._ledger.holds_table(value.origins)
        return isinstance(value, Opaque) and self._ledger.holds_table(value.origins)

    def _apply_parameters(self, node: NodeProto, inputs: Inputs, parameters: dict[int, Rule]) -> Value:
        """The result of an operator whose inputs have parts of their own; activations may go into the others."""
        for number, rule in parameters.items():
            if number < len(inputs):
                self._ledger.exempt(origins_of(inputs[number]), rule)
        data = [v for i, v in enumerate(inputs) if i not in parameters and self._is_weighty(v)]
        if node.op_type == "RotaryEmbedding":  # elementwise
            if any(not isinstance(v, Opaque) or v.kind not in ACTIVATIONS for v in data):
                return Runtime.ACTIVE
            origins = origins_of(*data, *(inputs[i] for i in parameters if i < len(inputs) and self._is_weighty(inputs[i])))
            return Opaque(origins, Kind.SCALED, "activations are rotated by it") if origins else Runtime.ACTIVE
        for value in data:
            others = [v for v in data if v is not value]
            if not may_meet(value, others):
                self._ledger.refuse(origins_of(value), f"{title(node)} multiplies activations with it", title(node))
            else:
                self._ledger.exempt(origins_of(value), Rule.ELEMENTWISE)
        return Runtime.ACTIVE

    def _compare(self, inputs: Inputs) -> Value:
        """Truth values: a mask, as long as nothing multiplies with it."""
        tables = [v for v in inputs if self._is_weighty(v)]
        if not tables:
            return runtime_of(*inputs)
        self._ledger.exempt(origins_of(*tables), Rule.ELEMENTWISE)
        return Opaque(origins_of(*tables), Kind.ADDED, "it is compared with values that are computed at run time")

    def _gather(self, node: NodeProto, inputs: Inputs) -> Value:
        table, index = inputs[0], inputs[1] if len(inputs) > 1 else None
        self._ledger.exempt(origins_of(*inputs[1:2]), Rule.INDEX)
        self._ledger.exempt(origins_of(*inputs[2:]), Rule.QUANTISATION)
        if not isinstance(table, (Constant, Opaque)):
            return runtime_of(table, index)
        if isinstance(table, Opaque) and table.kind is not Kind.CONSTANT:
            return table
        dims = self._shapes.dims_of(node, inputs, 0)
        if index is Runtime.INPUT and dims is not None and len(dims) == 2 and get_integer(node, "axis", 0) in (0, -2):
            self._ledger.exempt(table.origins, Rule.TOKEN_TABLE)
            return Opaque(table.origins, Kind.LOOKED_UP, "its rows are looked up")
        index_dims = self._shapes.dims(node.input[1])
        if isinstance(table, Constant) and len(table.dims) > 2 and get_integer(node, "axis", 0) == 0 and node.op_type == "Gather":
            return pick(table, None if index_dims is None else len(index_dims))
        return Opaque(table.origins, Kind.SELECTED, "a part of it is selected at run time")

    def _unary(self, node: NodeProto, inputs: Inputs) -> Value:
        value, others = inputs[0] if inputs else None, inputs[1:]
        if node.op_type in QUANTISING:
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
            return self._lose(node, inputs)
        return runtime_of(value)

    def _lose(self, node: NodeProto, inputs: Inputs) -> Opaque:
        reason = reason_of(*inputs[:1]) or f"it passes through {node.op_type}, which is not followed"
        return Opaque(origins_of(*inputs), Kind.CONSTANT, reason)

    def _move(self, node: NodeProto, inputs: Inputs) -> Value:
        value, others = inputs[0] if inputs else None, inputs[1:]
        self._ledger.exempt(origins_of(*others), Rule.INDEX)
        if isinstance(value, Opaque) and value.kind is not Kind.CONSTANT:
            return value
        if isinstance(value, Constant) and (rank := self._rank_of_picks(node, value)) is not None:
            return pick(value, rank)
        if isinstance(value, (Constant, Opaque)):
            return Opaque(value.origins, Kind.SELECTED, f"{node.op_type} takes parts of it that are chosen at run time")
        return runtime_of(*inputs)

    def _rank_of_picks(self, node: NodeProto, value: Constant) -> int | None:
        """For a GatherND of whole entries of the first axis, the rank of its indices; else None."""
        if node.op_type != "GatherND" or get_integer(node, "batch_dims", 0) or len(value.dims) < 3:
            return None
        dims = self._shapes.dims(node.input[1])
        return len(dims) - 1 if dims and dims[-1] == 1 else None

    def _normalise(self, node: NodeProto, inputs: Inputs, count: int) -> Value:
        shifts = [v for v in inputs[count:] if self._is_weighty(v)]
        self._ledger.exempt(origins_of(*inputs[count:]), Rule.ELEMENTWISE)
        value = self._combine(node, inputs[:count]) if count > 1 else (inputs[0] if inputs else None)
        if isinstance(value, Opaque) and value.kind is Kind.EXPANDED:
            return self._refuse_sum(node, value)
        if isinstance(value, Opaque) and value.kind is Kind.ADDED and node.op_type in ops.SETTLING:
            self._ledger.exempt(value.origins, Rule.ELEMENTWISE)
            value = Runtime.ACTIVE
        if isinstance(value, Constant):
            value = self._lose(node, [value])
        if shifts:
            kind = max(Kind.SCALED, value.kind) if isinstance(value, Opaque) else Kind.SCALED
            return Opaque(origins_of(*shifts, value), kind, "activations are multiplied with it element by element")
        return value if value is not None else Runtime.ACTIVE

    def _reduce(self, node: NodeProto, inputs: Inputs) -> Value:
        value = inputs[0] if inputs else None
        self._ledger.exempt(origins_of(*inputs[1:]), Rule.INDEX)
        if isinstance(value, Opaque):
            summed = value.kind in (Kind.SCALED, Kind.SELECTED) and node.op_type in ops.SUMMING
            return self._refuse_sum(node, value) if value.kind is Kind.EXPANDED or summed else value
        return self._lose(node, [value]) if isinstance(value, Constant) else runtime_of(value)

    def _refuse_sum(self, node: NodeProto, value: Opaque) -> Runtime:
        self._ledger.refuse(value.origins, f"{value.reason}, and {node.op_type} sums over it", title(node))
        return Runtime.ACTIVE

    def _combine(self, node: NodeProto, inputs: Inputs) -> Value:
        """The result of adding, joining or multiplying element by element."""
        numbers = [i for i in ops.data_inputs(node.op_type, len(inputs)) if i < len(inputs)]
        self._ledger.exempt(origins_of(*(v for i, v in enumerate(inputs) if i not in numbers)), Rule.INDEX)
        chosen = any(isinstance(v, Runtime) for i, v in enumerate(inputs) if i not in numbers)
        data = [(i, inputs[i]) for i in numbers]
        weighty = [(i, v) for i, v in data if self._is_weighty(v)]
        runtime = [v for _, v in data if isinstance(v, Runtime)]
        if not weighty:
            return runtime_of(*(v for _, v in data))
        active = bool(runtime) or any(is_active(v) for _, v in weighty)
        if not active:
            return self._join(node, [v for _, v in weighty], chosen)
        if node.op_type in ops.MULTIPLYING:
            return self._multiply(node, inputs, weighty)
        origins = origins_of(*(v for _, v in weighty))
        self._ledger.exempt(origins, Rule.ELEMENTWISE)
        kinds = [v.kind for _, v in weighty if isinstance(v, Opaque)]
        if node.op_type not in _JOINING and any(
            self._shapes.surely_lengthens(node, inputs, i) for i, v in weighty if not is_active(v)
        ):
            return Opaque(origins, Kind.EXPANDED, "it is added to activations along dimensions that they lack")
        if not runtime and len(kinds) == len(weighty) and set(kinds) == {Kind.LOOKED_UP}:
            return Opaque(origins, Kind.LOOKED_UP, "its rows are looked up")
        for kind in (Kind.EXPANDED, Kind.SCALED):
            if kind in kinds:
                return Opaque(origins, kind, next(v.reason for _, v in weighty if isinstance(v, Opaque) and v.kind is kind))
        return Opaque(origins, Kind.ADDED, "it is added to activations")

    def _join(self, node: NodeProto, values: Sequence[Constant | Opaque], chosen: bool) -> Opaque:
        """Tables alone: still a table."""
        kinds = [v.kind if isinstance(v, Opaque) else Kind.CONSTANT for v in values]
        kind = max(*kinds, Kind.SELECTED) if chosen else max(kinds)
        reason = f"it passes through {node.op_type}, which is not followed"
        if chosen:
            reason = f"{node.op_type} chooses between versions of it at run time"
        return Opaque(origins_of(*values), kind, reason_of(*values) or reason)

    def _multiply(self, node: NodeProto, inputs: Inputs, weighty: Sequence[tuple[int, Constant | Opaque]]) -> Value:
        """A product element by element, of which one operand at least is activations."""
        origins = origins_of(*(v for _, v in weighty))
        self._ledger.exempt(origins, Rule.ELEMENTWISE)
        kinds = [self._shapes.scaled_kind(node, inputs, number, value) for number, value in weighty]
        kind = max(kinds)
        reason = {
            Kind.EXPANDED: "activations are multiplied with it element by element, along dimensions that they may lack",
            Kind.SELECTED: "it is scaled by a value from the inputs",
            Kind.SCALED: "activations are multiplied with it element by element",
        }
        return Opaque(origins, kind, reason_of(*(v for _, v in weighty)) or reason.get(kind, "it is added to activations"))
