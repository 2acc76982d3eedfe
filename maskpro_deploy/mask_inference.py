"""Masks of weights that hold N:M already, whatever tool pruned them.

A weight (out, in) holds N:M if no group of M along `in` has more than N nonzeros; -0.0 is a zero. A group with fewer is *short*:
its mask keeps the nonzeros and, to keep exactly N, the earliest zeros. A pattern that was not asked for has to show: most groups
of the weight have exactly N (a weight of zeros alone holds nothing). Of the usual patterns the one that most weights hold is
taken, and of several the finest.

Such masks do not know the dense weights that they were made for, so their hash is empty. `check_origin` compares what the sparse
weights kept with the dense ones instead.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import InputError
from maskpro_deploy.masks import MASKS_FILE, MaskSet
from maskpro_deploy.pattern import USUAL_PATTERNS, NMPattern
from maskpro_deploy.system.progress import SILENT, Progress

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inferred:
    """The masks of the weights that hold a pattern, and what was found about them and the others."""

    masks: MaskSet
    short: dict[str, int]  # groups with fewer than N nonzeros, of each weight that has some
    others: tuple[str, ...]  # weights that do not hold the pattern


class _Found(NamedTuple):
    """One weight: which values are not zero, packed as masks are, and its short groups by pattern that it holds."""

    bits: npt.NDArray[np.uint8]
    short: dict[NMPattern, int]


def infer_masks(
    checkpoint: Checkpoint, axes: Mapping[str, int], pattern: NMPattern | None = None, progress: Progress = SILENT
) -> Inferred | None:
    """The masks of the weights that hold `pattern`, or the usual pattern that fits them best.

    `axes` names the weights to look at, with the axis of their inputs: 1, stored (out, in), or 0, stored (in, out). A weight
    whose first output holds none is not read any further: a dense model costs next to nothing. `progress` receives weights.

    Returns:
        None if no weight holds a pattern.
    """
    patterns = (pattern,) if pattern is not None else USUAL_PATTERNS
    found = {}
    for done, (name, row) in enumerate(_read_first_outputs(checkpoint, axes), start=1):
        progress.update(done, len(axes))
        if alive := [p for p in patterns if _holds_at_most(p, _find_nonzeros(row))]:
            found[name] = _look_at(checkpoint, name, axes[name], alive, any_count=pattern is not None)
    votes = Counter(held for weight in found.values() for held in weight.short)
    if not votes:
        return None
    chosen = max(patterns, key=lambda p: votes[p])  # of equals the first, which is the finest
    short = {name: weight.short[chosen] for name, weight in found.items() if chosen in weight.short}
    shapes = {name: (checkpoint.shapes[name][1 - axes[name]], checkpoint.shapes[name][axes[name]]) for name in short}
    for name, few in short.items():
        if few:
            found[name] = found[name]._replace(bits=_fill_short(found[name].bits, shapes[name], chosen))
    packed, turned = {name: found[name].bits for name in short}, frozenset(name for name in short if axes[name] == 0)
    return Inferred(
        masks=MaskSet(pattern=chosen, packed=packed, shapes=shapes, transposed=turned),
        short={name: few for name, few in short.items() if few},
        others=tuple(name for name in axes if name not in short),
    )


def _read_first_outputs(checkpoint: Checkpoint, axes: Mapping[str, int]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """What the first output of each weight multiplies its inputs with.  # (1, in) each"""
    names = [name for name in axes if min(checkpoint.shapes[name])]
    yield from checkpoint.read_first_rows(name for name in names if axes[name] == 1)
    for name in names:
        if axes[name] == 0:
            yield name, np.concatenate([block[:, :1] for block in checkpoint.read_blocks(name)]).T


def _look_at(checkpoint: Checkpoint, name: str, axis: int, patterns: Sequence[NMPattern], *, any_count: bool) -> _Found:
    """Find the patterns that a weight holds; `any_count` does without most groups having exactly N."""
    kept = np.concatenate([_find_nonzeros(block) for block in checkpoint.read_blocks(name)])  # as it is stored
    kept = np.ascontiguousarray(kept if axis == 1 else kept.T)  # (out, in)
    short = {p: int((p.counts(kept) < p.n).sum()) for p in patterns if _holds_at_most(p, kept)}
    return _Found(np.packbits(kept), {p: few for p, few in short.items() if any_count or 2 * few < kept.size // p.m})


def _holds_at_most(pattern: NMPattern, kept: npt.NDArray[np.bool_]) -> bool:
    """Whether no group along the last axis keeps more than N."""
    return kept.shape[-1] % pattern.m == 0 and bool((pattern.counts(kept) <= pattern.n).all())


def _find_nonzeros(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where values are not zero; 16-bit floats by their bits without the sign, which numpy compares fast."""
    if values.dtype.itemsize == 2 and values.dtype.kind not in "iu":
        values = np.ascontiguousarray(values).view(np.uint16) << 1
    nonzeros: npt.NDArray[np.bool_] = values != 0
    return nonzeros


def _fill_short(bits: npt.NDArray[np.uint8], shape: tuple[int, int], pattern: NMPattern) -> npt.NDArray[np.uint8]:
    """The mask that keeps the nonzeros, and in short groups the earliest zeros too.  # packed (out, in) -> packed (out, in)"""
    groups = np.unpackbits(bits, count=shape[0] * shape[1]).reshape(-1, pattern.m)  # (G, M)
    few = groups.sum(axis=1, dtype=np.uint8) < pattern.n
    groups[few] = pattern.top(groups[few].astype(np.float32))  # ties go to the lower index
    return np.packbits(groups)


class GivenMasks(NamedTuple):
    """Masks that a user named, and the sparse weights they were inferred from; None if there is a mask file."""

    masks: MaskSet
    weights: Checkpoint | None


def open_masks(
    path: Path, source: str, list_axes: Callable[[Checkpoint], Mapping[str, int]], pattern: NMPattern | None = None
) -> GivenMasks:
    """The masks of a mask file, of a folder with one, or of a folder whose weights hold N:M; a message calls it `source`.

    `list_axes` gives what `infer_masks` takes, if there is no mask file; `pattern` is what the weights must hold.

    Raises:
        InputError: there is neither a mask file nor a weight that holds a pattern.
        FormatError: a file is damaged.
        PatternError: a mask is not strict.
    """
    file = path / MASKS_FILE if path.is_dir() else path
    if path.is_dir() and not file.is_file() and (path / "config.json").is_file():
        sparse = Checkpoint.open(path)
        if (inferred := infer_masks(sparse, list_axes(sparse), pattern)) is None:
            raise InputError(
                f"{source} has no {MASKS_FILE}, and none of its weights holds {pattern or 'an N:M pattern'}.\n"
                f"Give a mask file, or a folder whose weights were pruned."
            )
        return GivenMasks(inferred.masks, sparse)
    masks = MaskSet.load(file)
    masks.check_strict(source)
    return GivenMasks(masks, None)


def check_origin(given: GivenMasks, dense: Checkpoint, source: str, *, other_weights: bool) -> None:
    """Check that masks fit a dense model and, unless `other_weights`, were made for these very weights.

    A mask file says so by its hash. Sparse weights must be those of the dense model wherever they are not zero.

    Raises:
        InputError: they do not fit, or belong to other weights.
    """
    masks = given.masks
    masks.check_fits(dense.shapes, f"the masks of {source}", str(dense.folder))
    if other_weights:
        return
    if given.weights is None:
        masks.check_hash(dense.dense_sha256(masks), source, str(dense.folder))
        if not masks.dense_sha256:
            log.warning("%s does not say which weights it was made for: only names and shapes were compared", source)
    elif changed := [name for name in masks if not _agree(given.weights, dense, name)]:
        raise InputError(
            f"{source} has other weights than {dense.folder}: {len(changed)} of {len(masks)} layers differ where they are "
            f"not zero, such as {changed[0]}.\n"
            f"Give the dense model it was made from, or add --other-weights to use its masks alone."
        )


def _agree(sparse: Checkpoint, dense: Checkpoint, name: str) -> bool:
    """Whether two weights are equal wherever the first is not zero, in the first one's dtype."""
    pairs = zip(sparse.read_blocks(name), dense.read_blocks(name), strict=True)
    with np.errstate(over="ignore", invalid="ignore"):  # what the narrower type cannot hold is not equal
        return all(bool(((ours == 0) | (ours == theirs.astype(ours.dtype))).all()) for ours, theirs in pairs)
