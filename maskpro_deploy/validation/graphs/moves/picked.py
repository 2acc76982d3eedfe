"""Entries of a stack of weights that are picked at run time (experts, layers), and the steps that keep their axes known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from onnx import NodeProto

from maskpro_deploy.validation.graphs.moves.steps import STEPS, integers
from maskpro_deploy.validation.graphs.values import Constant, Input, Kind, Picked

# one number for all elements, so that it does not matter which are picked
_ELEMENTWISE = frozenset({"Cast", "DequantizeLinear", "QuantizeLinear"})
_REASON = "a part of it is selected at run time"


def pick(base: Constant, index_rank: int | None) -> Picked:
    """Entries of the first axis of a constant, at indices of some rank; None if it is not known."""
    axes = (*([None] * (index_rank or 0)), *range(1, len(base.dims)))
    return Picked(base.origins, Kind.SELECTED, _REASON, base, axes, index_rank is not None)


def move_picked(node: NodeProto, inputs: Sequence[Input]) -> Picked | None:
    """What a node makes of picked entries, if their axes are still known."""
    value = inputs[0] if inputs else None
    if not isinstance(value, Picked):
        return None
    rank = len(value.axes)
    if node.op_type == "Identity":
        return value
    if node.op_type in _ELEMENTWISE:
        if not all(isinstance(v, Constant) and math.prod(v.shape) == 1 for v in inputs[1:]):
            return None
        changed = STEPS[node.op_type](node, value.base, inputs)
        return replace(value, base=changed) if changed is not None else None
    if node.op_type == "Transpose":
        order = next(
            (list(a.ints) for a in node.attribute if a.name == "perm"), list(reversed(range(rank))) if value.whole else []
        )
        axes = value.axes if value.whole else (*([None] * (len(order) - rank)), *value.axes)
        if len(order) < rank or sorted(order) != list(range(len(axes))):
            return None
        return replace(value, axes=tuple(axes[i] for i in order), whole=True)
    if not value.whole:
        return None
    if node.op_type == "Unsqueeze":
        added = _axes(node, inputs, rank + len(_given(node, inputs) or ()))
        if added is None:
            return None
        rest = iter(value.axes)
        return replace(value, axes=tuple(None if i in added else next(rest) for i in range(rank + len(added))))
    if node.op_type == "Squeeze":
        dropped = _axes(node, inputs, rank)
        if not dropped or any(value.axes[i] is not None for i in dropped):
            return None
        return replace(value, axes=tuple(a for i, a in enumerate(value.axes) if i not in dropped))
    return None


def without_axes(values: Sequence[Input]) -> list[Input]:
    """The values as steps see them that do not know of picked entries."""
    return [v.plain if isinstance(v, Picked) else v for v in values]


def _given(node: NodeProto, inputs: Sequence[Input]) -> list[int] | None:
    if len(inputs) > 1:
        return integers(inputs[1])
    return next((list(a.ints) for a in node.attribute if a.name == "axes"), None)


def _axes(node: NodeProto, inputs: Sequence[Input], rank: int) -> set[int] | None:
    given = _given(node, inputs)
    if given is None or any(not -rank <= a < rank for a in given) or len({a % rank for a in given}) != len(given):
        return None
    return {a % rank for a in given}


def is_weight(value: Input) -> bool:
    """Whether a value is a stored tensor, or whole entries of one."""
    return isinstance(value, (Constant, Picked))
