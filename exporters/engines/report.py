"""What went into an engine and what the builder made of it, layer by layer.

*Eligible* means that sparse tensor cores could run the layer: 2:4 along K, a type of 16 or 8 bits, dimensions that fit the
hardware (`preflight`). *Chosen* means that the builder took a sparse kernel. The first is known from the weights, the second only
from a builder that times kernels on a GPU. *Gained* is known only where both engines were timed (`timing`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maskpro_deploy.exporters.engines.kernels import Kernel, mentions, read_kernels
from maskpro_deploy.exporters.engines.preflight import WeightFacts
from maskpro_deploy.exporters.engines.timing.results import Comparison
from maskpro_deploy.manifest import EngineFile

UNKNOWN = "not known ahead of time"
NOT_COMPARED = "not measured (--compare-dense builds the dense engine too and times both)"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One MatMul of the graph."""

    weight: str  # the initializer, and the MatMul that uses it
    node: str
    shape: tuple[int, ...]  # (K, N)
    dtype: str  # of the stored weight
    bytes: int
    tensor_cores: str  # "fits", "small" or "misaligned" (`preflight.WeightFacts`)
    eligible: bool  # sparse tensor cores could run it
    reason: str  # why not; "" if eligible
    chosen: str  # "yes", "no" or why it is not known
    kernel: str = ""  # the kernels that run it, where the engine could be asked

    @property
    def kind(self) -> str:
        """The layer's name without its place in the model, such as "q_proj"."""
        return self.weight.removesuffix(".weight").rsplit(".", 1)[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """An engine, how it was built, and its layers."""

    engine: EngineFile  # the entry in the manifest
    bytes: int  # of the engine
    reused: bool  # it was there already, built from the same graph with the same settings and library
    build_s: float  # seconds of the build, and most memory of its process
    peak_rss_bytes: int
    warnings: tuple[str, ...]  # what the library warned of
    layers: tuple[LayerRow, ...]  # every MatMul with a constant weight
    spoiled: dict[str, int]  # pruned weights that the graph keeps from sparse tensor cores, by cause
    log_eligible: int | None = None  # layers that the builder's log calls eligible; None if it has no word about sparsity
    comparison: Comparison | None = None  # the dense engine next to it, if it was asked for

    def to_json(self) -> dict[str, Any]:
        value = {**dataclasses.asdict(self), "gain": self.gain, "break_even": None, "layer_break_even": None}
        if self.comparison is not None:
            value["break_even"] = self.comparison.break_even
            value["layer_break_even"] = {row.weight: self.comparison.layer_break_even(row.weight) for row in self.layers}
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EngineReport:
        """The report that `to_json` wrote; KeyError or TypeError if another version did."""
        fields = {name: value[name] for name in cls.__dataclass_fields__}
        compared = fields["comparison"]
        return cls(
            **fields
            | {
                "engine": EngineFile.from_json(fields["engine"]),
                "warnings": tuple(fields["warnings"]),
                "layers": tuple(LayerRow(**{**row, "shape": tuple(row["shape"])}) for row in fields["layers"]),
                "comparison": Comparison.from_json(compared) if compared is not None else None,
            }
        )

    @property
    def gain(self) -> str:
        """What sparsity gained in speed, in one sentence."""
        return self.comparison.sentence if self.comparison is not None else NOT_COMPARED


def layer_rows(weights: Sequence[WeightFacts], *, dense: bool, facts: Mapping[str, Any]) -> tuple[LayerRow, ...]:
    """One row per MatMul; `facts` is the worker's result (`worker.run`)."""
    kernels = read_kernels(facts["inspection"])
    return tuple(_row(weight, kernels, dense=dense, facts=facts) for weight in weights)


def _row(weight: WeightFacts, kernels: Sequence[Kernel] | None, *, dense: bool, facts: Mapping[str, Any]) -> LayerRow:
    node = weight.weight.node
    mine = [kernel for kernel in kernels or () if mentions(kernel.text, node)]
    if dense:
        chosen = "no"
    elif not facts["spoke"] and kernels is None:
        chosen = "no" if weight.reason else UNKNOWN
    else:
        logged = any(mentions(name, node) for name in facts["chosen"])
        chosen = "yes" if logged or any(kernel.sparse for kernel in mine) else "no"
    return LayerRow(
        weight=weight.weight.initializer,
        node=node,
        shape=weight.weight.region.shape,
        dtype=weight.weight.region.dtype.name,
        bytes=weight.weight.region.bytes,
        tensor_cores=weight.tensor_cores,
        eligible=not weight.reason,
        reason=weight.reason,
        chosen=chosen,
        kernel=", ".join(dict.fromkeys(kernel.tactic for kernel in mine if kernel.tactic)),
    )


def sentence(library: str, rows: Sequence[LayerRow], *, dense: bool) -> str:
    """What is known about sparse kernels in the engine, in words."""
    if dense:
        return "none: built dense"
    eligible = sum(row.eligible for row in rows)
    chosen = sum(row.chosen == "yes" for row in rows)
    if not eligible and not chosen:
        return f"none: no layer is eligible (of {len(rows)})"
    if any(row.chosen == UNKNOWN for row in rows):
        ahead = "built ahead of time; this library does not select sparse kernels at build time"
        return f"{ahead} ({eligible} of {len(rows)} layers are eligible)"
    return f"{library} chose sparse kernels for {chosen} of {len(rows)} layers ({eligible} eligible)"
