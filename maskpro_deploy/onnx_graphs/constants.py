"""From a value of a graph back to the stored tensor that it is, through the nodes that keep or permute its axes.

`move_axes` is the one place that says which nodes these are; whoever also needs the numbers (the checker) adds what the same
nodes do to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from onnx import GraphProto, NodeProto, TensorProto

from maskpro_deploy.onnx_graphs.nodes import STANDARD, get_integers

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
    """A value that is an initializer with permuted axes, converted or not.

    Attributes:
        tensor: the initializer.
        axes: axis `i` of the value is axis `axes[i]` of the initializer.
        steps: the nodes between the two, the one that makes the value first.
    """

    tensor: TensorProto
    axes: tuple[int, ...]
    steps: tuple[NodeProto, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value."""
        return tuple(self.tensor.dims[i] for i in self.axes)


class ConstantFinder:
    """Finds the initializers behind the values of a graph.

    Args:
        graph: its nodes in any order.
    """

    def __init__(self, graph: GraphProto) -> None:
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._maker = {output: node for node in graph.node for output in node.output if output}

    def maker(self, name: str) -> NodeProto | None:
        """The node that makes a value."""
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
