"""From a front end's graph to ours: the same operators, but our names, and weights as [K, N] constants.

    MatMul(x, Transpose(W))      MatMul(x, W')    W' [K, N], quantised where that is asked for
    logits in the float type     logits in fp32

So everything behind the graph, from the streamed data file to the proofs, is the same as for a template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.exporters.frontends.base import ForeignModel, ForeignWeight
from maskpro_deploy.exporters.graph.builder import DTYPES, Graph, Weight

_SMALL = 4096  # values of a constant that lies in the graph file


class Translation:
    """One graph, node by node, into one whose inputs are declared; `folder` and `form` are for messages."""

    def __init__(self, graph: Graph, model: ForeignModel, weights: Mapping[str, ForeignWeight], folder: Path, form: str) -> None:
        self._graph, self._model, self._weights, self._folder, self._form = graph, model, weights, folder, form
        # Transpose(W) -> W, for weights of two dimensions
        self._turned = {
            n.output[0]: n.input[0]
            for n in model.nodes
            if n.op_type == "Transpose" and len(model.parameters.get(n.input[0], ())) == 2
        }
        self._first_with: dict[tuple[object, ...], str] = {}  # storage -> the initializer that holds it
        self._names = {model.logits: "logits" if graph.dtype == "fp32" else "logits_stored"}
        self._taken: set[str] = set()  # names of nodes: a weight may be multiplied twice, and runtimes want each name once

    def rename(self, value: str, name: str) -> None:
        """Let a value of the front end's graph have this name in ours."""
        self._names[value] = name

    def _list_reads(self, node: onnx.NodeProto) -> Sequence[str]:
        """What a node, or that which takes its place, reads."""
        return list(node.input)

    def _replace(self, node: onnx.NodeProto) -> bool:
        """Put something else in the place of a node, and say whether it did."""
        return False

    def run(self) -> None:
        """All nodes that logits and further outputs need, and the logits as an output.

        Raises:
            InputError: the graph reads something that the form does not have, or has an operator that its opset lacks.
            FormatError: the checkpoint lacks a tensor, or has it in another shape.
        """
        graph, live = self._graph, self._live_nodes()
        products = [node for node in live if self._find_factor(node) is not None]
        head = products[-1].output[0] if products else ""
        # turned weights that something else than a product reads
        read = {name for node in live if self._find_factor(node) is None for name in node.input}
        for node in live:
            if self._replace(node):
                continue
            if (factor := self._find_factor(node)) is not None:
                self._multiply(node, *factor, is_head=node.output[0] == head)
            elif node.output[0] not in self._turned or node.output[0] in read:
                self._copy_node(node)
        if graph.dtype != "fp32":
            graph.op("Cast", "logits_stored", name="/lm_head/float", output="logits", to=TensorProto.FLOAT)
        graph.output("logits", TensorProto.FLOAT, ["batch", "new", self._model.vocab_size])

    def _live_nodes(self) -> list[onnx.NodeProto]:
        """The nodes that the outputs need."""
        needed, live = {self._model.logits, *self._model.outputs}, []
        for node in reversed(self._model.nodes):
            if needed & set(node.output):
                needed |= set(self._list_reads(node))
                live.append(node)
        free = needed - {output for node in live for output in node.output}
        declared = {*self._graph.inputs, *self._model.constants, *self._model.parameters, ""}
        if strange := sorted(free - declared):
            raise InputError(
                f"{self._folder}: the graph of this architecture reads {strange[0]!r}, which the {self._form!r} "
                f"form does not have.\nExport other --forms."
            )
        return live[::-1]

    def _find_factor(self, node: onnx.NodeProto) -> tuple[str, bool] | None:
        """The weight on the right side of a product, and whether it is stored (N, K)."""
        if node.op_type != "MatMul":
            return None
        right = node.input[1]
        if right in self._turned:
            return self._turned[right], True
        return (right, False) if len(self._model.parameters.get(right, ())) == 2 else None

    def _input_name(self, value: str) -> str:
        """Our name of a value; declares the weight or constant that it names."""
        if value in self._model.parameters:
            return self._widen(value, self._add_weight(value))
        if value in self._model.constants:
            return self._add_constant(value)
        return self._names.get(value, value)

    def _multiply(self, node: onnx.NodeProto, name: str, turned: bool, *, is_head: bool) -> None:
        graph, x, output = self._graph, self._input_name(node.input[0]), self._names.get(node.output[0], node.output[0])
        place = f"/{name.removesuffix('.weight').replace('.', '/').replace('/layers/', '/layers.')}"
        path = self._take_name("/lm_head" if is_head else place)
        quantization = graph.quantization
        if is_head and quantization is not None:
            quantization = quantization.of_head()
        held = self._first_with.get(self._weight_of(name).storage)
        if is_head and turned and quantization is None and held is not None:  # tied: stored once, as (N, K)
            constant = graph.op("Transpose", held, name=f"{path}/tied", perm=[1, 0])
        else:
            shape = self._model.parameters[name]
            constant = graph.matrix(self._describe(name, shape[::-1] if turned else shape, turned, not is_head), quantization)
        graph.op("MatMul", x, self._widen(name, constant), name=path, output=output)

    def _take_name(self, name: str) -> str:
        """A name for a node, with a number behind it if the name itself is taken."""
        free = next(f"{name}_{i}" if i else name for i in count() if (f"{name}_{i}" if i else name) not in self._taken)
        self._taken.add(free)
        return free

    def _add_weight(self, name: str) -> str:
        """A weight as it is, stored once however many names it has."""
        held = self._first_with.setdefault(self._weight_of(name).storage, name)
        return self._graph.weight(self._describe(held, self._model.parameters[held], False, False))

    def _widen(self, name: str, constant: str) -> str:
        """A stored weight in the type that the front end's graph has it in."""
        if name not in self._model.wide:
            return constant
        return self._graph.op("Cast", constant, name=self._take_name(f"/{constant}/wide"), to=TensorProto.FLOAT)

    def _describe(self, name: str, shape: tuple[int, ...], turned: bool, projection: bool) -> Weight:
        weight, stored = self._weight_of(name), shape[::-1] if turned else shape
        if weight.rows.shape != stored:
            raise FormatError(
                f"{self._folder}: {name} has shape {weight.rows.shape}, its config.json calls for {stored}.\n"
                f"Weights and config.json belong to different models."
            )
        whole = Weight(
            name=name,
            shape=shape,
            source=weight.sources[0] if len(weight.sources) == 1 else "",
            transposed=turned,
            projection=projection,
            values=weight.rows,
        )
        if not (turned and weight.parts):
            return whole
        parts = (
            replace(whole, name=p.sources[0], shape=p.rows.shape[::-1], source=p.sources[0], values=p.rows) for p in weight.parts
        )
        return Weight(name=name, shape=shape, projection=projection, parts=tuple(parts))

    def _weight_of(self, name: str) -> ForeignWeight:
        if name not in self._weights:
            raise FormatError(f"{self._folder} has no tensor for {name!r}, which this front end calls for.")
        return self._weights[name]

    def _add_constant(self, name: str) -> str:
        """Small arrays and those of another type lie in the graph file, large ones in the data file."""
        values = self._model.constants[name]
        if values.size > _SMALL and values.dtype == DTYPES[self._graph.dtype][1]:
            return self._graph.values(name, values.astype(np.float64))
        return self._graph.array(name, values)

    def _copy_node(self, node: onnx.NodeProto) -> None:
        opset = self._graph.opset
        if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type, opset):
            raise InputError(f"{self._folder}: this architecture needs the operator {node.op_type}, which opset {opset} lacks.")
        ours = onnx.NodeProto()
        ours.CopyFrom(node)
        del ours.metadata_props[:]
        ours.name = self._take_name(f"/{node.name}")
        ours.input[:] = [self._input_name(value) for value in node.input]
        ours.output[:] = [self._names.get(value, value) for value in node.output]
        self._graph.nodes.append(ours)
