"""`maskpro-deploy export`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from maskpro_deploy.cache_forms import CACHE_FORMS, DEFAULT_FORM
from maskpro_deploy.commands.options import NAMES, PATH, PATTERN, force_option, json_option
from maskpro_deploy.exporters.graph.weight_kinds import DEFAULT_METHOD, METHODS, WEIGHT_KINDS, describe_blocks, head_kinds
from maskpro_deploy.system.output import emit

_FORMS = "Forms of the key/value cache, one graph each over the same weights."
_HEAD = f"How the output head is stored: {head_kinds()[0]} by default; fewer bits are smaller and faster and less exact."
_METHOD = f"How weights become integers: {', or '.join(METHODS.values())}."
_LAYOUT = "hub: names for optimum and transformers.js. genai: also a genai_config.json."


@click.command("export")
@click.argument("checkpoint")
@click.option("--out", type=PATH, required=True, help="The bundle folder to make.")
@click.option(
    "--dtype", default="fp32", show_default=True, metavar="fp32|fp16|bf16", help="fp32 for CPUs, fp16 or bf16 for GPUs."
)
@click.option("--forms", type=NAMES, default=DEFAULT_FORM, show_default=True, metavar=",".join(CACHE_FORMS), help=_FORMS)
@click.option(
    "--quantize", metavar="|".join(WEIGHT_KINDS), help="Store projections and output head in fewer bits; --dtype for the rest."
)
@click.option("--block-size", type=int, help=f"Rows of a weight that share a scale, 0 for all. [default: {describe_blocks()}]")
@click.option("--quantize-head", "head", metavar="|".join(head_kinds()), help=_HEAD)
@click.option("--method", default=DEFAULT_METHOD, show_default=True, metavar="|".join(METHODS), help=_METHOD)
@click.option("--max-length", type=int, help="Longest sequence in tokens; the model's own limit by default.")
@click.option("--layout", default="bundle", show_default=True, metavar="bundle|hub|genai", help=_LAYOUT)
@click.option("--require-sparsity", type=PATTERN, help="Refuse a checkpoint that does not hold this pattern.")
@click.option("--verify/--no-verify", default=True, help="Compare the bundle with the checkpoint in torch. On by default.")
@force_option
@json_option
def command(checkpoint: str, out: Path, verify: bool, force: bool, as_json: bool, **settings: Any) -> None:
    r"""Turn CHECKPOINT into an ONNX bundle.

    CHECKPOINT is a folder, a .gguf file, a Hub id or `demo`. A sparse one's pattern is proven on the bytes written; a dense one
    gives the dense twin for comparisons.

    \b
    Example:
      maskpro-deploy export sparse --out bundle --require-sparsity 2:4
      maskpro-deploy export demo --out dense-fp16 --dtype fp16
      maskpro-deploy export sparse --out small --quantize int4 --method calibrated --forms cat,gqa
    """
    from maskpro_deploy.exporters import ExportConfig
    from maskpro_deploy.runs.export import export_model, render_text

    manifest = export_model(checkpoint, out, ExportConfig(**settings), verify=verify, force=force)
    emit(as_json, {"bundle": str(out), **dataclasses.asdict(manifest)}, render_text(out, manifest))
