"""Small ONNX models around one weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def save_model(
    folder: Path | str,
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, Any],
    *,
    inputs: Sequence[str] = ("x",),
    outputs: Sequence[str] = ("y",),
    external: bool = False,
    opset: int = 23,
    name: str = "m.onnx",
) -> Path:
    """Write a model; `constants` maps names to arrays or TensorProtos."""
    initializers = []
    for key, value in constants.items():
        tensor = value if isinstance(value, TensorProto) else numpy_helper.from_array(np.ascontiguousarray(value), key)
        tensor.name = key
        initializers.append(tensor)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(i, FLOAT, None) for i in inputs],
        [helper.make_tensor_value_info(o, FLOAT, None) for o in outputs],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)])
    path = Path(folder) / name
    if external:
        onnx.save(model, path, save_as_external_data=True, location=f"{name}.data", size_threshold=0)
    else:
        onnx.save(model, path)
    return path


def change_external_data(path: Path, **entries: str) -> None:
    """Change where a model says that its first weight lies: `location`, `offset` or `length`."""
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer[0]
    changed = {e.key: e.value for e in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, value in changed.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, **attributes)


def product(weight: str, orientation: str, float_input: str = "x") -> tuple[list[onnx.NodeProto], int]:
    """The nodes that multiply with `weight`, and the axis that its groups must lie on.

    Orientations: "xw" and "wx" (MatMul), "gemm" and "gemmT" (Gemm, weight second), "gemmA" and "gemmAT" (Gemm, weight first).
    """
    return {
        "xw": ([node("MatMul", [float_input, weight], ["y"])], 0),
        "wx": ([node("MatMul", [weight, float_input], ["y"])], 1),
        "gemm": ([node("Gemm", [float_input, weight], ["y"])], 0),
        "gemmT": ([node("Gemm", [float_input, weight], ["y"], transB=1)], 1),
        "gemmA": ([node("Gemm", [weight, float_input], ["y"])], 1),
        "gemmAT": ([node("Gemm", [weight, float_input], ["y"], transA=1)], 0),
    }[orientation]


ORIENTATIONS = ("xw", "wx", "gemm", "gemmT", "gemmA", "gemmAT")
