"""Writing one graph of a bundle, and checking that what was written can be used."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from maskpro_deploy import manifest
from maskpro_deploy._version import __version__
from maskpro_deploy.backends.onnxruntime_.sessions import REWRITE_NOTHING, open_graph
from maskpro_deploy.exporters.graph.builder import Graph
from maskpro_deploy.exporters.graph.data_file import Blob
from maskpro_deploy.manifest import SparseWeight
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.system.extras import missing

log = logging.getLogger(__name__)


def describe_graph(
    entry: manifest.Graph, blob: Blob, origin: Mapping[str, object], pattern: NMPattern | None, proven: Sequence[SparseWeight]
) -> dict[str, str]:
    """What a graph says of itself: who made it, from what, and which of its weights hold which pattern.

    Figures of a comparison are in the manifest only: they depend on the machine, and equal checkpoints give equal graphs.
    """
    entries = {
        "maskpro.tool": f"maskpro-deploy {__version__}",
        "maskpro.checkpoint": str(origin["checkpoint"]),
        "maskpro.dense_sha256": str(origin["dense_sha256"]),
        "maskpro.data_sha256": blob.sha256,
        "maskpro.dtype": entry.dtype,
        "maskpro.kv_form": entry.form,
    }
    if "front_end" in origin:
        entries["maskpro.front_end"] = str(origin["front_end"])
    if entry.quantization is not None:
        entries["maskpro.quantization"] = entry.quantization
    if pattern is not None:
        names = json.dumps([weight.initializer for weight in proven])
        entries |= {"maskpro.sparsity": str(pattern), "maskpro.sparsity_axis": "0", "maskpro.sparse_weights": names}
    if origin["masks_sha256"]:
        entries["maskpro.masks_sha256"] = str(origin["masks_sha256"])
    return entries


def write_graph(path: Path, graph: Graph, blob: Blob, entries: dict[str, str]) -> None:
    """Write and check a graph: the checker's full check, then a session, because a checked graph need not load."""
    path.write_bytes(graph.model(blob.tensors(), entries).SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path), full_check=True)
    if graph.dtype == "bf16":
        log.info("onnxruntime's CPU kernels have no bf16: the graph was checked, but not opened")
    elif missing("cpu"):
        log.info("onnxruntime is not installed: the graph was checked, but not opened")
    else:
        # without preparing weights: cheap, and every operator must find its kernel
        open_graph(path, threads=1, rewrite=REWRITE_NOTHING, settings={"session.disable_prepacking": "1"})
