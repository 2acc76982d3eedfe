"""The MatMul weights of a written graph: which node uses which bytes of which file.

Read from the ONNX file itself and not from what a manifest says, so that checks see what a builder will see.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from maskpro_deploy.errors import FormatError
from maskpro_deploy.exporters.graph.data_file import ELEMENT_TYPES, Region
from maskpro_deploy.manifest import safe_path

_DTYPE_OF = {element: dtype for dtype, element in ELEMENT_TYPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class MatMulWeight:
    """The constant right side [K, N] of one MatMul.

    Attributes:
        node: the MatMul's name.
        initializer: the weight's name.
        file: the data file.
        region: where it lies in there.
        dequantised: a DequantizeLinear stands between the stored weight and the product.
        input_quantised: so does one before the other side: the product can run on the integers.
    """

    node: str
    initializer: str
    file: Path
    region: Region
    dequantised: bool = False
    input_quantised: bool = False


def matmul_weights(graph: Path) -> list[MatMulWeight]:
    """All MatMuls whose right side is a constant matrix in a data file, dequantised or not, in graph order.

    Raises:
        FormatError: the file is no ONNX model, or names data outside its folder.
    """
    try:
        model = onnx.load(graph, load_external_data=False)
    except Exception as e:  # protobuf has several kinds; all mean the same
        raise FormatError(f"{graph} is no ONNX model: {e}") from e
    constants = {t.name: t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL and len(t.dims) == 2}
    dequantised = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants and len(node.input) == 2:
            constants[node.output[0]] = constants[node.input[0]]
    return [
        _weight(
            node.name,
            constants[node.input[1]],
            graph.parent,
            dequantised=node.input[1] in dequantised,
            input_quantised=node.input[0] in dequantised,
        )
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in constants
    ]


def _weight(node: str, tensor: onnx.TensorProto, folder: Path, *, dequantised: bool, input_quantised: bool) -> MatMulWeight:
    place = {entry.key: entry.value for entry in tensor.external_data}
    if tensor.data_type not in _DTYPE_OF:
        raise FormatError(
            f"{folder}: {tensor.name} is of a type that is not read here; known are {', '.join(d.name for d in ELEMENT_TYPES)}."
        )
    region = Region(offset=int(place.get("offset", 0)), shape=tuple(tensor.dims), dtype=_DTYPE_OF[tensor.data_type])
    return MatMulWeight(
        node=node,
        initializer=tensor.name,
        file=safe_path(folder, place["location"]),
        region=region,
        dequantised=dequantised,
        input_quantised=input_quantised,
    )
