"""A small builder for ONNX graphs whose weights stay on disk.

The graph names its weights; what they hold is described by `Weight` (a tensor of the checkpoint, perhaps a part of it, perhaps
transposed, or a small array made here) and written later, tile by tile (`data_file.write_weights`). Nodes carry the module paths
of the checkpoint (`/model/layers.0/self_attn/q_proj`), so that graph viewers group them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from maskpro_deploy.exporters.graph.quantization import Quantization

Dim = int | str
Attribute = int | float | str | Sequence[int]

# the float types a graph can have: name -> (ONNX element type, numpy dtype)
DTYPES: dict[str, tuple[int, np.dtype[np.generic]]] = {
    "fp32": (TensorProto.FLOAT, np.dtype(np.float32)),
    "fp16": (TensorProto.FLOAT16, np.dtype(np.float16)),
    "bf16": (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
}
# what to ask for where a float type does not hold a model's numbers
WIDER = {"fp16": "--dtype bf16 (wider range) or --dtype fp32", "bf16": "--dtype fp32"}
CONTRIB = "com.microsoft"  # domain of onnxruntime's own operators


class Rows(Protocol):
    """Values that are read in parts: `rows[a:b]`, `rows[a:b, c:d]`."""

    shape: tuple[int, ...]

    def __getitem__(self, key: Any, /) -> npt.NDArray[Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One initializer that goes into the data file."""

    name: str  # in the graph
    shape: tuple[int, ...]
    source: str = ""  # the checkpoint's tensor; "" if it was made from none, or from several
    transposed: bool = False  # the source is (N, K), the graph wants [K, N]
    start: int = 0  # the weight is a part of the source: outputs `start` and following of `whole` ones; 0 if it is all of it
    whole: int = 0
    longer: bool = False  # the source may have more rows; the first ones are taken
    plus: float = 0.0  # added to every value, such as the 1 of a norm that scales by 1 + weight
    projection: bool = False  # the constant side of a MatMul inside a layer, which an N:M pattern may cover
    # what it holds, if it is not read from the checkpoint under the name `source`: an array made here, such as the cosines of
    # RoPE, or a tensor that a front end has arranged
    values: Rows | None = None
    # how it is stored, if not in the graph's float type; its scales are a weight of their own (`scale_name`)
    quantization: Quantization | None = None
    parts: tuple[Weight, ...] = ()  # weights whose outputs it holds side by side, in place of a source of its own

    @property
    def pieces(self) -> tuple[Weight, ...]:
        """The weights that have sources: its parts, or itself."""
        return self.parts or (self,)

    @property
    def source_shape(self) -> tuple[int, ...]:
        """The shape that the checkpoint's tensor must have."""
        shape = (*self.shape[:-1], self.whole) if self.whole else self.shape
        return shape[::-1] if self.transposed else shape

    @property
    def scale_name(self) -> str:
        """The initializer that holds the scales of a quantised weight."""
        return f"{self.name}_scale"


class Graph:
    """An ONNX graph under construction; without `quantization`, projections are stored in its own float type."""

    def __init__(self, dtype: str, opset: int, quantization: Quantization | None = None) -> None:
        self.dtype, self.opset, self.quantization = dtype, opset, quantization
        self.element_type = DTYPES[dtype][0]
        self.weights: dict[str, Weight] = {}
        self.nodes: list[onnx.NodeProto] = []
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

    def op(
        self,
        kind: str,
        *inputs: str,
        name: str,
        output: str | None = None,
        more_outputs: Sequence[str] = (),
        domain: str = "",
        settings: Mapping[str, Attribute] | None = None,
        **attributes: Attribute,
    ) -> str:
        """Add a node and return the name of its (first) output; its attributes are `settings` and `attributes`."""
        result = output if output is not None else f"{name}/out"
        given = {**(settings or {}), **attributes}
        node = helper.make_node(kind, inputs, [result, *more_outputs], name=name, domain=domain, **given)
        self.nodes.append(node)
        return result

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs declared so far."""
        return [value.name for value in self._inputs]

    def weight(self, weight: Weight) -> str:
        """A weight in the graph's float type; asked for twice, stored once."""
        self.weights.setdefault(weight.name, weight)
        return weight.name

    def matrix(self, weight: Weight, quantization: Quantization | None) -> str:
        """The constant side [K, N] of a MatMul: the weight, or what DequantizeLinear makes of it."""
        if quantization is None:
            return self.weight(weight)
        stored = replace(weight, quantization=quantization)
        self.weight(stored)
        block = quantization.block_for(stored.shape[0])
        # one scale a column, or one for every block of rows
        axis: dict[str, Attribute] = {"axis": 0, "block_size": block} if block else {"axis": 1}
        path = f"/{stored.name.replace('.', '/')}/dequantize"
        return self.op(
            "DequantizeLinear", stored.name, stored.scale_name, name=path, output=f"{stored.name}_float", settings=axis
        )

    def values(self, name: str, values: Rows) -> str:
        """An array made here, cast to the graph's dtype in the data file."""
        return self.weight(Weight(name=name, shape=values.shape, values=values))

    def array(self, name: str, values: npt.NDArray[Any]) -> str:
        """A small array of any type inside the graph file."""
        self._constants.setdefault(name, numpy_helper.from_array(values, name))
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

    def real(self, value: float) -> str:
        """A scalar of the graph's float type inside the graph file."""
        name = f"real_{value!r}".replace("-", "m")
        return self.array(name, np.asarray(value, DTYPES[self.dtype][1]))

    def lowest(self) -> str:
        """The most negative finite scalar of the graph's float type."""
        return self.real(float(ml_dtypes.finfo(DTYPES[self.dtype][1]).min))

    def model(self, stored: Sequence[onnx.TensorProto], metadata: dict[str, str]) -> onnx.ModelProto:
        """The finished model, with initializers that point into the data file."""
        used = {name for node in self.nodes for name in node.input}
        graph = helper.make_graph(
            self.nodes,
            "model",
            self._inputs,
            self._outputs,
            initializer=[*(t for t in stored if t.name in used), *self._constants.values()],
        )
        domains = sorted({node.domain for node in self.nodes})
        opsets = [helper.make_opsetid(domain, 1 if domain else self.opset) for domain in domains]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=11, producer_name="maskpro-deploy")
        helper.set_model_props(model, dict(sorted(metadata.items())))
        return model
