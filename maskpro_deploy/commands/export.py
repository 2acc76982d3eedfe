"""`maskpro-deploy export`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from maskpro_deploy.cache_forms import CACHE_FORMS, DEFAULT_FORM
from maskpro_deploy.commands.options import PATH, PATTERN, force_option, json_option
from maskpro_deploy.exporters.graph.weight_kinds import DEFAULT_METHOD, METHODS, WEIGHT_KINDS, describe_blocks, head_kinds
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.reports.verification import verification_lines
from maskpro_deploy.system.output import emit

if TYPE_CHECKING:
    from maskpro_deploy.exporters import Reference
    from maskpro_deploy.manifest import Manifest


class FormsType(click.ParamType[tuple[str, ...]]):
    """Names with commas between them."""

    name = "FORMS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        return value if isinstance(value, tuple) else tuple(part.strip() for part in str(value).split(",") if part.strip())


FORMS = FormsType()


@click.command("export")
@click.argument("checkpoint")
@click.option("--out", type=PATH, required=True, help="The bundle folder to make.")
@click.option(
    "--dtype", default="fp32", show_default=True, metavar="fp32|fp16|bf16", help="fp32 for CPUs, fp16 or bf16 for GPUs."
)
@click.option(
    "--forms",
    type=FORMS,
    default=DEFAULT_FORM,
    show_default=True,
    metavar=",".join(CACHE_FORMS),
    help="Forms of the key/value cache, one graph each over the same weights.",
)
@click.option(
    "--quantize", metavar="|".join(WEIGHT_KINDS), help="Store projections and output head in fewer bits; --dtype for the rest."
)
@click.option("--block-size", type=int, help=f"Rows of a weight that share a scale, 0 for all. [default: {describe_blocks()}]")
@click.option(
    "--quantize-head",
    metavar="|".join(head_kinds()),
    help=f"How the output head is stored: {head_kinds()[0]} by default; fewer bits are smaller and faster and less exact.",
)
@click.option(
    "--method",
    default=DEFAULT_METHOD,
    show_default=True,
    metavar="|".join(METHODS),
    help=f"How weights become integers: {', or '.join(METHODS.values())}.",
)
@click.option("--max-length", type=int, help="Longest sequence in tokens; the model's own limit by default.")
@click.option(
    "--layout",
    default="bundle",
    show_default=True,
    metavar="bundle|hub|genai",
    help="hub: names for optimum and transformers.js. genai: also a genai_config.json.",
)
@click.option("--require-sparsity", type=PATTERN, help="Refuse a checkpoint that does not hold this pattern.")
@click.option("--verify/--no-verify", default=True, help="Compare the bundle with the checkpoint in torch. On by default.")
@force_option
@json_option
def command(
    checkpoint: str,
    out: Path,
    dtype: str,
    forms: tuple[str, ...],
    quantize: str | None,
    block_size: int | None,
    quantize_head: str | None,
    method: str,
    max_length: int | None,
    layout: str,
    require_sparsity: NMPattern | None,
    verify: bool,
    force: bool,
    as_json: bool,
) -> None:
    r"""Turn CHECKPOINT into an ONNX bundle.

    CHECKPOINT is a folder, a .gguf file, a Hub id or `demo`. A sparse one's pattern is proven on the bytes written; a dense one
    gives the dense twin for comparisons.

    \b
    Example:
      maskpro-deploy export sparse --out bundle --require-sparsity 2:4
      maskpro-deploy export demo --out dense-fp16 --dtype fp16
      maskpro-deploy export sparse --out small --quantize int4 --method calibrated --forms cat,gqa
    """
    from maskpro_deploy.exporters import ExportConfig, export
    from maskpro_deploy.models import resolve
    from maskpro_deploy.system.files import check_free
    from maskpro_deploy.system.progress import Meters

    config = ExportConfig(
        dtype=dtype,
        forms=forms,
        quantize=quantize,
        block_size=block_size,
        head=quantize_head,
        method=method,
        max_length=max_length,
        layout=layout,
        require_sparsity=require_sparsity,
    )
    check_free(out, force=force)
    folder = resolve(checkpoint)
    reason = _cannot_verify() if verify else "--no-verify"
    if verify and reason:
        click.echo(f"{'' if dtype == 'fp32' else f'{dtype} '}not verified: {reason}", err=True)
    meters = Meters()
    manifest = export(
        folder,
        out,
        config,
        reference=None if reason else lambda: _reference(folder),
        unverified=reason,
        compare=verify,
        force=force,
        progress=meters,
    )
    meters.close()
    emit(as_json, {"bundle": str(out), **dataclasses.asdict(manifest)}, _text(out, manifest))


def _cannot_verify() -> str:
    """Why the bundle cannot be compared with the checkpoint here; "" if it can."""
    from maskpro_deploy.system.extras import missing

    if absent := sorted({*missing("learn"), *missing("cpu")}):
        return f"{', '.join(absent)} not installed; pip install 'maskpro-deploy[learn,cpu]'"
    return ""


def _reference(folder: Path) -> Reference:
    """The checkpoint in torch."""
    from maskpro_deploy.torch_lm import TorchLM

    return TorchLM.open(folder)


def _text(out: Path, manifest: Manifest) -> str:
    size = sum(entry.bytes for entry in manifest.files)
    graph = manifest.graph
    sparsity = f"{manifest.sparsity} proven on {len(manifest.sparse_weights)} weights" if manifest.sparsity else "dense"
    kind = f"{graph.dtype}, {graph.quantization}" if graph.quantization else graph.dtype
    lines = [
        f"{out}: {manifest.model.name}, {kind}, opset {graph.opset}, {len(manifest.files)} files, {size / 1e6:.1f} MB",
        f"sparsity: {sparsity}",
        "forms: " + ", ".join(f"{g.form} ({g.file})" for g in (graph, *manifest.siblings)),
    ]
    return "\n".join([*lines, *verification_lines(manifest)])
