"""`maskpro-deploy masks`: look at mask files, compare them, put them on a model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from maskpro_deploy.commands.options import PATH, force_option, json_option
from maskpro_deploy.system.output import emit, table


@click.group()
def command() -> None:
    r"""Look at mask files, compare them, put them on a model.

    \b
    Wherever a mask file is asked for, the folder of a sparse checkpoint or of a bundle serves too.

    \b
    Example:
      maskpro-deploy masks info sparse
      maskpro-deploy masks diff one-shot sparse
      maskpro-deploy masks apply sparse/masks.safetensors --model demo --out again
    """


@command.command()
@click.argument("masks", type=PATH)
@json_option
def info(masks: Path, as_json: bool) -> None:
    r"""What a mask file holds: pattern, layers, size, whose weights.

    \b
    Example:
      maskpro-deploy masks info sparse
    """
    from maskpro_deploy.masks import MaskSet, layer_kind

    path = _file(masks)
    mask_set = MaskSet.load(path)
    kinds: dict[str, list[int]] = {}
    for name in mask_set:
        count = kinds.setdefault(layer_kind(name), [0, 0])
        count[0] += 1
        count[1] += math.prod(mask_set.shapes[name])
    damaged = list(mask_set.broken())
    facts: dict[str, Any] = {
        "file": str(path),
        "bytes": path.stat().st_size,
        "sparsity": str(mask_set.pattern),
        "layers": len(mask_set),
        "weights": mask_set.num_weights,
        "bits_per_weight": 8 * path.stat().st_size / max(1, mask_set.num_weights),
        "masks_sha256": mask_set.sha256(),
        "dense_sha256": mask_set.dense_sha256 or None,
        "not_strict": damaged,
        "kinds": {kind: {"layers": layers, "weights": weights} for kind, (layers, weights) in sorted(kinds.items())},
    }
    rows = [
        ("pattern", str(mask_set.pattern)),
        ("layers", len(mask_set)),
        ("weights covered", f"{mask_set.num_weights:,}"),
        ("size", f"{path.stat().st_size:,} bytes, {facts['bits_per_weight']:.2f} bits a weight"),
        ("masks, SHA-256", facts["masks_sha256"]),
        ("made for weights with SHA-256", facts["dense_sha256"] or "not said"),
        ("layers that break the pattern", ", ".join(damaged) or "none"),
    ]
    by_kind = table([(kind, layers, f"{weights:,}") for kind, (layers, weights) in sorted(kinds.items())], _KINDS)
    emit(as_json, facts, f"{table(rows)}\n\n{by_kind}")


_KINDS = ("kind", "layers", "weights")


@command.command()
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@json_option
def diff(first: Path, second: Path, as_json: bool) -> None:
    r"""How many groups differ between two mask files, by kind of layer.

    \b
    Example:
      maskpro-deploy masks diff one-shot sparse
    """
    from maskpro_deploy.errors import InputError
    from maskpro_deploy.masks import MaskSet

    a, b = MaskSet.load(_file(first)), MaskSet.load(_file(second))
    if a.pattern != b.pattern:
        raise InputError(f"{first} holds {a.pattern} masks, {second} holds {b.pattern}: groups cannot be compared.")
    only = {str(first): sorted(set(a) - set(b)), str(second): sorted(set(b) - set(a))}
    if not (both := set(a) & set(b)):
        raise InputError(f"{first} and {second} have no layer in common: they are of different models.")
    a, b = a.only(both), b.only(both)
    b.check_fits(a.shapes, f"the masks of {second}", str(first))
    whole, by_kind = a.flips(b), a.flips_by_kind(b)
    facts = {
        "sparsity": str(a.pattern),
        "layers": len(a),
        "groups": a.num_weights // a.pattern.m,
        "groups_changed": whole,
        "groups_changed_by_kind": by_kind,
        "only_in_first": only[str(first)],
        "only_in_second": only[str(second)],
        "same_dense_weights": a.dense_sha256 == b.dense_sha256 if a.dense_sha256 and b.dense_sha256 else None,
    }
    text = table([*((kind, _percent(share)) for kind, share in by_kind.items()), ("all", _percent(whole))], ("kind", "changed"))
    notes = [f"{len(names)} layers are only in {where}" for where, names in only.items() if names]
    if facts["same_dense_weights"] is False:
        notes.append("the two were made for different dense weights")
    emit(as_json, facts, "\n".join([text, *notes]))


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


@command.command()
@click.argument("masks", type=PATH)
@click.option("--model", required=True, help="The dense model: checkpoint folder, .gguf file, Hub id, or `demo`.")
@click.option("--out", type=PATH, required=True, help="Folder to write the sparse checkpoint to.")
@force_option
@json_option
def apply(masks: Path, model: str, out: Path, force: bool, as_json: bool) -> None:
    r"""Put masks on the dense model they were made for, and write a sparse checkpoint.

    The dense weights have to be those the masks were made for: their hash is in the mask file.

    \b
    Example:
      maskpro-deploy masks apply masks.safetensors --model demo --out sparse
    """
    from maskpro_deploy._version import __version__
    from maskpro_deploy.checkpoint import Checkpoint, save_sparse
    from maskpro_deploy.errors import InputError
    from maskpro_deploy.masks import MaskSet
    from maskpro_deploy.models import resolve
    from maskpro_deploy.system.files import check_free
    from maskpro_deploy.system.progress import Meter

    check_free(out, force=force)
    path = _file(masks)
    given = MaskSet.load(path)
    dense = Checkpoint.open(resolve(model))
    if dense.masks is not None:
        raise InputError(f"{model} is a sparse checkpoint already.\nGive the dense model.")
    given.check_fits(dense.shapes, f"the masks of {path}", model)
    given.check_strict(str(path))
    given.check_hash(dense.dense_sha256(given), str(path), model)
    record = {
        "tool": f"maskpro-deploy {__version__}",
        "method": "masks apply",
        "model": dense.folder.name,
        "dense_sha256": given.dense_sha256 or None,
        "masks_sha256": given.sha256(),
    }
    meter = Meter("writing", "shards")
    save_sparse(dense, given, out, record, force=force, progress=meter)
    meter.close()
    facts = {"out": str(out), "sparsity": str(given.pattern), "layers": len(given), "weights": given.num_weights}
    emit(
        as_json,
        facts,
        f"{len(given)} layers with {given.pattern} masks, {given.num_weights:,} weights\nwritten to {out}",
    )


def _file(path: Path) -> Path:
    from maskpro_deploy.masks import MASKS_FILE

    return path / MASKS_FILE if path.is_dir() else path
