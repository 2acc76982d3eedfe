"""A graph run in stages, on many texts, with weights that may change between the stages.

The graph is cut before the nodes that use a value. What later nodes read is kept from one stage to the next, for each text;
nothing is computed twice, however many cuts there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from maskpro_deploy.backends.onnxruntime_.sessions import open_graph

Values = dict[str, npt.NDArray[Any]]

_STAGE = "stage.onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The nodes `start` to `stop` of a graph."""

    start: int
    stop: int
    reads: tuple[str, ...]  # values of earlier stages and inputs of the graph that they use
    keeps: tuple[str, ...]  # values made here that later stages use
    done: tuple[str, ...]  # values that no later stage uses


def cut_stages(model: onnx.ModelProto, cuts: Sequence[int]) -> Iterator[Stage]:
    """The nodes before the first cut, those from there to the second, and so on; cuts are numbers of nodes, ascending."""
    nodes = model.graph.node
    constant = {tensor.name for tensor in model.graph.initializer}
    # the node at the last cut tells what must be there in the end
    last = {name: at for at, node in enumerate(nodes[: cuts[-1] + 1]) for name in _list_reads(node) if name not in constant}
    made: set[str] = set()
    live: set[str] = set()
    start = 0
    for stop in cuts:
        read = [name for node in nodes[start:stop] for name in _list_reads(node) if name not in constant]
        here = {name for node in nodes[start:stop] for name in node.output if name}
        reads = tuple(sorted(set(read) - here))
        made |= here
        keeps = tuple(sorted(name for name in here if last.get(name, -1) >= stop))
        live |= {*reads, *keeps}
        done = tuple(sorted(name for name in live if last[name] < stop))
        live -= set(done)
        yield Stage(start=start, stop=stop, reads=reads, keeps=keeps, done=done)
        start = stop


def _list_reads(node: onnx.NodeProto) -> list[str]:
    """The values that a node uses, in its branches too."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            own = {name for inner in graph.node for name in inner.output}
            names += [name for inner in graph.node for name in _list_reads(inner) if name not in own]
    return names


class Stream:
    """A model with its own fp32 weights in the file `data`, and what it has made of each text, beginning with `inputs`."""

    def __init__(self, model: onnx.ModelProto, data: Path, inputs: Sequence[Values]) -> None:
        self.values: list[Values] = [dict(values) for values in inputs]
        self._model, self._data = model, data
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}

    def advance(self, stage: Stage) -> None:
        """Run the nodes of the next stage."""
        if stage.keeps:
            session = self._open_session(stage)
            for values in self.values:
                made = session.run(list(stage.keeps), {name: values[name] for name in stage.reads})
                values.update(zip(stage.keeps, made, strict=True))
        for values in self.values:
            for name in stage.done:
                values.pop(name, None)

    def change(self, name: str, weight: npt.NDArray[np.float32]) -> None:
        """Other values for a weight; stages to come use them.  # [K, N]"""
        if (tensor := self._initializers.get(name)) is None:  # a tied head, which is not stored by itself
            return
        offset = next(int(entry.value) for entry in tensor.external_data if entry.key == "offset")
        stored = np.memmap(self._data, np.float32, "r+", offset=offset, shape=tuple(tensor.dims))
        stored[:] = weight
        stored.flush()

    def _open_session(self, stage: Stage) -> Any:
        nodes = self._model.graph.node[stage.start : stage.stop]
        used = {name for node in nodes for name in _list_reads(node)}
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
            for name, value in ((name, self.values[0][name]) for name in stage.reads)
        ]
        graph = helper.make_graph(
            nodes,
            "stage",
            inputs,
            [onnx.ValueInfoProto(name=name) for name in stage.keeps],
            initializer=[self._point_here(tensor) for name, tensor in self._initializers.items() if name in used],
        )
        part = onnx.ModelProto()
        part.CopyFrom(onnx.ModelProto(ir_version=self._model.ir_version, opset_import=self._model.opset_import, graph=graph))
        path = self._data.parent / _STAGE
        path.write_bytes(part.SerializeToString())
        return open_graph(path)

    def _point_here(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """The tensor, in this stream's own file if it is in one."""
        moved = onnx.TensorProto()
        moved.CopyFrom(tensor)
        for entry in moved.external_data:
            if entry.key == "location":
                entry.value = self._data.name
        return moved
