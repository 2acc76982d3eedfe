"""ONNX files opened without the values in their external data, and the stored tensors behind the values of a graph.

`move_axes` is the one place that says which nodes keep or permute axes; whoever also needs the numbers (the checker) adds what
the same nodes do to them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper

from maskpro_deploy.errors import FormatError
from maskpro_deploy.onnx_graphs.nodes import STANDARD, get_integers

_SUB_BYTE = {
    getattr(TensorProto, name): bits
    for name, bits in (("INT4", 4), ("UINT4", 4), ("FLOAT4E2M1", 4), ("INT2", 2), ("UINT2", 2))
    if hasattr(TensorProto, name)
}


def tensor_bytes(tensor: TensorProto) -> int:
    """The bytes that the values of a tensor take when they are packed: no more than its type needs."""
    elements = int(math.prod(tensor.dims))
    if tensor.data_type == TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    if tensor.data_type in _SUB_BYTE:
        return -(-elements * _SUB_BYTE[tensor.data_type] // 8)
    try:
        return int(elements * np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize)
    except (KeyError, ValueError, TypeError):
        return len(tensor.raw_data)


def external_entries(tensor: TensorProto) -> dict[str, str]:
    """What a tensor says about its external data: location, offset and length, as text; empty for one in the ONNX file itself."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return {}
    return {entry.key: entry.value for entry in tensor.external_data}


def read_model(path: Path) -> onnx.ModelProto:
    """Read an ONNX model; external data is not read. Raises FormatError: the file is not an ONNX model."""
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as e:  # protobuf has several kinds; all mean the same
        raise FormatError(f"{path} is not an ONNX file: {e}") from e


QUANTISING = frozenset({"DequantizeLinear", "QuantizeLinear"})  # com.microsoft has them too
_KEEPING = frozenset({"Cast", "Identity", *QUANTISING})
Axis = TypeVar("Axis")


def move_axes(node: NodeProto, axes: Sequence[Axis]) -> tuple[Axis, ...] | None:
    """The axes of a value after a node that keeps or permutes those of its first input; None for any other node."""
    if node.domain not in STANDARD and node.op_type not in QUANTISING:
        return None
    if node.op_type in _KEEPING:
        return tuple(axes)
    if node.op_type != "Transpose":
        return None
    order = get_integers(node, "perm")
    if order is None:
        return tuple(reversed(axes))
    return tuple(axes[i] for i in order) if sorted(order) == list(range(len(axes))) else None


@dataclass(frozen=True, slots=True)
class StoredValue:
    """A value that is an initializer with permuted axes, converted or not."""

    tensor: TensorProto  # the initializer
    axes: tuple[int, ...]  # axis `i` of the value is axis `axes[i]` of the initializer
    steps: tuple[NodeProto, ...] = ()  # the nodes between the two, the one that makes the value first

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.dims[i] for i in self.axes)


class ConstantFinder:
    """Finds the initializers behind the values of a graph, whose nodes may stand in any order."""

    def __init__(self, graph: GraphProto) -> None:
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._maker = {output: node for node in graph.node for output in node.output if output}

    def maker(self, name: str) -> NodeProto | None:
        return self._maker.get(name)

    def find(self, name: str) -> StoredValue | None:
        """The initializer that a value is; None if it is computed in another way."""
        steps: list[NodeProto] = []
        while name not in self._stored:
            node = self._maker.get(name)
            if node is None or node.op_type not in (*_KEEPING, "Transpose") or len(steps) > len(self._maker):
                return None
            steps.append(node)
            name = node.input[0]
        tensor = self._stored[name]
        axes = tuple(range(len(tensor.dims)))
        for node in reversed(steps):
            moved = move_axes(node, axes)
            if moved is None:
                return None
            axes = moved
        return StoredValue(tensor, axes, tuple(steps))
