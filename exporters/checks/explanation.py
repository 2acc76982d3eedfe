"""What a manifest and an error say of half precision: why it was not verified, what the cast lost, what a failure is due to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskpro_deploy.exporters.checks.half_precision.opening import open_unrounded
from maskpro_deploy.exporters.checks.half_precision.rounding import HALVES, NotRounded
from maskpro_deploy.exporters.checks.layer_check import LayerReference, compare_layers, describe_first_difference
from maskpro_deploy.exporters.checks.logit_figures import compare_logits
from maskpro_deploy.exporters.checks.parity import Reference, choose_tolerance
from maskpro_deploy.exporters.graph.builder import WIDER
from maskpro_deploy.exporters.graph.underflow import Underflow
from maskpro_deploy.manifest import Manifest


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
