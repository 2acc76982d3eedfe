"""`maskpro-deploy masks`: look at mask files, compare them, put them on a model, find them in weights."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from maskpro_deploy.commands.options import PATH, PATTERN, force_option, json_option
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.system.output import emit


@click.group()
def command() -> None:
    r"""Look at mask files, compare them, put them on a model, find them in weights.

    \b
    Wherever a mask file is asked for, the folder of a sparse checkpoint or of a bundle serves too.

    \b
    Example:
      maskpro-deploy masks info sparse
      maskpro-deploy masks diff one-shot sparse
      maskpro-deploy masks apply sparse/masks.safetensors --model demo --out again
      maskpro-deploy masks infer pruned-elsewhere --out masks.safetensors
      maskpro-deploy masks enforce merged --masks sparse --out sparse-again
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
    from maskpro_deploy.runs.masks import describe_masks, render_description

    facts = describe_masks(masks)
    emit(as_json, facts, render_description(facts))


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
    from maskpro_deploy.runs.masks import compare_masks, render_comparison

    facts = compare_masks(first, second)
    emit(as_json, facts, render_comparison(facts, first, second))


@command.command()
@click.argument("masks", type=PATH)
@click.option("--model", required=True, help="The dense model: checkpoint folder, .gguf file, Hub id, or `demo`.")
@click.option("--out", type=PATH, required=True, help="Folder to write the sparse checkpoint to.")
@click.option("--other-weights", is_flag=True, help="Put them on another model of the same names and shapes.")
@force_option
@json_option
def apply(masks: Path, model: str, out: Path, other_weights: bool, force: bool, as_json: bool) -> None:
    r"""Put masks on the dense model they were made for, and write a sparse checkpoint.

    The dense weights have to be those the masks were made for: their hash is in the mask file. MASKS may also be a folder
    without a mask file whose weights hold N:M; they have to be those of the dense model where they are not zero.

    \b
    Example:
      maskpro-deploy masks apply masks.safetensors --model demo --out sparse
    """
    from maskpro_deploy.runs.masks import apply_masks, render_applied
    from maskpro_deploy.system.progress import Meter

    with closing(Meter("writing", "shards")) as meter:
        facts = apply_masks(masks, model, out, other_weights=other_weights, force=force, progress=meter)
    emit(as_json, facts, render_applied(facts))


@command.command()
@click.argument("folder")
@click.option("--out", type=PATH, required=True, metavar="FILE", help="Mask file to write.")
@click.option("--sparsity", "pattern", type=PATTERN, help="The pattern that weights have to hold; found, if not given.")
@force_option
@json_option
def infer(folder: str, out: Path, pattern: NMPattern | None, force: bool, as_json: bool) -> None:
    r"""Write a mask file of the weights of FOLDER that hold N:M already.

    Linear layers count, as for `validate`. Where a group has fewer than N nonzeros, its mask keeps the earliest zeros too.
    Without --sparsity, of 1:4, 1:2, 2:4, 4:8 and 8:16 the one that most layers hold is taken, and of several the finest.

    \b
    Example:
      maskpro-deploy masks infer pruned-elsewhere --out masks.safetensors
    """
    from maskpro_deploy.runs.mask_repair import infer_mask_file, render_inferred
    from maskpro_deploy.system.progress import Meter

    with closing(Meter("inferring", "layers")) as meter:
        facts = infer_mask_file(folder, out, pattern, force=force, progress=meter)
    emit(as_json, facts, render_inferred(facts))


@command.command()
@click.argument("folder")
@click.option("--masks", type=PATH, help="The masks to put back; those of FOLDER by default.")
@click.option("--out", type=PATH, required=True, help="Folder to write the sparse checkpoint to.")
@force_option
@json_option
def enforce(folder: str, masks: Path | None, out: Path, force: bool, as_json: bool) -> None:
    r"""Put zeros back where fine-tuning or a merged adapter filled them, and write a sparse checkpoint.

    Says how many weights were dropped, and what share of each layer's Frobenius norm they were.

    \b
    Example:
      maskpro-deploy masks enforce merged --masks sparse --out sparse-again
    """
    from maskpro_deploy.runs.mask_repair import enforce_masks, render_enforced
    from maskpro_deploy.system.progress import Meter

    with closing(Meter("writing", "shards")) as meter:
        facts = enforce_masks(folder, masks, out, force=force, progress=meter)
    emit(as_json, facts, render_enforced(facts))
