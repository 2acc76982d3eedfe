"""How near the values of a half-precision graph come to the ends of their type, layer by layer.

Every rounding of the rewritten graph (`rounding`) is given a few scalars as outputs: the largest and the smallest number
before it, and whether there is a NaN. Rounding keeps the order, so what comes after it follows. No tensor leaves the session.
A mask holds the lowest number of its type on purpose. It, and what it is added to, may be as low as it likes until the softmax.

Shapes: `B` batch, `T` tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from maskpro_deploy.exporters.checks.half_precision.rounding import Rounding
from maskpro_deploy.exporters.checks.ort_model import CheckedGraph
from maskpro_deploy.exporters.graph.builder import DTYPES, WIDER

LOW_MARGIN = 2.0  # the largest value times this should still fit
_NUMBER = re.compile(r"(?:^|[./_])(?:layers?|h|blocks?)[./_](\d+)(?:[./_]|$)")
_ENDS_OF_MASKS = frozenset(("Softmax", "LogSoftmax", "Exp", "Attention", "GroupQueryAttention"))
EMBEDDING, HEAD = "embedding", "head"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRange:
    """The node with the largest value of a layer ("layer 0" and so on, "embedding" or "head"), before it is rounded."""

    layer: str
    node: str
    largest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """The largest value of each layer on the measured prompts, in the graph's order, and the largest number of the float type.

    `fault` says in words which value is the first that does not fit the type; "" if all do.
    """

    dtype: str
    limit: float
    layers: tuple[LayerRange, ...]
    fault: str

    @property
    def worst(self) -> LayerRange:
        """The layer with the largest value."""
        return max(self.layers, key=lambda layer: layer.largest)

    @property
    def margin(self) -> float:
        """How often the largest value fits into the type's range."""
        return self.limit / self.worst.largest if self.worst.largest else float("inf")

    def warning(self) -> str:
        """In words, if the largest value is near the end of the range; else ""."""
        if self.margin >= LOW_MARGIN:
            return ""
        worst = self.worst
        return (
            f"{worst.layer}, {worst.node} reaches {worst.largest:.4g}, only {self.margin:.3g} times below the largest "
            f"{self.dtype} number: other prompts may overflow. Consider {WIDER[self.dtype]}."
        )

    def to_json(self) -> dict[str, Any]:
        """For the manifest; a value that is not finite is written as text."""
        worst = self.worst
        return {
            "dtype": self.dtype,
            "limit": self.limit,
            "largest": _finite_or_text(worst.largest),
            "margin": _finite_or_text(self.margin),
            "layer": worst.layer,
            "node": worst.node,
            "layers": {layer.layer: [layer.node, _finite_or_text(layer.largest)] for layer in self.layers},
        }


class Probes:
    """The scalars of a rewritten graph of the float type `dtype`, added to its outputs."""

    def __init__(self, model: onnx.ModelProto, places: Sequence[Rounding], dtype: str) -> None:
        self._places, self._dtype = places, dtype
        self._limit = float(ml_dtypes.finfo(DTYPES[dtype][1]).max)
        layers, self._masked = assign_layers(model.graph), find_masked_values(model.graph, -self._limit)
        self._layers = [parse_layer(place.node) or layers[place.exact] for place in places]
        for i, place in enumerate(places):
            model.graph.node.extend(_scalar_nodes(i, place.exact))
            model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in _scalar_names(i))

    def measure(self, model: CheckedGraph, prompts: Sequence[Sequence[int]]) -> Ranges:
        """Run whole prompts and keep the extremes.  # each (T,)"""
        names = [name for i in range(len(self._places)) for name in _scalar_names(i)]
        runs = [model.values(np.asarray([prompt], dtype=np.int64), names) for prompt in prompts]
        scalars = np.asarray(runs, dtype=np.float64).reshape(len(runs), -1, 3)  # (prompts, places, 3)
        high, low, nan = scalars[..., 0].max(axis=0), scalars[..., 1].min(axis=0), scalars[..., 2].max(axis=0) > 0
        masked = np.asarray([place.exact in self._masked for place in self._places], dtype=bool)
        largest = np.where(masked, np.maximum(high, 0.0), np.maximum(high, -low))
        return Ranges(
            dtype=self._dtype,
            limit=self._limit,
            layers=self._largest_by_layer(np.where(masked, 0.0, largest)),
            fault=self._find_fault(largest, nan, masked),
        )

    def _largest_by_layer(self, largest: npt.NDArray[np.float64]) -> tuple[LayerRange, ...]:
        worst: dict[str, int] = {}
        for i, layer in enumerate(self._layers):
            if layer not in worst or largest[i] > largest[worst[layer]]:
                worst[layer] = i
        return tuple(LayerRange(layer=layer, node=self._places[i].node, largest=float(largest[i])) for layer, i in worst.items())

    def _find_fault(self, largest: npt.NDArray[np.float64], nan: npt.NDArray[np.bool_], masked: npt.NDArray[np.bool_]) -> str:
        """The first value in the graph's order that is not finite, or that is zero throughout only because it was rounded."""
        with np.errstate(over="ignore"):
            rounded = largest.astype(np.float32).astype(DTYPES[self._dtype][1]).astype(np.float64)
        vanished = (largest > 0) & (rounded == 0) & ~masked
        for i in np.flatnonzero(nan | np.isinf(rounded) | vanished).tolist():
            where = f"{self._layers[i]}, {self._places[i].node}"
            if nan[i]:
                return f"{where} is not a number (NaN) in {self._dtype}"
            if np.isinf(largest[i]):
                return f"{where} is infinite in {self._dtype}"
            if vanished[i]:
                return f"{where} reaches {largest[i]:.3g}, and all of its values vanish to zero in {self._dtype}"
            return f"{where} reaches {largest[i]:.6g}, and the largest {self._dtype} number is {self._limit:.6g}"
        return ""


def _scalar_names(i: int) -> list[str]:
    return [f"half/{i}/{kind}" for kind in ("high", "low", "nan")]


def _scalar_nodes(i: int, value: str) -> list[onnx.NodeProto]:
    """The nodes that make them."""
    high, low, nan = _scalar_names(i)
    return [
        helper.make_node("ReduceMax", [value], [high], name=high, keepdims=0),
        helper.make_node("ReduceMin", [value], [low], name=low, keepdims=0),
        helper.make_node("IsNaN", [value], [f"{nan}/each"], name=f"{nan}/each"),
        helper.make_node("Cast", [f"{nan}/each"], [f"{nan}/float"], name=f"{nan}/float", to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", [f"{nan}/float"], [nan], name=nan, keepdims=0),
    ]


def _finite_or_text(value: float) -> float | str:
    return value if np.isfinite(value) else str(value)


def parse_layer(name: str) -> str:
    """The layer that a name tells, "" if it tells none."""
    number = _NUMBER.search(name)
    return f"layer {number[1]}" if number else ""


def assign_layers(graph: onnx.GraphProto) -> dict[str, str]:
    """Value -> "layer 0" and so on, `EMBEDDING` for what comes before, `HEAD` for what comes after.

    A node belongs to the layer that its name or a weight of it names; a node without either, to that of what it reads.
    """
    weights = {tensor.name for tensor in graph.initializer if tensor.data_location == TensorProto.EXTERNAL}
    number: dict[str, int] = {}
    after = 1 << 30
    for node in graph.node:
        reads = [name for name in node.input if name]
        if node.op_type == "Cast" and set(reads) <= weights:  # a weight as it is read
            weights.update(node.output)
            continue
        named = [int(m[1]) for name in (node.name, *(w for w in reads if w in weights)) if (m := _NUMBER.search(name))]
        before = max((number.get(name, -1) for name in reads), default=-1)
        unnamed = after if before >= 0 and weights & set(reads) else before
        own = named[0] if named else unnamed
        number.update((name, own) for name in node.output if name)
    return {name: HEAD if i == after else EMBEDDING if i < 0 else f"layer {i}" for name, i in number.items()}


def find_masked_values(graph: onnx.GraphProto, lowest: float) -> set[str]:
    """Values that hold the lowest numbers, of which `lowest` is the float type's, to hide tokens."""
    masked = {t.name for t in graph.initializer if t.data_location != TensorProto.EXTERNAL and _is_low(t, lowest)}
    for node in graph.node:
        if node.op_type in _ENDS_OF_MASKS:
            continue
        if masked & set(node.input) or any(_is_low(tensor, lowest) for tensor in _constants(node)):
            masked.update(name for name in node.output if name)
    return masked


def _constants(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        if node.op_type == "Constant" and attribute.name == "value_float":
            yield helper.make_tensor("", TensorProto.FLOAT, [], [attribute.f])


def _is_low(tensor: onnx.TensorProto, lowest: float) -> bool:
    """Whether it holds numbers that a real value would hardly be."""
    if tensor.data_type not in (TensorProto.FLOAT, TensorProto.DOUBLE):
        return False
    values = numpy_helper.to_array(tensor)
    return bool(values.size) and float(np.min(values)) <= lowest / 2
