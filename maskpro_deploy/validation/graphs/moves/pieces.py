"""Constants made of constants (parts, several joined, two combined), and entries of a stack of weights picked at run time.

Constants are read whole when they are counted, up to a limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import ml_dtypes
import numpy as np
from onnx import NodeProto

from maskpro_deploy.onnx_graphs.constants import move_axes
from maskpro_deploy.onnx_graphs.nodes import get_integer, get_integers
from maskpro_deploy.validation.arrays import Array, LoadedArray
from maskpro_deploy.validation.graphs.moves.quantised import element_type
from maskpro_deploy.validation.graphs.moves.steps import EAGER_LIMIT, STEPS, axes_within, given_axes, read_integers, read_small
from maskpro_deploy.validation.graphs.values import Constant, Input, Inputs, Kind, Picked, origins_of

Made = list[Constant] | None


def make_pieces(node: NodeProto, inputs: Inputs) -> Made:
    """The results of a node that only rearranges or combines constants; None if it is not such a node."""
    maker = _MAKERS.get(node.op_type)
    if maker is None or not inputs or not all(v is None or isinstance(v, Constant) for v in inputs):
        return None
    constants = [v for v in inputs if isinstance(v, Constant)]
    if len(constants) != len(inputs) or sum(c.data.size for c in constants) > EAGER_LIMIT:
        return None
    return maker(node, constants)


def read_whole(value: Constant) -> Array:
    """All elements of a value, in its own order of axes."""
    array = value.data.read(0, value.data.size).reshape(value.shape).transpose(value.perm)
    value.data.release()
    return array


def _make(name: str, shape: tuple[int, ...], sources: Sequence[Constant], make: Callable[[], Array]) -> Constant:
    data = LoadedArray(lambda: np.ascontiguousarray(make()), math.prod(shape))
    return Constant(name, shape, sources[0].dtype, data, tuple(range(len(shape))), origins_of(*sources))


def _cut(value: Constant, cuts: list[tuple[int, int, int]]) -> Constant | None:
    """The elements in [start, stop) of some axes: (axis, start, stop)."""
    slices = [slice(None)] * len(value.dims)
    for axis, start, stop in cuts:
        slices[axis] = slice(start, stop)
    shape = tuple(len(range(*s.indices(d))) for s, d in zip(slices, value.dims, strict=True))
    if not math.prod(shape):
        return None
    text = ", ".join(":" if s == slice(None) else f"{s.start}:{s.stop}" for s in slices)
    return _make(f"{value.name}[{text}]", shape, [value], lambda: read_whole(value)[tuple(slices)])


def _split(node: NodeProto, inputs: list[Constant]) -> Made:
    value, rank = inputs[0], len(inputs[0].dims)
    axis = get_integer(node, "axis", 0)
    if not -rank <= axis < rank:
        return None
    length, count = value.dims[axis], len(node.output)
    given = read_integers(inputs[1]) if len(inputs) > 1 else get_integers(node, "split")
    if given is None:
        chunk = -(-length // count)
        given = [min(chunk, length - i * chunk) for i in range(count)]
    if sum(given) != length or len(given) != count or min(given) < 1:
        return None
    ends = np.cumsum(given).tolist()
    parts = [_cut(value, [(axis % rank, end - size, end)]) for end, size in zip(ends, given, strict=True)]
    return None if any(p is None for p in parts) else [p for p in parts if p is not None]


def _slice(node: NodeProto, inputs: list[Constant]) -> Made:
    value = inputs[0]
    old = [get_integers(node, name) for name in ("starts", "ends", "axes")]
    given = [read_integers(v) for v in inputs[1:]] or old[: 2 if old[2] is None else 3]
    if len(given) < 2 or any(g is None for g in given) or (len(given) > 3 and set(given[3] or ()) != {1}):
        return None
    starts, stops = given[0] or [], given[1] or []
    axes = (given[2] if len(given) > 2 else None) or list(range(len(starts)))
    rank = len(value.dims)
    if not len(starts) == len(stops) == len(axes) or any(not -rank <= a < rank for a in axes):
        return None
    cuts = []
    for axis, start, stop in zip(axes, starts, stops, strict=True):
        first, last, _ = slice(start, stop).indices(value.dims[axis])
        cuts.append((axis % rank, first, last))
    part = _cut(value, cuts)
    return [part] if part is not None else None


def _gather(node: NodeProto, inputs: list[Constant]) -> Made:
    """Entries of an axis, by constant numbers."""
    value, rank, axis = inputs[0], len(inputs[0].dims), get_integer(node, "axis", 0)
    if len(inputs) != 2 or not -rank <= axis < rank:
        return None
    index = read_integers(inputs[1])
    if index is None or inputs[1].dims not in ((), (1,)):
        return _gather_many(value, inputs[1], axis % rank)
    if not -value.dims[axis] <= index[0] < value.dims[axis]:
        return None
    axis, at, scalar = axis % rank, index[0] % value.dims[axis], not inputs[1].dims
    shape = tuple(d for i, d in enumerate(value.dims) if i != axis or not scalar)
    shape = shape if scalar else (*shape[:axis], 1, *shape[axis + 1 :])
    name = f"{value.name}[{', '.join(':' if i != axis else str(at) for i in range(rank))}]"
    return [_make(name, shape, [value], lambda: read_whole(value).take([at], axis=axis).reshape(shape))]


def _gather_many(value: Constant, numbers: Constant, axis: int) -> Made:
    at = read_small(numbers)
    if at is None or at.dtype.kind not in "iu" or not at.size or at.min() < -value.dims[axis] or at.max() >= value.dims[axis]:
        return None
    shape = (*value.dims[:axis], *at.shape, *value.dims[axis + 1 :])
    if math.prod(shape) > EAGER_LIMIT:
        return None
    return [_make(f"{value.name}[...]", shape, [value, numbers], lambda: read_whole(value).take(at, axis=axis))]


def _concat(node: NodeProto, inputs: list[Constant]) -> Made:
    rank, axis = len(inputs[0].dims), get_integer(node, "axis", 0)
    others = [tuple(d for i, d in enumerate(c.dims) if i != axis % rank) for c in inputs] if -rank <= axis < rank else []
    if not others or any(len(c.dims) != rank for c in inputs) or len(set(others)) != 1:
        return None
    shape = list(inputs[0].dims)
    shape[axis] = sum(c.dims[axis] for c in inputs)
    name = " + ".join(c.name for c in inputs[:3]) + (" + ..." if len(inputs) > 3 else "")
    return [_make(name, tuple(shape), inputs, lambda: np.concatenate([read_whole(c) for c in inputs], axis=axis))]


def _combine(inputs: list[Constant], data: list[Constant], compute: Callable[[], Array]) -> Made:
    """What is computed from constants that are broadcast; it has the name of the largest of `data`. None if they do not fit."""
    try:
        shape = np.broadcast_shapes(*(c.dims for c in inputs))
    except ValueError:
        return None
    main = max(data, key=lambda c: c.data.size)
    made = _make(main.name, shape, [main, *(c for c in inputs if c is not main)], compute)
    return [made] if math.prod(shape) <= EAGER_LIMIT else None


def _elementwise(function: Callable[[Array, Array], Array]) -> Callable[[NodeProto, list[Constant]], Made]:
    def make(node: NodeProto, inputs: list[Constant]) -> Made:
        types = [element_type(c.data) for c in inputs]
        # integers that only stand for what is zero may be multiplied, not added
        if len(inputs) != 2 or (function not in _SCALING and any(t not in _FLOATS for t in types)) or not {*types} & {*_FLOATS}:
            return None

        def compute() -> Array:
            with np.errstate(all="ignore"):
                return function(read_whole(inputs[0]), read_whole(inputs[1]))

        return _combine(inputs, inputs, compute)

    return make


def _where(node: NodeProto, inputs: list[Constant]) -> Made:
    if len(inputs) != 3 or element_type(inputs[0].data) != np.bool_:
        return None
    return _combine(inputs, inputs[1:], lambda: np.where(*(read_whole(c) for c in inputs)))


def _expand(node: NodeProto, inputs: list[Constant]) -> Made:
    wanted, value = read_integers(inputs[1]) if len(inputs) == 2 else None, inputs[0]
    if wanted is None or min(wanted, default=1) < 1:
        return None
    try:
        shape = np.broadcast_shapes(value.dims, tuple(wanted))
    except ValueError:
        return None
    made = _make(value.name, shape, [value], lambda: np.broadcast_to(read_whole(value), shape))
    return [made] if math.prod(shape) <= EAGER_LIMIT else None


_SCALING = (np.multiply, np.divide)
_FLOATS = tuple(np.dtype(t) for t in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16))
_MAKERS: dict[str, Callable[[NodeProto, list[Constant]], Made]] = {
    "Add": _elementwise(np.add),
    "Concat": _concat,
    "Div": _elementwise(np.divide),
    "Expand": _expand,
    "Gather": _gather,
    "Mul": _elementwise(np.multiply),
    "Slice": _slice,
    "Split": _split,
    "Sub": _elementwise(np.subtract),
    "Where": _where,
}


# one number for all elements, so that it does not matter which are picked
_ELEMENTWISE = frozenset({"Cast", "DequantizeLinear", "QuantizeLinear"})
_REASON = "a part of it is selected at run time"


def pick(base: Constant, index_rank: int | None) -> Picked:
    """Entries of the first axis of a constant, at indices of some rank; None if it is not known."""
    axes = (*([None] * (index_rank or 0)), *range(1, len(base.dims)))
    return Picked(base.origins, Kind.SELECTED, _REASON, base, axes, index_rank is not None)


def move_picked(node: NodeProto, inputs: Inputs) -> Picked | None:
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


def without_axes(values: Inputs) -> list[Input]:
    """The values as steps see them that do not know of picked entries."""
    return [v.plain if isinstance(v, Picked) else v for v in values]


def is_weight(value: Input) -> bool:
    """Whether a value is a stored tensor, or whole entries of one."""
    return isinstance(value, (Constant, Picked))
