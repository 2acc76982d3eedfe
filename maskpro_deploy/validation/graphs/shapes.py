"""Shapes of a graph's values, as far as they are known before it runs."""

from __future__ import annotations

import math

from onnx import GraphProto, ModelProto, TensorProto, checker, helper, shape_inference

Dims = tuple[int | None, ...]
_SMALL = 1 << 10  # elements of a constant whose values may decide shapes


class Shapes:
    """Shapes by value name: those that follow from the graph, else those that the file gives.

    Args:
        model: its weights are not copied.

    Attributes:
        known: whether names mean those of the main graph now; functions and branches have names of their own.
    """

    def __init__(self, model: ModelProto) -> None:
        self.known = True
        self._model = model
        self._dims: dict[str, Dims] | None = None

    def dims(self, name: str) -> Dims | None:
        """The dimensions of a value, None where one is not fixed; None if not even their number is known."""
        if not self.known:
            return None
        if self._dims is None:
            self._dims = _read_declared(self._model.graph) | self._infer()
        return self._dims.get(name)

    def _infer(self) -> dict[str, Dims]:
        try:
            return _read_declared(shape_inference.infer_shapes(_drop_weights(self._model), data_prop=True).graph)
        except (shape_inference.InferenceError, checker.ValidationError, RuntimeError, ValueError, TypeError):
            return {}


def _read_declared(graph: GraphProto) -> dict[str, Dims]:
    shapes = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            shapes[value.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    return shapes


def _drop_weights(model: ModelProto) -> ModelProto:
    """The model with its large constants as inputs."""
    light = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = light.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    named = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _SMALL and tensor.data_location != TensorProto.EXTERNAL:
            graph.initializer.append(tensor)
        elif tensor.name not in named:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return light
