"""`maskpro-deploy masks`: look at mask files, compare them, put them on a model."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from maskpro_deploy.commands.options import PATH, force_option, json_option
from maskpro_deploy.system.output import emit


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
@force_option
@json_option
def apply(masks: Path, model: str, out: Path, force: bool, as_json: bool) -> None:
    r"""Put masks on the dense model they were made for, and write a sparse checkpoint.

    The dense weights have to be those the masks were made for: their hash is in the mask file.

    \b
    Example:
      maskpro-deploy masks apply masks.safetensors --model demo --out sparse
    """
    from maskpro_deploy.runs.masks import apply_masks, render_applied
    from maskpro_deploy.system.progress import Meter

    with closing(Meter("writing", "shards")) as meter:
        facts = apply_masks(masks, model, out, force=force, progress=meter)
    emit(as_json, facts, render_applied(facts))
