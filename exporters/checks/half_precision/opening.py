"""Opens the graph of a bundle for a comparison: a half-precision one with every value rounded, where onnxruntime lets it.

Whether the runtime keeps the roundings is seen on a small graph first. If it does not, an fp16 graph still runs, in fp32
arithmetic, and the comparison says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from maskpro_deploy.exporters.checks.half_precision.ranges import Probes
from maskpro_deploy.exporters.checks.half_precision.rounding import HALVES, NotRounded, round_graph
from maskpro_deploy.exporters.checks.ort_model import CheckedGraph, model_of, open_model, open_session
from maskpro_deploy.exporters.graph.builder import DTYPES
from maskpro_deploy.manifest import Graph, Manifest, safe_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A graph to compare."""

    model: CheckedGraph
    arithmetic: str = "fp32"  # what it computes in, in words
    unrounded: str = ""  # "fp16 not verified" and why, if a half-precision graph computes in fp32; else ""
    probes: Probes | None = None  # the scalars that tell how large its values become; None in fp32 arithmetic
    routed: bool = False  # it chooses experts in half precision


def open_to_compare(bundle: Path, manifest: Manifest, graph: Graph | None = None) -> Opened:
    """Open a graph of a bundle, by default its own, in its float type's arithmetic (NotRounded: it is bf16, and cannot be)."""
    graph = graph if graph is not None else manifest.graph
    if graph.dtype not in HALVES:
        return Opened(model=open_model(bundle, manifest, graph))
    path = safe_path(bundle, graph.file)
    try:
        _check_roundings(graph.dtype)
        model, places = round_graph(onnx.load(path, load_external_data=False), graph.dtype)
    except NotRounded as e:
        if graph.dtype == "bf16":
            raise
        return Opened(model=open_model(bundle, manifest, graph), unrounded=f"{graph.dtype} not verified: {e}")
    probes = Probes(model, places, graph.dtype)
    session = model_of(model.SerializeToString(), path.parent, manifest, graph, rounded=True)
    arithmetic = f"{graph.dtype}, rounded after every node, accumulated in fp32"
    routed = any(node.op_type == "TopK" for node in model.graph.node)
    return Opened(model=session, arithmetic=arithmetic, probes=probes, routed=routed)


def open_unrounded(bundle: Path, manifest: Manifest) -> CheckedGraph:
    """The half-precision graph of a bundle, its stored weights as they are, computing in fp32."""
    path = safe_path(bundle, manifest.graph.file)
    model, _ = round_graph(onnx.load(path, load_external_data=False), manifest.graph.dtype, rounding=False)
    return model_of(model.SerializeToString(), path.parent, manifest, rounded=True)


@cache
def _check_roundings(dtype: str) -> None:
    """Two products with a rounding behind each, one by a stored constant, must give what numpy gives (else NotRounded)."""
    element, kind = DTYPES[dtype]
    shape = ["n", 4]
    nodes = [
        helper.make_node("MatMul", ["x", "one"], ["a"], name="/first"),
        helper.make_node("Mul", ["a", "two"], ["y"], name="/second"),
    ]
    stored = [helper.make_tensor("one", element, [4, 4], np.eye(4).ravel()), helper.make_tensor("two", element, [1], [2.0])]
    graph = helper.make_graph(
        nodes,
        "roundings",
        [helper.make_tensor_value_info("x", element, shape)],
        [helper.make_tensor_value_info("y", element, shape)],
        initializer=stored,
    )
    model, _ = round_graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11), dtype)
    # between two numbers of either type, within the range only before it is doubled, subnormal, beyond any range
    values = np.asarray([[1 + 2.0**-12, 1 + 3 * 2.0**-9, 1e-7, 1e-41], [65519.0, 4e4, 3e38, -1e-8]], np.float32)
    session = open_session(model.SerializeToString(), rounded=True)
    (computed,) = session.run(None, {"x": values})
    with np.errstate(over="ignore"):
        expected = (values.astype(kind).astype(np.float32) * 2).astype(kind).astype(np.float32)
    if not np.array_equal(computed, expected):
        raise NotRounded(f"this version of onnxruntime leaves out the roundings to {dtype}: it runs such graphs in fp32.")
