"""Entries of a stack of weights that are picked at run time (experts, layers), and the steps that keep their axes known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from onnx import NodeProto

from maskpro_deploy.onnx_graphs.constants import move_axes
from maskpro_deploy.onnx_graphs.nodes import get_integers
from maskpro_deploy.validation.graphs.moves.steps import STEPS, axes_within, given_axes
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
        missing = 0 if value.whole else len(get_integers(node, "perm") or ()) - rank
        moved = move_axes(node, (*([None] * missing), *value.axes)) if missing >= 0 else None
        return replace(value, axes=moved, whole=True) if moved is not None else None
    if not value.whole:
        return None
    given = given_axes(node, inputs) if node.op_type in ("Squeeze", "Unsqueeze") else None
    if given is None:
        return None
    at = axes_within(given, rank + (len(given) if node.op_type == "Unsqueeze" else 0))
    if at is None or len(at) != len(given):
        return None
    if node.op_type == "Unsqueeze":
        rest = iter(value.axes)
        return replace(value, axes=tuple(None if i in at else next(rest) for i in range(rank + len(at))))
    if not at or any(value.axes[i] is not None for i in at):
        return None
    return replace(value, axes=tuple(a for i, a in enumerate(value.axes) if i not in at))


def without_axes(values: Sequence[Input]) -> list[Input]:
    """The values as steps see them that do not know of picked entries."""
    return [v.plain if isinstance(v, Picked) else v for v in values]


def is_weight(value: Input) -> bool:
    """Whether a value is a stored tensor, or whole entries of one."""
    return isinstance(value, (Constant, Picked))
