"""`maskpro-deploy export`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from maskpro_deploy.commands._shared import PATH, PATTERN, emit, force_option, json_option
from maskpro_deploy.pattern import NMPattern

if TYPE_CHECKING:
    from maskpro_deploy.exporters import Reference
    from maskpro_deploy.manifest import Manifest


@click.command("export")
@click.argument("checkpoint")
@click.option("--out", type=PATH, required=True, help="The bundle folder to make.")
@click.option(
    "--dtype", default="fp32", show_default=True, metavar="fp32|fp16|bf16", help="fp32 for CPUs, fp16 or bf16 for GPUs."
)
@click.option("--max-length", type=int, help="Longest sequence in tokens; the model's own limit by default.")
@click.option("--require-sparsity", type=PATTERN, help="Refuse a checkpoint that does not hold this pattern.")
@click.option("--verify/--no-verify", default=True, help="Compare the bundle with the checkpoint in torch. On by default.")
@force_option
@json_option
def command(
    checkpoint: str,
    out: Path,
    dtype: str,
    max_length: int | None,
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
    """
    from maskpro_deploy.exporters import ExportConfig, export
    from maskpro_deploy.files import check_free
    from maskpro_deploy.models import resolve
    from maskpro_deploy.progress import Meter

    config = ExportConfig(dtype=dtype, max_length=max_length, require_sparsity=require_sparsity)
    check_free(out, force=force)
    folder = resolve(checkpoint)
    reason = _cannot_verify(dtype) if verify else "--no-verify"
    if verify and reason:
        click.echo(f"not verified: {reason}", err=True)
    writing, verifying = Meter("exporting", "bytes"), Meter("verifying", "steps")
    manifest = export(
        folder,
        out,
        config,
        reference=None if reason else lambda: _reference(folder),
        unverified=reason,
        force=force,
        progress=writing,
        verifying=verifying,
    )
    writing.close()
    verifying.close()
    emit(as_json, {"bundle": str(out), **dataclasses.asdict(manifest)}, _text(out, manifest))


def _cannot_verify(dtype: str) -> str:
    """Why the bundle cannot be compared with the checkpoint here; "" if it can."""
    from maskpro_deploy.extras import missing

    if dtype == "bf16":
        return "onnxruntime has no bf16 kernels for CPUs"
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
    lines = [
        f"{out}: {manifest.model.name}, {graph.dtype}, opset {graph.opset}, {len(manifest.files)} files, {size / 1e6:.1f} MB",
        f"sparsity: {sparsity}",
    ]
    v = manifest.verification
    if v["status"] == "passed":
        lines.append(
            f"verified against torch: largest logit difference {v['max_logit_difference']:.2g} over {v['tokens']} positions "
            f"(tolerance {v['tolerance']:g}), greedy tokens equal {v['greedy_equal']} of {v['greedy_tokens']}, "
            f"perplexity {v['perplexity']:.3f} against {v['reference_perplexity']:.3f}"
        )
    else:
        lines.append(f"not verified: {v['reason']}")
    return "\n".join(lines)
