"""The work of `masks infer` and `masks enforce`, and their text: masks from weights that hold N:M, and zeros put back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maskpro_deploy._version import __version__
from maskpro_deploy.checkpoint import Checkpoint, save_sparse
from maskpro_deploy.errors import CheckFailed, FormatError, InputError
from maskpro_deploy.mask_inference import infer_masks, open_masks
from maskpro_deploy.masks import MASKS_FILE, MaskSet
from maskpro_deploy.models import resolve
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.system.files import check_free
from maskpro_deploy.system.output import table
from maskpro_deploy.system.progress import SILENT, Progress
from maskpro_deploy.transform import Transform
from maskpro_deploy.validation.formats.readers import open_source

_SHOWN = 5  # names, or rows of a table; --json has all


def list_prunable(checkpoint: Checkpoint) -> dict[str, int]:
    """The linear layers of a checkpoint as `validate` finds them, with the axis of their inputs."""
    weights = open_source(checkpoint.folder, SILENT).weights
    return {w.name: w.axis for w in weights if w.linear and w.name in checkpoint.shapes}


def infer_mask_file(
    model: str, out: Path, pattern: NMPattern | None, *, force: bool = False, progress: Progress = SILENT
) -> dict[str, Any]:
    """Write a mask file of the weights that hold `pattern`, or the one that is found; `progress` receives layers.

    Raises:
        InputError: `out` exists or is a folder, or the model cannot be read.
        CheckFailed: no weight holds the pattern.
    """
    check_free(out, force=force)
    if out.is_dir():
        raise InputError(f"--out {out} is a folder.\nName the mask file to write, such as {out / MASKS_FILE}.")
    checkpoint = Checkpoint.open(resolve(model))
    axes = list_prunable(checkpoint)
    if (inferred := infer_masks(checkpoint, axes, pattern, progress)) is None:
        wanted = pattern or "an N:M pattern"
        raise CheckFailed(f"{model}: none of its {len(axes)} linear layers holds {wanted}; nothing was written.")
    masks = inferred.masks
    masks.save(out)
    return {
        "out": str(out),
        "sparsity": str(masks.pattern),
        "found": pattern is None,
        "layers": len(masks),
        "weights": masks.num_weights,
        "groups": masks.num_weights // masks.pattern.m,
        "short_groups": sum(inferred.short.values()),
        "short_groups_by_layer": inferred.short,
        "not_listed": list(inferred.others),
        "masks_sha256": masks.sha256(),
    }


def render_inferred(facts: Mapping[str, Any]) -> str:
    """What was inferred: layers that hold the pattern, short groups, layers that do not."""
    pattern, short, others = facts["sparsity"], facts["short_groups_by_layer"], facts["not_listed"]
    lines = [f"layers that hold {pattern}: {facts['layers']}, {facts['weights']:,} weights"]
    if short:
        worst = sorted(short.items(), key=lambda item: -item[1])[:_SHOWN]
        lines += [
            f"groups with fewer nonzeros: {facts['short_groups']:,} of {facts['groups']:,}; masks keep the earliest zeros there",
            table([(name, f"{few:,}") for name, few in worst], ("layers with most of them", "groups")),
        ]
    if others:
        named = ", ".join(others[:_SHOWN]) + (", ..." if len(others) > _SHOWN else "")
        lines.append(f"layers that do not hold it, not listed: {len(others)} ({named})")
    return "\n".join([*lines, f"written to {facts['out']}"])


def enforce_masks(
    model: str, path: Path | None, out: Path, *, force: bool = False, progress: Progress = SILENT
) -> dict[str, Any]:
    """Put zeros back wherever masks have them, and write a sparse checkpoint; `progress` receives its shards.

    `path` names the masks, None those of the model's own folder. What is written is what `masks apply --other-weights` makes of
    the same masks and weights: its hash is that of the weights before.

    Raises:
        InputError: there are no masks, they do not fit, or `out` exists.
        FormatError: a weight has NaN or infinite values.
    """
    check_free(out, force=force)
    filled = Checkpoint.open(resolve(model))
    if filled.folder.resolve().is_relative_to(out.resolve()):
        raise InputError(f"--out {out} would replace {model} itself.\nChoose another --out.")
    if path is None and filled.masks is None:
        raise InputError(f"{model} has no {MASKS_FILE}.\nName the masks of the sparse model it was made from with --masks.")
    source = path or filled.folder / MASKS_FILE
    made = open_masks(source, str(source), list_prunable).masks
    made.check_fits(filled.shapes, f"the masks of {source}", model)
    # the weights are in the masks' bases already: from here on these are their own
    masks = dataclasses.replace(made, dense_sha256=filled.dense_sha256(made), transform=Transform())
    layers = [_measure_dropped(filled, masks, name) for name in masks]
    dropped = _sum_up(layers)
    record = {
        "tool": f"maskpro-deploy {__version__}",
        "method": "masks enforce",
        "model": filled.folder.name,
        "dense_sha256": masks.dense_sha256,
        "masks_sha256": masks.sha256(),
        "masks_made_for": made.dense_sha256 or None,
        **dropped,
    }
    save_sparse(filled, masks, out, record, force=force, progress=progress)
    by_layer = {layer.name: _sum_up([layer]) for layer in layers}
    return {"out": str(out), "sparsity": str(masks.pattern), "layers": len(masks), **dropped, "by_layer": by_layer}


class _Layer(NamedTuple):
    """One masked weight: how many of its values the mask drops that are not zero, and sums of squares."""

    name: str
    size: int
    dropped: int
    square_dropped: float
    square: float  # of the whole weight


def _measure_dropped(filled: Checkpoint, masks: MaskSet, name: str) -> _Layer:
    kept, row = masks.stored_mask(name), 0
    dropped, square_dropped, square = 0, 0.0, 0.0
    for block in filled.read_blocks(name):
        values = block.astype(np.float64)
        lost = values[~kept[row : row + len(block)]]
        dropped += int(np.count_nonzero(lost))
        square_dropped, square = square_dropped + float(lost @ lost), square + float(np.vdot(values, values))
        row += len(block)
    if not math.isfinite(square):
        raise FormatError(f"{filled.folder}: {name} has NaN or infinite values.\nMerge or train it again: no mask repairs them.")
    return _Layer(name, kept.size, dropped, square_dropped, square)


def _sum_up(layers: Sequence[_Layer]) -> dict[str, Any]:
    """Weights dropped, and the share of the Frobenius norm that they had."""
    dropped, whole = sum(layer.square_dropped for layer in layers), sum(layer.square for layer in layers)
    return {
        "weights": sum(layer.size for layer in layers),
        "weights_dropped": sum(layer.dropped for layer in layers),
        "norm_dropped": math.sqrt(dropped / whole) if whole else 0.0,
    }


def render_enforced(facts: Mapping[str, Any]) -> str:
    """What was dropped, in all and in the layers that lost most."""

    def row(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
        return (name, f"{found['weights_dropped']:,}", f"{found['weights']:,}", f"{100 * found['norm_dropped']:.3f} %")

    worst = sorted(facts["by_layer"].items(), key=lambda item: -item[1]["norm_dropped"])[:_SHOWN]
    rows = [row(name, found) for name, found in worst if found["weights_dropped"]]
    rows.append(row(f"all {facts['layers']} layers", facts))
    shown = table(rows, ("layers that lost most", "dropped", "of weights", "of the norm"))
    return f"{shown}\n{facts['sparsity']} masks, written to {facts['out']}"
