"""Proof that the written weights hold the N:M pattern, read back from the data file's final bytes.

A group is M consecutive values down axis 0 of a [K, N] weight (the reduction axis, where TensorRT looks). It holds the pattern
if at most N of its values have a bit set: a pruned weight is +0.0 and nothing else. A kept weight may be zero itself, or have
become zero in a cast: such groups are counted, they are no fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import CheckFailed
from maskpro_deploy.exporters.graph.builder import Weight
from maskpro_deploy.exporters.graph.data_file import INT4, Blob, Region, bits, row_tiles
from maskpro_deploy.exporters.graph.quantization import unpack_nibbles
from maskpro_deploy.manifest import SparseWeight
from maskpro_deploy.pattern import NMPattern, count_in_groups


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCount:
    """Groups of one weight: all, those with more than N values, those with fewer."""

    groups: int
    over: int
    under: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What has to be proven: the pattern, and the checkpoint's names of the weights that hold it."""

    pattern: NMPattern
    names: tuple[str, ...]


def prunable(weights: Mapping[str, Weight]) -> list[str]:
    """The checkpoint's names of the projections inside the layers."""
    return list(dict.fromkeys(p.source for w in weights.values() if w.projection for p in w.pieces if p.source))


def claim(checkpoint: Checkpoint, weights: Mapping[str, Weight], required: NMPattern | None) -> Claim | None:
    """What the checkpoint's masks promise, or what the caller requires of a checkpoint without masks.

    Returns:
        None for a dense checkpoint.

    Raises:
        CheckFailed: the masks are of another pattern than required, or cover a weight that is no projection.
    """
    masks = checkpoint.masks
    if masks is None:
        return Claim(pattern=required, names=tuple(prunable(weights))) if required is not None else None
    if required is not None and masks.pattern != required:
        raise CheckFailed(
            f"{checkpoint.folder} has masks of the pattern {masks.pattern}; --require-sparsity asks for {required}."
        )
    projections = set(prunable(weights))
    if strange := [name for name in masks if name not in projections]:
        raise CheckFailed(f"{checkpoint.folder}: its masks cover {strange[0]!r}, which is no projection of this model.")
    return Claim(pattern=masks.pattern, names=tuple(masks))


def prove(
    blob: Blob, promised: Claim, checkpoint: Checkpoint, weights: Mapping[str, Weight]
) -> tuple[tuple[SparseWeight, ...], int]:
    """Count every group of every promised weight in the written file.

    Returns:
        the proven weights, and the number of groups with fewer than N non-zeros.

    Raises:
        CheckFailed: a group has more than N non-zeros; the message names the weight.
    """
    proven, under = [], 0
    made_from: dict[str, list[Weight]] = {}
    for weight in weights.values():
        for piece in weight.pieces:
            made_from.setdefault(piece.source, []).append(weight)
    counts: dict[str, GroupCount] = {}
    for source in promised.names:
        for weight in made_from[source]:
            region = blob.regions[weight.name]
            if weight.name not in counts:  # one that holds several sources side by side is counted once
                counts[weight.name] = count_groups(blob.path, weight.name, region, promised.pattern)
                under += counts[weight.name].under
            count = counts[weight.name]
            if count.over:
                hint = (
                    "Its weights and its masks disagree: learn or apply the masks again."
                    if checkpoint.masks is not None
                    else "Make it sparse first with `maskpro-deploy learn`, or export it without --require-sparsity."
                )
                raise CheckFailed(
                    f"{checkpoint.folder} does not hold {promised.pattern}: {weight.name} has {count.over} of {count.groups} "
                    f"groups with more than {promised.pattern.n} non-zeros.\n{hint}"
                )
            proven.append(SparseWeight(initializer=weight.name, source=source, shape=region.shape, axis=0))
    # sources side by side in one weight are listed in the order of their columns: readers set their masks side by side so
    place = {(weight.name, piece.source): i for weight in weights.values() for i, piece in enumerate(weight.pieces)}
    first = {entry.initializer: i for i, entry in reversed(list(enumerate(proven)))}
    proven.sort(key=lambda entry: (first[entry.initializer], place[entry.initializer, entry.source]))
    return tuple(proven), under


def count_groups(path: Path, name: str, region: Region, pattern: NMPattern) -> GroupCount:
    """Count the groups of one [K, N] weight in the data file, some rows at a time.

    Raises:
        PatternError: K does not consist of whole groups.
    """
    pattern.check_divides(region.shape[0], name)
    nibbles = region.dtype == INT4
    kind, shape = (np.dtype(np.uint8), (region.bytes,)) if nibbles else (region.dtype, region.shape)
    values = np.memmap(path, dtype=kind, mode="r", offset=region.offset, shape=shape)
    groups = over = under = 0
    # 4-bit integers: an even number of rows begins and ends at a whole byte
    for start, stop in row_tiles(region.shape, region.dtype.itemsize, multiple=pattern.m * 2):
        if nibbles:
            ends = [-(-row * region.shape[1] // 2) for row in (start, stop)]
            filled = unpack_nibbles(np.asarray(values[ends[0] : ends[1]]), (stop - start) * region.shape[1]) != 0
        else:
            filled = bits(np.asarray(values[start:stop])) != 0
        counts = count_in_groups(filled.reshape(-1), [pattern.m], region.shape[1])[pattern.m]  # (K / M * N,)
        groups, over, under = (
            groups + counts.size,
            over + int((counts > pattern.n).sum()),
            under + int((counts < pattern.n).sum()),
        )
    return GroupCount(groups=groups, over=over, under=under)
