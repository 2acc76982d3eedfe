"""The MatMul weights of a written graph: which node uses which bytes of which file.

Read from the ONNX file itself and not from what a manifest says, so that checks see what a builder will see.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnx import NodeProto

from maskpro_deploy.errors import FormatError
from maskpro_deploy.exporters.graph.data_file import ELEMENT_TYPES, Region
from maskpro_deploy.manifest import safe_path
from maskpro_deploy.onnx_graphs.constants import ConstantFinder, external_entries, read_model

_DTYPE_OF = {element: dtype for dtype, element in ELEMENT_TYPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class MatMulWeight:
    """The constant right side [K, N] of one MatMul."""

    node: str  # names of the MatMul and of the weight
    initializer: str
    file: Path  # the data file, and the place in it
    region: Region
    dequantised: bool = False  # a DequantizeLinear stands between the stored weight and the product
    input_quantised: bool = False  # so does one before the other side: the product can run on the integers


def matmul_weights(graph: Path) -> list[MatMulWeight]:
    """All MatMuls by a constant matrix in a data file, dequantised or not, in graph order (FormatError: no ONNX model)."""
    model = read_model(graph)
    constants = ConstantFinder(model.graph)
    weights = (_matmul_weight(node, constants, graph.parent) for node in model.graph.node if node.op_type == "MatMul")
    return [weight for weight in weights if weight is not None]


def _matmul_weight(node: NodeProto, constants: ConstantFinder, folder: Path) -> MatMulWeight | None:
    stored = constants.find(node.input[1])
    # only what is dequantised without zero points, so that zeros stay zeros
    if (
        stored is None
        or len(stored.shape) != 2
        or any(n.op_type != "DequantizeLinear" or len(n.input) != 2 for n in stored.steps)
    ):
        return None
    tensor = stored.tensor
    entries = external_entries(tensor)
    if not entries:
        return None
    if tensor.data_type not in _DTYPE_OF:
        raise FormatError(
            f"{folder}: {tensor.name} is of a type that is not read here; known are {', '.join(d.name for d in ELEMENT_TYPES)}."
        )
    maker = constants.maker(node.input[0])
    return MatMulWeight(
        node=node.name,
        initializer=tensor.name,
        file=safe_path(folder, entries["location"]),
        region=Region(offset=int(entries.get("offset", 0)), shape=stored.shape, dtype=_DTYPE_OF[tensor.data_type]),
        dequantised=bool(stored.steps),
        input_quantised=maker is not None and maker.op_type == "DequantizeLinear",
    )
