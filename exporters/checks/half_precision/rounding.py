"""A half-precision graph as onnxruntime's CPU provider can run it without losing what half precision does.

The provider has few fp16 and no bf16 kernels: it casts such a graph to fp32 and drops the casts between nodes, so nothing
overflows and nothing is rounded. Here the graph is rewritten instead: all values are fp32, and behind every node that puts out
half precision stands an explicit pair of casts, fp32 -> half -> fp32, which the runtime keeps because it loses information.

The model of arithmetic: weights, activations and node outputs are rounded to half precision; products and sums inside a node
are accumulated in fp32, and so is all that fused nodes (Attention, GroupQueryAttention, RMSNormalization, RotaryEmbedding)
compute inside, as fused kernels of GPUs do. Nothing else is claimed: a kernel that rounds more often can differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper

from maskpro_deploy.errors import MachineError
from maskpro_deploy.exporters.graph.builder import CONTRIB, DTYPES

HALVES = ("fp16", "bf16")
# not followed by casts: their outputs are values of their inputs, rounded before, or those with the other sign
_MOVES = {
    "Abs", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Max", "Min", "Neg",
    "Pad", "Relu", "Reshape", "Slice", "Split", "Squeeze", "TensorScatter", "Tile", "TopK",
    "Transpose", "Trilu", "Unsqueeze", "Where",
}  # fmt: skip
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


class NotRounded(MachineError):
    """A half-precision graph cannot be run with its values rounded here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """One place where a value is rounded: from `exact`, in fp32, to `rounded`.

    `node` is the node's name, without which it is its output's; a node of several outputs is named by each.
    """

    node: str
    exact: str
    rounded: str


def round_graph(model: onnx.ModelProto, dtype: str, *, rounding: bool = True) -> tuple[onnx.ModelProto, list[Rounding]]:
    """Rewrite a copy of a half-precision graph, whose large initializers are in a data file; inputs and outputs become fp32 too.

    Without `rounding` it computes with the same stored weights in fp32 throughout. The roundings are those of the main graph.
    A value of a type that is not known raises NotRounded.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if copy.functions:
        copy = inliner.inline_local_functions(copy)
    rewriter = _Rewriter(DTYPES[dtype][0], _infer_types(copy, DTYPES[dtype][0]), rounding)
    places = rewriter.rewrite(copy.graph)
    return copy, places


class _Rewriter:
    """The rewriting of one model; `half` and the `types` of values are ONNX's numbers."""

    def __init__(self, half: int, types: dict[str, int], rounding: bool) -> None:
        self._half, self._types, self._rounding = half, types, rounding

    def rewrite(self, graph: onnx.GraphProto) -> list[Rounding]:
        """Change a graph and its inner graphs in place."""
        places: list[Rounding] = []
        nodes = [*self._raise_initializers(graph)]
        for node in graph.node:
            self._raise_attributes(node)
            nodes.append(node)
            if self._rounding and node.op_type not in _MOVES:
                for pair, place in self._round_outputs(node):
                    nodes += pair
                    places.append(place)
        del graph.node[:], graph.value_info[:]
        graph.node.extend(nodes)
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type == self._half:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        return places

    def _raise_initializers(self, graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
        """Small ones become fp32; those in the data file are cast where the session opens."""
        for tensor in graph.initializer:
            if tensor.data_type != self._half:
                continue
            if tensor.data_location != TensorProto.EXTERNAL:
                tensor.CopyFrom(_to_float(tensor))
                continue
            name, tensor.name = tensor.name, f"{tensor.name}/stored"
            yield helper.make_node("Cast", [tensor.name], [name], name=tensor.name, to=TensorProto.FLOAT)

    def _raise_attributes(self, node: onnx.NodeProto) -> None:
        """Types, constants and inner graphs among a node's attributes."""
        for attribute in node.attribute:
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i == self._half:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("t") and attribute.t.data_type == self._half:
                attribute.t.CopyFrom(_to_float(attribute.t))
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.output:
                    self.rewrite(inner)

    def _round_outputs(self, node: onnx.NodeProto) -> Iterator[tuple[list[onnx.NodeProto], Rounding]]:
        """The casts behind a node."""
        for i, name in enumerate(node.output):
            if name and name not in self._types:
                raise NotRounded(f"the type of {name!r}, which {node.op_type} {node.name!r} puts out, is not known.")
            if not name or self._types[name] != self._half:
                continue
            exact, half = f"{name}/exact", f"{name}/half"
            node.output[i] = exact
            pair = [
                helper.make_node("Cast", [exact], [half], name=f"{half}/down", to=self._half),
                helper.make_node("Cast", [half], [name], name=f"{half}/up", to=TensorProto.FLOAT),
            ]
            path = name.removesuffix("/out")
            yield pair, Rounding(node=path if path != name else node.name or name, exact=exact, rounded=name)


def _infer_types(model: onnx.ModelProto, half: int) -> dict[str, int]:
    """The type of every value, in inner graphs too."""
    known = onnx.ModelProto()
    known.CopyFrom(model)
    # onnx knows nothing of onnxruntime's own operators; all that these graphs use put out the graph's float type
    given = {value.name for value in (*known.graph.output, *known.graph.value_info)}
    own = [name for node in known.graph.node if node.domain == CONTRIB for name in node.output if name and name not in given]
    known.graph.value_info.extend(helper.make_tensor_value_info(name, half, None) for name in own)
    try:
        known = onnx.shape_inference.infer_shapes(known)
    except Exception as e:
        raise NotRounded(f"onnx cannot infer the types of the graph: {e}") from e
    types: dict[str, int] = {}
    _collect_types(known.graph, types)
    return types


def _collect_types(graph: onnx.GraphProto, types: dict[str, int]) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.HasField("tensor_type"):
            types[value.name] = value.type.tensor_type.elem_type
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _collect_types(inner, types)


def _to_float(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """A small half-precision tensor in fp32."""
    values: npt.NDArray[Any] = numpy_helper.to_array(tensor)
    return numpy_helper.from_array(values.astype(np.float32), tensor.name)
