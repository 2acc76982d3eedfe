"""What a manifest and an error say of a comparison: why there was none, what the cast lost, what a failure is due to.

A graph that leaves its reference is opened once more with the sums at the end of each layer as outputs; a half-precision one in
its own arithmetic (`half_precision.rounding`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import onnx

from maskpro_deploy.exporters.checks.half_precision.opening import open_unrounded
from maskpro_deploy.exporters.checks.half_precision.rounding import HALVES, NotRounded, round_graph
from maskpro_deploy.exporters.checks.logit_figures import compare_logits
from maskpro_deploy.exporters.checks.ort_model import model_of
from maskpro_deploy.exporters.checks.parity import Reference, choose_tolerance
from maskpro_deploy.exporters.graph.builder import WIDER
from maskpro_deploy.exporters.graph.weight_tiles import Underflow
from maskpro_deploy.manifest import Manifest, safe_path

_END_OF_LAYER = "/add_mlp"
_HEAD = "/lm_head"
_SAME = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2}  # of the largest value of a layer: less is rounding


def describe_unverified(dtype: str, reason: str) -> dict[str, Any]:
    """`verification` of a bundle that was not compared."""
    figures: dict[str, Any] = {"status": "not verified", "reason": reason}
    return figures | {"half_precision": f"{dtype} not verified: {reason}"} if dtype in HALVES else figures


def add_underflow(figures: dict[str, Any], underflow: Underflow) -> dict[str, Any]:
    """The figures, and what the cast of the weights lost, if it is one to half precision."""
    if underflow.dtype not in HALVES:
        return figures
    warnings = [*figures.get("warnings", ()), *filter(None, [underflow.warning()])]
    return figures | {"underflow": underflow.to_json(), "warnings": warnings}


def explain_difference(
    bundle: Path, manifest: Manifest, reference: Reference, prompt: Sequence[int], underflow: Underflow
) -> str:
    """Why a comparison failed, as far as it can be told: half precision, or the first layer that differs."""
    dtype = manifest.graph.dtype
    if fault := describe_checkpoint(reference, prompt):
        return fault
    if lost := underflow.warning():
        return f"{lost}. Export it with {WIDER[dtype]}."
    if dtype in HALVES and _agrees_unrounded(bundle, manifest, reference, prompt):
        return f"In fp32 arithmetic the same weights agree: {dtype} is too coarse for this model. Export it with {WIDER[dtype]}."
    reason = ""
    if isinstance(reference, LayerReference):
        reason = describe_first_difference(compare_layers(bundle, manifest, reference, prompt), dtype)
    if dtype in HALVES:
        reason += f" If --dtype fp32 passes, {dtype} is too coarse for this model: export it with {WIDER[dtype]}."
    return reason.strip()


def describe_checkpoint(reference: Reference, prompt: Sequence[int]) -> str:
    """In one sentence, if the checkpoint itself has no numbers to compare with; else ""."""
    logits = reference.logits(np.asarray([list(prompt)], dtype=np.int64))
    if np.isfinite(logits).all():
        return ""
    kind = "NaN" if np.isnan(logits).any() else "infinite"
    return f"The checkpoint itself gives logits that are {kind}, in fp32: no --dtype changes that."


def _agrees_unrounded(bundle: Path, manifest: Manifest, reference: Reference, prompt: Sequence[int]) -> bool:
    """Whether the stored weights give the reference's logits where nothing else is rounded."""
    try:
        model = open_unrounded(bundle, manifest)
    except NotRounded:
        return False
    tokens, tolerance = np.asarray([list(prompt)], dtype=np.int64), choose_tolerance(manifest.graph)
    pair = compare_logits(model.logits(tokens)[0], reference.logits(tokens)[0], tokens[0])
    within = tolerance.logits is None or pair.max_difference <= tolerance.logits
    return within and pair.sum_kl / pair.positions <= tolerance.kl


@runtime_checkable
class LayerReference(Protocol):
    """A reference that also gives what its layers put out."""

    def hidden_states(self, tokens: npt.NDArray[np.int64]) -> list[npt.NDArray[np.float32]]:
        """What goes into layer 0, 1, ... and, after the last norm, into the output head.  # (B, T) -> (B, T, E) each"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDifference:
    """How far one layer's output, that of the node `name`, is off at most, and the largest value of the reference."""

    name: str
    largest: float
    scale: float


def compare_layers(bundle: Path, manifest: Manifest, reference: LayerReference, prompt: Sequence[int]) -> list[LayerDifference]:
    """Compare the output of every layer on one prompt, first layer first."""
    path = safe_path(bundle, manifest.graph.file)
    model = onnx.load(path, load_external_data=False)
    values = [node.output[0] for node in model.graph.node if node.name.endswith(_END_OF_LAYER)]
    if len(values) != manifest.model.num_layers:
        return []  # a graph of a front end, whose layers have other ends
    # the reference gives its last layer after the last norm
    values[-1:] = [node.input[0] for node in model.graph.node if node.name == _HEAD]
    if rounded := manifest.graph.dtype in HALVES:
        model, _ = round_graph(model, manifest.graph.dtype)
    model.graph.output.extend(onnx.ValueInfoProto(name=value) for value in values)
    tokens = np.asarray([list(prompt)], dtype=np.int64)
    runner = model_of(model.SerializeToString(), path.parent, manifest, rounded=rounded)
    ours = runner.values(tokens, values)
    theirs = reference.hidden_states(tokens)[1:]
    return [
        LayerDifference(
            name=value.removesuffix("/out"), largest=float(np.abs(a.astype(np.float32) - b).max()), scale=float(np.abs(b).max())
        )
        for value, a, b in zip(values, ours, theirs, strict=True)
    ]


def describe_first_difference(differences: Sequence[LayerDifference], dtype: str) -> str:
    """In one sentence: the first layer that is off by more than the rounding of the graph's float type."""
    same = _SAME[dtype]
    for index, layer in enumerate(differences):
        if not layer.largest <= same * layer.scale:  # a NaN is a difference too
            return (
                f"The first layer whose output differs is layer {index} of {len(differences)} ({layer.name}): "
                f"by {layer.largest:.2g}, where values reach {layer.scale:.2g}."
            )
    if not differences:
        return "Its layers cannot be distinguished in the graph."
    return f"No single layer of {len(differences)} is off by more than {same:g} of its largest value."
