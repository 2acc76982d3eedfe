"""The work of `export`: a checkpoint in any form becomes a bundle, compared with the checkpoint in torch where that can run.

`render_text` is what is printed of it: files, sparsity, and the comparison in lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from maskpro_deploy.exporters import ExportConfig, Reference, export
from maskpro_deploy.manifest import Manifest
from maskpro_deploy.models import resolve
from maskpro_deploy.system.extras import missing
from maskpro_deploy.system.files import check_free
from maskpro_deploy.system.progress import Meters


def export_model(model: str, out: Path, config: ExportConfig, *, verify: bool, force: bool) -> Manifest:
    """Export a model - checkpoint folder, .gguf file, Hub id, or "demo" - with progress on stderr.

    With `verify`, the bundle is compared with the checkpoint in torch, if that can be done here; if not, a warning says why.

    Raises:
        MaskProError: see `export`.
    """
    check_free(out, force=force)
    folder = resolve(model)
    unverified = _explain_unverified() if verify else "--no-verify"
    if verify and unverified:
        click.echo(f"{'' if config.dtype == 'fp32' else f'{config.dtype} '}not verified: {unverified}", err=True)

    def open_reference() -> Reference:
        from maskpro_deploy.torch_lm import TorchLM

        return TorchLM.open(folder)

    with closing(Meters()) as meters:
        reference = None if unverified else open_reference
        return export(
            folder, out, config, reference=reference, unverified=unverified, compare=verify, force=force, progress=meters
        )


def _explain_unverified() -> str:
    """Why the bundle cannot be compared with the checkpoint here; "" if it can."""
    if absent := sorted({*missing("learn"), *missing("cpu")}):
        return f"{', '.join(absent)} not installed; pip install 'maskpro-deploy[learn,cpu]'"
    return ""


def render_text(bundle: Path, manifest: Manifest) -> str:
    """The bundle as it is printed: one line for the graph itself, one for each further form, and warnings."""
    size = sum(entry.bytes for entry in manifest.files)
    graph = manifest.graph
    sparsity = f"{manifest.sparsity} proven on {len(manifest.sparse_weights)} weights" if manifest.sparsity else "dense"
    sparsity += ", masks inferred from them" if manifest.source.get("masks_inferred") else ""
    kind = f"{graph.dtype}, {graph.quantization}" if graph.quantization else graph.dtype
    lines = [
        f"{bundle}: {manifest.model.name}, {kind}, opset {graph.opset}, {len(manifest.files)} files, {size / 1e6:.1f} MB",
        f"sparsity: {sparsity}",
        "forms: " + ", ".join(f"{g.form} ({g.file})" for g in (graph, *manifest.siblings)),
    ]
    v, further = manifest.verification, manifest.verification.get("forms", {})
    lines += [_show_verified(v, graph.dtype), *_show_range(v)]
    lines += [_show_further(name, graph.form, f) for name, f in further.items()]
    warnings = [text for figures in (v, *further.values()) for text in figures.get("warnings", ())]
    return "\n".join([*lines, *(f"warning: {text}" for text in dict.fromkeys(warnings))])


def _show_verified(v: Mapping[str, Any], dtype: str) -> str:
    if v["status"] != "passed":
        return f"{dtype} not verified: {v['reason']}" if "half_precision" in v else f"not verified: {v['reason']}"
    bound = "" if v["tolerance"] is None else f" (tolerance {v['tolerance']:g})"
    arithmetic = "" if v["arithmetic"] == "fp32" else f" in {v['arithmetic'].split(',')[0]} arithmetic"
    return (
        f"verified against torch{arithmetic}: largest logit difference {v['max_logit_difference']:.2g} "
        f"over {v['tokens']} positions{bound}, "
        f"mean KL {v['mean_kl']:.2g}, greedy tokens equal {v['greedy_equal']} of {v['greedy_tokens']}, "
        f"perplexity {v['perplexity']:.3f} against {v['reference_perplexity']:.3f}"
    )


def _show_further(form: str, first: str, f: Mapping[str, Any]) -> str:
    if f["status"] != "passed":
        return f"{form} not compared: {f['reason']}"
    return (
        f"{form} against {first}: largest logit difference {f['max_logit_difference']:.2g}, "
        f"greedy tokens equal {f['greedy_equal']} of {f['greedy_tokens']}"
    )


def _show_range(v: Mapping[str, Any]) -> list[str]:
    """How near values come to the end of a half-precision type, or why that is not known."""
    if v["status"] == "passed" and "half_precision" in v:
        return [v["half_precision"]]
    if not (largest := v.get("range")):
        return []
    return [
        f"largest {largest['dtype']} activation {largest['largest']:.4g}, {largest['margin']:.3g} times below the limit of "
        f"{largest['limit']:.6g}: {largest['layer']}, {largest['node']}"
    ]
