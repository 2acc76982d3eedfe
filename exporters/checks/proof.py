"""Proof that the written weights hold the N:M pattern, read back from the data file's final bytes.

A group is M consecutive values down axis 0 of a [K, N] weight (the reduction axis, where TensorRT looks). It holds the pattern
if at most N of its values have a bit set: a pruned weight is +0.0 and nothing else. A kept weight may be zero itself, or have
become zero in a cast: such groups are counted, they are no fault.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import CheckFailed, InputError
from maskpro_deploy.exporters.graph.builder import Weight
from maskpro_deploy.exporters.graph.data_file import INT4, Blob, Region
from maskpro_deploy.manifest import SparseWeight
from maskpro_deploy.mask_inference import infer_masks
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.system.progress import SILENT, Progress
from maskpro_deploy.validation import validate
from maskpro_deploy.validation.arrays import FlatArray, MemoryArray, NibbleArray
from maskpro_deploy.validation.formats.names import reduction_axis
from maskpro_deploy.validation.law import Tally, scan

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The pattern that has to be proven, and the checkpoint's names of the weights that hold it, or another one of `others`."""

    pattern: NMPattern
    names: tuple[str, ...]
    others: Mapping[str, NMPattern] = field(default_factory=dict)

    def pattern_of(self, name: str) -> NMPattern:
        """The pattern that a weight of the checkpoint holds."""
        return self.others.get(name, self.pattern)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was proven: the pattern that all `weights`, an entry for each source, hold.

    `groups_below_n` counts groups with fewer than N non-zeros: their kept weights are zero themselves.
    """

    pattern: NMPattern
    weights: tuple[SparseWeight, ...]
    groups_below_n: int


def list_prunable(weights: Mapping[str, Weight]) -> list[str]:
    """The checkpoint's names of the projections inside the layers."""
    return list(dict.fromkeys(p.source for w in weights.values() if w.projection for p in w.pieces if p.source))


def find_masks(checkpoint: Checkpoint, weights: Mapping[str, Weight], required: NMPattern | None) -> MaskSet | None:
    """The masks of a checkpoint: its own, or those that its projections hold: most of their weights, all if it is required."""
    if checkpoint.masks is not None:
        return checkpoint.masks
    shapes = {name: checkpoint.shapes.get(name, ()) for name in list_prunable(weights)}
    matrices = (name for name, shape in shapes.items() if len(shape) == 2)
    axes = {name: axis for name in matrices if (axis := reduction_axis(name, checkpoint.config)) is not None}
    inferred = infer_masks(checkpoint, axes, required)
    if inferred is None or (required is not None and len(inferred.masks) < len(shapes)):
        return None
    if 2 * inferred.masks.num_weights <= sum(math.prod(shape) for shape in shapes.values()):
        return None
    masks, short = inferred.masks, sum(inferred.short.values())
    filled = f" (groups with fewer nonzeros: {short:,})" if short else ""
    log.warning(
        "%s has no mask file, but %s holds in %d of %d projections%s: it is exported as sparse",
        checkpoint.folder, masks.pattern, len(masks), len(shapes), filled,
    )  # fmt: skip
    return masks


def check_claim(checkpoint: Checkpoint, required: NMPattern | None) -> None:
    """Refuse, before anything is built, what can never be proven.

    Raises:
        CheckFailed: the masks are of another pattern than the one that is required.
        InputError: the checkpoint is sparse, and its kind of model does to its embedded tokens what a proof cannot follow.
    """
    masks = checkpoint.masks
    if required is not None and masks is not None and masks.pattern != required:
        raise CheckFailed(
            f"{checkpoint.folder} has masks of the pattern {masks.pattern}; --require-sparsity asks for {required}."
        )
    if required is not None and masks is not None and masks.patterns:
        name, other = next(iter(sorted(masks.patterns.items())))
        raise CheckFailed(f"{checkpoint.folder} holds {other} in {name}; --require-sparsity asks for {required} in all layers.")
    if (required is not None or masks is not None) and checkpoint.config.get("altup_num_inputs", 1) != 1:
        raise InputError(
            f"{checkpoint.folder} cannot be exported as sparse: model_type {checkpoint.config.get('model_type')!r} mixes its "
            f"embedded tokens by products of activations, which no proof of a graph follows.\n"
            f"It can be learned, validated and evaluated."
        )


def check_bundle(folder: Path, claimed: Claim | None, progress: Progress = SILENT) -> None:
    """Let `validate` judge a bundle whose graph a front end made: it has to account for every weight (CheckFailed)."""
    if claimed is None:
        return
    report = validate(folder, None if claimed.others else claimed.pattern, progress=progress)
    if not report.holds:
        raise CheckFailed(f"the weights of the exported graph cannot be accounted for; nothing was kept. {report.verdict}.")


def read_claim(
    checkpoint: Checkpoint, masks: MaskSet | None, weights: Mapping[str, Weight], required: NMPattern | None
) -> Claim | None:
    """What masks promise, or the caller requires without any; None for a dense checkpoint (CheckFailed: they do not fit)."""
    if masks is None:
        return Claim(pattern=required, names=tuple(list_prunable(weights))) if required is not None else None
    projections = set(list_prunable(weights))
    if strange := [name for name in masks if name not in projections]:
        raise CheckFailed(f"{checkpoint.folder}: its masks cover {strange[0]!r}, which is no projection of this model.")
    return Claim(pattern=masks.pattern, names=tuple(masks), others=masks.patterns)


def prove(blob: Blob, claimed: Claim | None, checkpoint: Checkpoint, weights: Mapping[str, Weight]) -> Proof | None:
    """Count every group of every claimed weight in the written file (CheckFailed: one has more than N non-zeros)."""
    if claimed is None:
        return None
    holders: dict[str, list[Weight]] = {}  # source -> the weights that it went into
    for weight in weights.values():
        for piece in weight.pieces:
            holders.setdefault(piece.source, []).append(weight)
    proven = []
    counts: dict[str, Tally] = {}
    for source in claimed.names:
        for weight in holders[source]:
            region = blob.regions[weight.name]
            if weight.name not in counts:  # one that holds several sources side by side is counted once
                counts[weight.name] = count_groups(blob.path, weight.name, region, claimed.pattern_of(source))
                _check_counts(weight.name, counts[weight.name], checkpoint)
            other = str(claimed.others[source]) if source in claimed.others else None
            proven.append(SparseWeight(initializer=weight.name, source=source, shape=region.shape, axis=0, pattern=other))
    # sources side by side in one weight are listed in the order of their columns: readers set their masks side by side so
    place = {(weight.name, piece.source): i for weight in weights.values() for i, piece in enumerate(weight.pieces)}
    first = {entry.initializer: i for i, entry in reversed(list(enumerate(proven)))}
    proven.sort(key=lambda entry: (first[entry.initializer], place[entry.initializer, entry.source]))
    return Proof(pattern=claimed.pattern, weights=tuple(proven), groups_below_n=sum(tally.under for tally in counts.values()))


def _check_counts(name: str, tally: Tally, checkpoint: Checkpoint) -> None:
    """Refuse a weight with groups of more than N non-zeros."""
    if not tally.over:
        return
    hint = (
        "Its weights and its masks disagree: learn or apply the masks again."
        if checkpoint.masks is not None
        else "Make it sparse with `maskpro-deploy learn`, or export it without --require-sparsity: layers that hold it are found."
    )
    raise CheckFailed(
        f"{checkpoint.folder} does not hold {tally.pattern}: {name} has {tally.over} of {tally.groups} "
        f"groups with more than {tally.pattern.n} non-zeros.\n{hint}"
    )


def count_groups(path: Path, name: str, region: Region, pattern: NMPattern) -> Tally:
    """Count the groups of one [K, N] weight in the data file; -0.0 counts as a value. K must consist of whole groups."""
    pattern.check_divides(region.shape[0], name)
    kind = np.dtype(np.uint8) if region.dtype == INT4 else np.dtype(f"i{region.dtype.itemsize}")  # the same bits
    stored: FlatArray = MemoryArray(np.memmap(path, kind, "r", offset=region.offset, shape=(region.bytes // kind.itemsize,)))
    if region.dtype == INT4:
        stored = NibbleArray(base=stored, size=math.prod(region.shape), signed=True)
    (tally,) = scan(stored, region.shape, 0, [pattern]).tallies
    return tally
