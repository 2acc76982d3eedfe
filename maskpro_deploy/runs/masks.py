"""The work of `masks info`, `diff` and `apply`, and their text: facts about masks, a sparse checkpoint from masks and weights.

Wherever a mask file is asked for, a folder that holds one will do; to `apply`, one whose weights hold N:M too.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskpro_deploy._version import __version__
from maskpro_deploy.checkpoint import Checkpoint, save_sparse
from maskpro_deploy.errors import InputError
from maskpro_deploy.mask_inference import check_origin, open_masks
from maskpro_deploy.masks import MASKS_FILE, MaskSet, layer_kind
from maskpro_deploy.models import resolve
from maskpro_deploy.runs.mask_repair import list_prunable
from maskpro_deploy.system.files import check_free
from maskpro_deploy.system.output import table
from maskpro_deploy.system.progress import SILENT, Progress
from maskpro_deploy.transform import Transform


def _locate_masks(path: Path) -> Path:
    return path / MASKS_FILE if path.is_dir() else path


def describe_masks(path: Path) -> dict[str, Any]:
    """What a mask file holds: pattern, layers, size, whose weights."""
    file = _locate_masks(path)
    masks = MaskSet.load(file)
    kinds: dict[str, dict[str, int]] = {}
    for name in masks:
        kind = kinds.setdefault(layer_kind(name), {"layers": 0, "weights": 0})
        kind["layers"] += 1
        kind["weights"] += math.prod(masks.shapes[name])
    size = file.stat().st_size
    return {
        "file": str(file),
        "bytes": size,
        "sparsity": str(masks.pattern),
        "other_patterns": {name: str(pattern) for name, pattern in sorted(masks.patterns.items())},
        "transposable": masks.transposable,
        "layers": len(masks),
        "weights": masks.num_weights,
        "bits_per_weight": 8 * size / max(1, masks.num_weights),
        "masks_sha256": masks.sha256(),
        "dense_sha256": masks.dense_sha256 or None,
        "not_strict": list(masks.find_broken()),
        "kinds": dict(sorted(kinds.items())),
        "left_dense": dict(masks.dense),
        "transform": masks.transform.kinds(),
    }


def compare_masks(first: Path, second: Path) -> dict[str, Any]:
    """How many groups differ between two mask files, by kind of layer.

    Raises:
        InputError: they have no layer, shape or pattern in common, or belong to other orders of channels.
    """
    a, b = MaskSet.load(_locate_masks(first)), MaskSet.load(_locate_masks(second))
    only_in_first, only_in_second = sorted(set(a) - set(b)), sorted(set(b) - set(a))
    if not (both := set(a) & set(b)):
        raise InputError(f"{first} and {second} have no layer in common: they are of different models.")
    if unlike := [name for name in sorted(both) if a.pattern_of(name) != b.pattern_of(name)]:
        name = unlike[0]
        raise InputError(
            f"{first} holds {a.pattern_of(name)} in {name}, {second} holds {b.pattern_of(name)}: groups cannot be compared."
        )
    if a.transform.sha256() != b.transform.sha256():
        raise InputError(
            f"the channels of {first} and {second} are in other places: their groups have other members and cannot be compared."
        )
    a, b = (dataclasses.replace(masks.only(both), transform=Transform()) for masks in (a, b))
    b.check_fits({name: a.stored_shape(name) for name in a}, f"the masks of {second}", str(first))
    return {
        "sparsity": str(a.pattern),
        "layers": len(a),
        "groups": a.num_groups,
        "groups_changed": a.flips(b),
        "groups_changed_by_kind": a.flips_by_kind(b),
        "only_in_first": only_in_first,
        "only_in_second": only_in_second,
        "same_dense_weights": a.dense_sha256 == b.dense_sha256 if a.dense_sha256 and b.dense_sha256 else None,
    }


def apply_masks(
    path: Path, model: str, out: Path, *, other_weights: bool = False, force: bool = False, progress: Progress = SILENT
) -> dict[str, Any]:
    """Put masks on the dense model they were made for, and write a sparse checkpoint; `progress` receives its shards.

    With `other_weights` the model may be another one of the same names and shapes. The result has the hash of its weights.

    Raises:
        InputError: the model is sparse, or the masks were made for other weights.
        PatternError: a mask is not strict.
    """
    check_free(out, force=force)
    given = open_masks(path, str(path), list_prunable)
    dense = Checkpoint.open(resolve(model))
    if dense.masks is not None:
        raise InputError(f"{model} is a sparse checkpoint already.\nGive the dense model.")
    check_origin(given, dense, str(path), other_weights=other_weights)
    masks = dataclasses.replace(given.masks, dense_sha256=dense.dense_sha256(given.masks))
    record = {
        "tool": f"maskpro-deploy {__version__}",
        "method": "masks apply",
        "model": dense.folder.name,
        "dense_sha256": masks.dense_sha256,
        "masks_sha256": masks.sha256(),
    }
    save_sparse(dense, masks, out, record, force=force, progress=progress)
    return {"out": str(out), "sparsity": str(masks.pattern), "layers": len(masks), "weights": masks.num_weights}


def render_description(facts: Mapping[str, Any]) -> str:
    """A mask file: its figures, then its layers by kind."""
    rows = [
        ("pattern", _describe_patterns(facts)),
        ("layers", facts["layers"]),
        ("weights covered", f"{facts['weights']:,}"),
        ("size", f"{facts['bytes']:,} bytes, {facts['bits_per_weight']:.2f} bits a weight"),
        ("masks, SHA-256", facts["masks_sha256"]),
        ("made for weights with SHA-256", facts["dense_sha256"] or "not said"),
        ("layers that break the pattern", ", ".join(facts["not_strict"]) or "none"),
        ("layers left dense on purpose", len(facts["left_dense"])),
        ("channels that changed places", ", ".join(f"{kind}: {count}" for kind, count in facts["transform"].items()) or "none"),
    ]
    kinds = [(kind, counts["layers"], f"{counts['weights']:,}") for kind, counts in facts["kinds"].items()]
    blocks = [table(rows), table(kinds, ("kind", "layers", "weights"))]
    if facts["left_dense"]:
        blocks.append(table(list(facts["left_dense"].items()), ("left dense", "why")))
    return "\n\n".join(blocks)


def _describe_patterns(facts: Mapping[str, Any]) -> str:
    both_ways = " along both axes (transposable)" if facts["transposable"] else ""
    others = sorted(Counter(facts["other_patterns"].values()).items())
    return ", ".join([facts["sparsity"] + both_ways, *(f"{pattern} in {count} layers" for pattern, count in others)])


def render_comparison(facts: Mapping[str, Any], first: Path, second: Path) -> str:
    """Two mask files: the share of groups that differ, and what only one of them has."""
    shares = [*facts["groups_changed_by_kind"].items(), ("all", facts["groups_changed"])]
    lines = [table([(kind, f"{100 * share:.2f} %") for kind, share in shares], ("kind", "changed"))]
    only = {first: facts["only_in_first"], second: facts["only_in_second"]}
    lines += [f"{len(names)} layers are only in {where}" for where, names in only.items() if names]
    if facts["same_dense_weights"] is False:
        lines.append("the two were made for different dense weights")
    return "\n".join(lines)


def render_applied(facts: Mapping[str, Any]) -> str:
    """A sparse checkpoint that was made from masks."""
    return f"{facts['layers']} layers with {facts['sparsity']} masks, {facts['weights']:,} weights\nwritten to {facts['out']}"
