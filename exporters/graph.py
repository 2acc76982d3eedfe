"""A small builder for ONNX graphs whose weights stay on disk.

The graph names its weights; what they hold is described by `Weight` (a tensor of the checkpoint, perhaps transposed, or a
small array made here) and written later, tile by tile, by `blob.write_weights`. Nodes carry the module paths of the
checkpoint (`/model/layers.0/self_attn/q_proj`), so that graph viewers group them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

Dim = int | str
Attribute = int | float | str | Sequence[int]

# the float types a graph can have: name -> (ONNX element type, numpy dtype)
DTYPES: dict[str, tuple[int, np.dtype[np.generic]]] = {
    "fp32": (TensorProto.FLOAT, np.dtype(np.float32)),
    "fp16": (TensorProto.FLOAT16, np.dtype(np.float16)),
    "bf16": (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One initializer that goes into the data file.

    Attributes:
        name: its name in the graph.
        shape: its shape in the graph.
        source: the checkpoint's tensor; "" if `values` holds it.
        transposed: the source is (N, K), the graph wants [K, N].
        values: an array made here, such as the cosines of RoPE.
    """

    name: str
    shape: tuple[int, ...]
    source: str = ""
    transposed: bool = False
    values: npt.NDArray[np.float64] | None = None


class Graph:
    """An ONNX graph under construction.

    Args:
        dtype: the float type of weights and activations: "fp32", "fp16" or "bf16".
        opset: version of the standard operators.
    """

    def __init__(self, dtype: str, opset: int) -> None:
        self.dtype, self.opset = dtype, opset
        self.element_type = DTYPES[dtype][0]
        self.weights: dict[str, Weight] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def input(self, name: str, element_type: int, shape: Sequence[Dim]) -> str:
        """Declare an input; string dimensions are dynamic."""
        self._inputs.append(helper.make_tensor_value_info(name, element_type, shape))
        return name

    def output(self, name: str, element_type: int, shape: Sequence[Dim]) -> None:
        """Declare the value `name`, which a node must produce, as an output."""
        self._outputs.append(helper.make_tensor_value_info(name, element_type, shape))

    def op(self, kind: str, *inputs: str, name: str, output: str | None = None, **attributes: Attribute) -> str:
        """Add a node with one output and return the output's name."""
        result = output if output is not None else f"{name}/out"
        self._nodes.append(helper.make_node(kind, inputs, [result], name=name, **attributes))
        return result

    def weight(self, name: str, shape: Sequence[int], *, transposed: bool = False) -> str:
        """A tensor of the checkpoint under its own name; asked for twice, stored once."""
        self.weights.setdefault(name, Weight(name=name, shape=tuple(shape), source=name, transposed=transposed))
        return name

    def values(self, name: str, values: npt.NDArray[np.float64]) -> str:
        """An array made here, cast to the graph's dtype in the data file."""
        self.weights[name] = Weight(name=name, shape=values.shape, values=values)
        return name

    def ints(self, *values: int) -> str:
        """A small int64 vector inside the graph file."""
        name = "ints_" + "_".join(str(v).replace("-", "m") for v in values)
        self._constants.setdefault(name, helper.make_tensor(name, TensorProto.INT64, [len(values)], list(values)))
        return name

    def scalar(self, value: int) -> str:
        """An int64 scalar inside the graph file."""
        name = f"int_{value}".replace("-", "m")
        self._constants.setdefault(name, helper.make_tensor(name, TensorProto.INT64, [], [value]))
        return name

    def model(self, stored: Sequence[onnx.TensorProto], metadata: dict[str, str]) -> onnx.ModelProto:
        """The finished model, with initializers that point into the data file."""
        graph = helper.make_graph(
            self._nodes, "model", self._inputs, self._outputs, initializer=[*stored, *self._constants.values()]
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=11, producer_name="maskpro-deploy"
        )
        helper.set_model_props(model, dict(sorted(metadata.items())))
        return model
