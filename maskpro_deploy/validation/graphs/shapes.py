"""Shapes of a graph's values, as far as they are known before it runs."""

from __future__ import annotations

from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper, shape_inference

Dims = tuple[int | None, ...]
_SMALL = 1 << 10  # elements of a constant whose values may decide shapes


class Shapes:
    """Shapes by value name: those that the file gives, and once one is missing, those that follow from them.

    Args:
        model: its weights are not copied.
    """

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self._dims = _declared(model.graph)
        self._inferred = False

    def dims(self, name: str, *, infer: bool = True) -> Dims | None:
        """The dimensions of a value, None where one is not fixed; None if not even their number is known.

        Args:
            name: of the value.
            infer: infer shapes if the file does not give this one; once for the whole graph.
        """
        if infer and not self._inferred:
            self._inferred = True
            self._dims |= self._infer()
        return self._dims.get(name)

    def _infer(self) -> dict[str, Dims]:
        try:
            return _declared(shape_inference.infer_shapes(_without_weights(self._model), data_prop=True).graph)
        except (shape_inference.InferenceError, RuntimeError, ValueError):
            return {}


def _declared(graph: GraphProto) -> dict[str, Dims]:
    found = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            found[value.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    return found


def _without_weights(model: ModelProto) -> ModelProto:
    """The model with its large constants as inputs."""
    light = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = light.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    named = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if _size(tensor) <= _SMALL and tensor.data_location != TensorProto.EXTERNAL:
            graph.initializer.append(tensor)
        elif tensor.name not in named:
            graph.input.append(_as_input(tensor))
    return light


def _size(tensor: TensorProto) -> int:
    size = 1
    for d in tensor.dims:
        size *= d
    return size


def _as_input(tensor: TensorProto) -> ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
