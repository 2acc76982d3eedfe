"""What went into an engine and what the builder made of it, layer by layer.

*Eligible* means that sparse tensor cores could run the layer: 2:4 along K, a 16-bit type, dimensions that fit the hardware.
*Chosen* means that the builder took a sparse kernel. The first is known from the weights, the second only from a builder that
times kernels on a GPU.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from maskpro_deploy.exporters.graph_weights import MatMulWeight
from maskpro_deploy.exporters.proof import count_groups
from maskpro_deploy.exporters.settings import SPARSE_TENSOR_CORES
from maskpro_deploy.exporters.sparsity_log import SPARSE_KERNEL, mentions
from maskpro_deploy.manifest import EngineFile

UNKNOWN = "not known ahead of time"
# what the 16-bit sparse kernels ask of K and N (the minima that cuSPARSELt's users enforce)
_ALIGNED_K, _ALIGNED_N = 16, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One MatMul of the graph.

    Attributes:
        weight: the initializer.
        node: the MatMul.
        shape: (K, N).
        eligible: sparse tensor cores could run it.
        reason: why not; "" if eligible.
        chosen: "yes", "no" or why it is not known.
    """

    weight: str
    node: str
    shape: tuple[int, ...]
    eligible: bool
    reason: str
    chosen: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """An engine, how it was built, and its layers.

    Attributes:
        engine: the entry in the manifest.
        bytes: size of the engine.
        reused: it was there already, built from the same graph with the same settings and library.
        build_s: seconds of the build.
        peak_rss_bytes: most memory of the building process.
        warnings: what the library warned of.
        layers: every MatMul with a constant weight.
    """

    engine: EngineFile
    bytes: int
    reused: bool
    build_s: float
    peak_rss_bytes: int
    warnings: tuple[str, ...]
    layers: tuple[LayerRow, ...]

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "gain": self.gain}

    @property
    def gain(self) -> str:
        """What sparsity gained in speed."""
        return "not measured"


def eligibility(weight: MatMulWeight, dtype: str) -> str:
    """Why sparse tensor cores cannot run this weight; "" if they can."""
    k, n = weight.region.shape
    if k % SPARSE_TENSOR_CORES.m:
        return f"K {k} is no multiple of {SPARSE_TENSOR_CORES.m}"
    if count_groups(weight.file, weight.initializer, weight.region, SPARSE_TENSOR_CORES).over:
        return f"does not hold {SPARSE_TENSOR_CORES}"
    if dtype == "fp32":
        return "fp32: sparse tensor cores take 16 and 8 bits"
    if k % _ALIGNED_K or n % _ALIGNED_N:
        return f"K {k} or N {n} is no multiple of {_ALIGNED_K}"
    return ""


def layer_rows(weights: Sequence[MatMulWeight], dtype: str, *, dense: bool, facts: dict[str, Any]) -> tuple[LayerRow, ...]:
    """One row per MatMul.

    Args:
        weights: of the graph that was built.
        dtype: of the graph.
        dense: the engine was built without sparse kernels.
        facts: the worker's result (`engine_worker.run`).
    """
    kernels = sparse_layers(facts["inspection"])
    rows = []
    for weight in weights:
        reason = eligibility(weight, dtype)
        if dense:
            chosen = "no"
        elif not facts["spoke"] and kernels is None:
            chosen = UNKNOWN
        else:
            names = [*facts["chosen"], *(kernels or ())]
            chosen = "yes" if any(mentions(name, weight.node) for name in names) else "no"
        rows.append(
            LayerRow(
                weight=weight.initializer,
                node=weight.node,
                shape=weight.region.shape,
                eligible=not reason,
                reason=reason,
                chosen=chosen,
            )
        )
    return tuple(rows)


def sparse_layers(inspection: str) -> list[str] | None:
    """Names of the layers that run a sparse kernel, from an engine inspector's JSON; None without one."""
    if not inspection:
        return None
    layers = json.loads(inspection).get("Layers", [])
    detailed = [layer for layer in layers if isinstance(layer, dict)]
    return [
        f"{layer.get('Name', '')} {layer.get('Metadata', '')}"
        for layer in detailed
        if SPARSE_KERNEL.search(str(layer.get("TacticName", "")))
    ]


def sentence(library: str, rows: Sequence[LayerRow], *, dense: bool) -> str:
    """What is known about sparse kernels in the engine, in words."""
    eligible = sum(row.eligible for row in rows)
    if dense:
        return "none: built dense"
    if all(row.chosen == UNKNOWN for row in rows):
        ahead = "built ahead of time; this library does not select sparse kernels at build time"
        return f"{ahead} ({eligible} of {len(rows)} layers are eligible)"
    chosen = sum(row.chosen == "yes" for row in rows)
    return f"{library} chose sparse kernels for {chosen} of {eligible} eligible layers (of {len(rows)})"
