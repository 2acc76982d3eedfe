"""Products: the constant that one multiplies with becomes a weight to check, whatever else it multiplies with is refused."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from onnx import NodeProto

from maskpro_deploy.errors import FormatError
from maskpro_deploy.onnx_graphs.nodes import get_integer, title
from maskpro_deploy.validation.arrays import Array
from maskpro_deploy.validation.graphs.ledger import Ledger
from maskpro_deploy.validation.graphs.moves.pieces import is_weight
from maskpro_deploy.validation.graphs.moves.quantised import Scales, dequantise, unpack_weights
from maskpro_deploy.validation.graphs.moves.steps import read_small
from maskpro_deploy.validation.graphs.products import Product
from maskpro_deploy.validation.graphs.values import (
    ACTIVATIONS,
    Constant,
    Inputs,
    Kind,
    Opaque,
    Picked,
    Runtime,
    Shapes,
    Value,
    is_constant,
    is_table,
    may_meet,
    origins_of,
    reason_of,
)
from maskpro_deploy.validation.source import Rule, Weight

_FEW = 256  # numbers: what is computed from so few, in a shape that is not known, is taken for a vector


@dataclass(slots=True)
class ProductWeight:
    """A weight, and what its products make."""

    weight: Weight  # to be checked
    width: int  # outputs of the product
    results: list[str] = field(default_factory=list)  # names of what its products make


class Multiplier:
    """Collects the weights of a graph's products. `path` is that of the file, for errors."""

    def __init__(self, ledger: Ledger, shapes: Shapes, path: Path) -> None:
        self.weights: list[ProductWeight] = []  # each once for every axis that it is summed along
        self.in_main_graph = True  # whether the present node is one of it
        self.multiply_adds = 0  # of all products with stored tensors, for one token
        self._ledger, self._shapes, self._path = ledger, shapes, path
        self._seen: dict[tuple[str, int, int], int] = {}  # to its place in `weights`

    def multiply(self, node: NodeProto, inputs: Inputs, product: Product | str) -> Value:
        """The result of a product; its constants are noted."""
        if isinstance(product, str):
            self.refuse(origins_of(*inputs), product, node)
            return Runtime.ACTIVE
        for number, rule in product.parameters.items():
            if number < len(inputs):
                self._ledger.exempt(origins_of(inputs[number]), rule)
        operands = [(i, axis, inputs[i]) for i, axis in product.factors if i < len(inputs) and inputs[i] is not None]
        if all(is_constant(v) for _, _, v in operands):
            reason = reason_of(*(v for _, _, v in operands)) or f"it is multiplied with another constant by {node.op_type}"
            return Opaque(origins_of(*(v for _, _, v in operands)), Kind.CONSTANT, reason)
        for number, axis, value in operands:
            others = [v for i, _, v in operands if i != number]
            if isinstance(value, Constant):
                self._use_constant(node, inputs, product, number, axis)
            elif isinstance(value, Picked) and (own := _find_own_axis(value, axis)) is not None:
                self._use_picked(node, inputs, product, number, value, own)
            elif isinstance(value, Opaque):
                self._use_opaque(node, value, number, axis, others)
        biases = (i for i, rule in product.parameters.items() if rule is Rule.ELEMENTWISE and i < len(inputs))
        added = [v for v in (inputs[i] for i in biases) if self._ledger.holds_table(origins_of(v))]
        if added:
            return Opaque(origins_of(*added), Kind.ADDED, "it is added to what a product makes")
        return Runtime.ACTIVE

    def mark(self) -> object:
        return [replace(f, results=list(f.results)) for f in self.weights], dict(self._seen), self.multiply_adds

    def undo(self, mark: object) -> None:
        assert isinstance(mark, tuple)
        self.weights, self._seen, self.multiply_adds = mark

    def refuse(self, keys: Iterable[str], reason: str, node: NodeProto) -> None:
        """Note that some tensors are used in a way that is not followed."""
        self.multiply_adds += self._ledger.refuse(keys, reason, title(node))

    def _use_constant(self, node: NodeProto, inputs: Inputs, product: Product, number: int, axis: int | None) -> None:
        value = inputs[number]
        assert isinstance(value, Constant)
        if axis is None:
            self.refuse(value.origins, f"it is what {node.op_type} works on, which is not followed", node)
            return
        if number in product.scales:
            plain = self._dequantise(node, inputs, product, number, value)
            if plain is None:
                self.refuse(value.origins, f"the scales or zero points of {node.op_type} do not fit or are not constant", node)
                return
            value = plain
        self._add_weight(node, value, axis)

    def _use_picked(self, node: NodeProto, inputs: Inputs, product: Product, number: int, value: Picked, axis: int) -> None:
        """Entries of a stack of weights; if they are quantised, by one scale and zero point for all."""
        base: Constant | None = value.base
        if number in product.scales:
            small = [inputs[i] for i in product.scales[number][:2] if i is not None and i < len(inputs)]
            single = all(v is None or (isinstance(v, Constant) and math.prod(v.shape) == 1) for v in small)
            base = self._dequantise(node, inputs, product, number, value.base) if single and not product.packed else None
        if base is None:
            self.refuse(value.origins, value.reason, node)
        else:
            self._add_weight(node, base, axis)

    def _dequantise(self, node: NodeProto, inputs: Inputs, product: Product, number: int, value: Constant) -> Constant | None:
        """A quantised operand as the product multiplies with it."""
        scale_at, zero_at, channel = product.scales[number]
        zero = inputs[zero_at] if zero_at is not None and zero_at < len(inputs) else None
        scale = inputs[scale_at] if scale_at is not None and scale_at < len(inputs) else None
        scales = np.ones((), np.float32) if scale_at is None else read_small(scale)
        zeros = read_small(zero)
        if scales is None or (zero is not None and zeros is None) or value.perm != tuple(range(len(value.perm))):
            return None
        if product.packed:
            data = unpack_weights(node, product.packed, value, scales, zeros)
            return None if data is None else replace(value, shape=(data.rows, data.columns), data=data, perm=(0, 1))
        scales, zeros = _align(scales, zeros)
        plain = dequantise(value.data, value.shape, Scales(channel % len(value.shape), scales, zeros)) if value.shape else None
        return replace(value, data=plain) if plain is not None else None

    def _add_weight(self, node: NodeProto, value: Constant, axis: int) -> None:
        rank = len(value.shape)
        if not -rank <= axis < rank:
            raise FormatError(f"{self._path}: {title(node)} has a weight {value.name!r} of {rank} dimensions.")
        at, size = value.perm[axis], math.prod(value.shape)
        if rank == 1 or (value.shape[at] == 1 and not is_table(value.shape)):
            self._ledger.exempt(value.origins, Rule.VECTOR)
            return
        if value.shape[at] == 1:
            self._judge_narrow(node, value)
            return
        self.multiply_adds += size
        single = size == value.shape[at]  # a single output: it is checked where a list asks for it
        if single:
            self._ledger.exempt(value.origins, Rule.VECTOR)
        else:
            self._ledger.weigh(value.origins)
        key = (value.name, at, id(value.data))
        if key not in self._seen:
            self._seen[key] = len(self.weights)
            weight = Weight(
                name=value.name,
                shape=value.shape,
                dtype=value.dtype,
                axis=at,
                data=value.data,
                linear=not single,
                constants=tuple(sorted(value.origins)),
            )
            self.weights.append(ProductWeight(weight, size // value.shape[at]))
        else:
            known = self.weights[self._seen[key]]
            known.weight = replace(known.weight, uses=known.weight.uses + 1)
        self.weights[self._seen[key]].results.extend(node.output[:1] if self.in_main_graph else [""])

    def _judge_narrow(self, node: NodeProto, value: Constant) -> None:
        """A weight whose reduction dimension is 1: only in a depthwise convolution does it not sum over what activations lack."""
        if "Conv" in node.op_type and get_integer(node, "group", 1) == value.dims[0]:
            self._ledger.exempt(value.origins, Rule.NARROW)
        else:
            self.refuse(value.origins, f"its reduction dimension is 1: how {node.op_type} uses it is not followed", node)

    def _use_opaque(self, node: NodeProto, value: Opaque, number: int, axis: int | None, others: Inputs) -> None:
        if not self._ledger.holds_table(value.origins) and self._is_small(node, value, number, axis):
            self._ledger.exempt(value.origins, Rule.VECTOR)
            return
        if value.kind in ACTIVATIONS and (all(is_weight(v) for v in others) or may_meet(value, others)):
            self._ledger.exempt(value.origins, Rule.TOKEN_TABLE if value.kind is Kind.LOOKED_UP else Rule.ELEMENTWISE)
            return
        reason = f"{value.reason}, and is then multiplied with activations" if value.kind is not Kind.CONSTANT else value.reason
        self.refuse(value.origins, reason, node)

    def _is_small(self, node: NodeProto, value: Opaque, number: int, axis: int | None) -> bool:
        """Whether a value that is computed from vectors is one itself, or is computed from next to nothing."""
        dims = self._shapes.dims(node.input[number])
        if dims is None or axis is None or not -len(dims) <= axis < len(dims):
            return self._ledger.elements(value.origins) <= _FEW
        if dims[axis] == 1 or sum(d is None or d > 1 for d in dims) <= 1:
            return True
        return self._ledger.elements(value.origins) <= (_FEW if None in dims else 1)


def _find_own_axis(value: Picked, axis: int | None) -> int | None:
    """The axis of the constant that a product of picked entries sums over; None if it is not one of it."""
    known = axis is not None and -len(value.axes) <= axis < (len(value.axes) if value.whole else 0)
    return value.axes[axis] if known and axis is not None else None


def _align(scales: Array, zeros: Array | None) -> tuple[Array, Array | None]:
    """Scales and zero points of one length: a single one of either is for all."""
    if zeros is None:
        return (scales if scales.size == 1 else scales.reshape(-1)), None
    size = max(scales.size, zeros.size)
    if size == 1 or scales.size not in (1, size) or zeros.size not in (1, size):
        return scales, zeros
    pair = [np.broadcast_to(a.reshape(-1), (size,)).copy() for a in (scales, zeros)]
    return pair[0], pair[1]
