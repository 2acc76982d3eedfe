"""`maskpro-deploy validate`: prove that a file or folder holds the N:M pattern."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from maskpro_deploy.commands.options import PATH, PATTERN, json_option, threads_option
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.system.output import emit, table
from maskpro_deploy.system.progress import Meter

if TYPE_CHECKING:
    from maskpro_deploy.validation import TensorReport, Unchecked, ValidationReport

_SHOWN = 20


@click.command("validate", short_help="Prove that a file or folder holds the N:M pattern.")
@click.argument("path", type=PATH)
@click.option("--sparsity", type=PATTERN, help="The pattern to prove; taken from masks or manifest, or found, if not given.")
@click.option("--at-most", is_flag=True, help="Allow fewer than N nonzeros in a group (all that sparse hardware needs).")
@click.option(
    "--require",
    type=click.Choice(["listed", "all"]),
    default="listed",
    show_default=True,
    help="Judge the weights that masks or manifest list, or all linear layers.",
)
@click.option("--html", type=PATH, metavar="FILE", help="Write a report page with one row a tensor.")
@threads_option
@json_option
def command(
    path: Path,
    sparsity: NMPattern | None,
    at_most: bool,
    require: str,
    html: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    r"""Prove that PATH holds the N:M pattern: a checkpoint, a safetensors, mask or ONNX file, or a bundle.

    Every group of M consecutive weights along the reduction axis must have exactly N nonzeros, and every value must be
    finite. Where masks are known, weights must be zero wherever the mask is. Exit code: 0 it holds, 1 it does not, or nothing
    could be checked, 2 PATH cannot be read.

    \b
    Examples:
      maskpro-deploy validate sparse
      maskpro-deploy validate bundle --json
      maskpro-deploy validate model.onnx --sparsity 2:4 --at-most
      maskpro-deploy validate mask_compressed.npz --html report.html
    """
    from maskpro_deploy.models import DEMO, resolve
    from maskpro_deploy.system.extras import require as require_extra
    from maskpro_deploy.validation import validate

    if html is not None:
        require_extra("report", "writing an HTML report")
        if html.is_dir():
            raise ConfigError(f"--html {html} is a folder.\nName the file to write.")
    meter = Meter("validating", "weights")
    try:
        report = validate(
            resolve(DEMO) if str(path) == DEMO and not path.exists() else path,
            sparsity,
            at_most=at_most,
            require="all" if require == "all" else "listed",
            threads=threads,
            progress=meter,
        )
    finally:
        meter.close()
    if html is not None:
        from maskpro_deploy.reports.blocks import write
        from maskpro_deploy.reports.proof import build_page

        write(build_page(report), html)
    emit(as_json, report.to_json(), render(report))
    if not report.holds:
        click.get_current_context().exit(1)


def render(report: ValidationReport) -> str:
    """The report as text: one line a kind of layer, then every tensor that fails, then the verdict."""
    blocks = [f"{report.path} ({report.kind})"]
    if report.tensors:
        header = ["layers", "tensors", "shape", "dtype", "axis", "pattern", "groups", "violations", "short", "density", "cores"]
        blocks.append(table(_rows(report), header))
    blocks.append(_account(report))
    failed = report.failed if report.pattern is not None else ()
    blocks.extend(_lines("fails", [(t.name, t.why()) for t in failed]))
    blocks.extend(_lines("unaccounted for", [(u.name, _reason(u)) for u in report.unchecked]))
    blocks.extend(_lines("contradiction", [("", p) for p in report.problems]))
    if signed := sum(t.negative_zeros for t in report.required):
        blocks.append(f"note: {signed} zeros are -0.0, which some sparse kernels take for values")
    if short := sum(t.short for t in report.required):
        why = "fewer nonzeros, as --at-most allows" if report.at_most else "a kept weight that is itself zero"
        blocks.append(f"note: {short:,} groups are short: {why}")
    blocks.extend(f"note: {note}" for note in report.notes)
    if any(t.tensor_cores == "fits" for t in report.required):
        blocks.append("note: cores says whether the shape suits sparse tensor cores (f32: once it is 16 bit), not what is faster")
    blocks.append(report.verdict)
    return "\n".join(blocks)


def _account(report: ValidationReport) -> str:
    """What became of the bytes of all stored tensors, in a line."""
    account = report.account
    parts = ", ".join(f"{name} {size:,} ({100 * share:.1f} %)" for name, size, share in account.rows())
    return f"account of {account.total:,} bytes in stored tensors: {parts}"


def _reason(item: Unchecked) -> str:
    users = f" (used by {', '.join(item.consumers)})" if item.consumers else ""
    return f"{item.reason}{users}"


def _lines(label: str, items: list[tuple[str, str]]) -> list[str]:
    lines = [f"{label}: {name}: {why}" if name else f"{label}: {why}" for name, why in items[:_SHOWN]]
    if len(items) > _SHOWN:
        lines.append(f"{label}: {len(items) - _SHOWN} more (--json lists all)")
    return lines


def _kind(name: str) -> str:
    """The name without its layer number: model.layers.3.mlp.up_proj.weight -> model.layers.*.mlp.up_proj.weight."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _rows(report: ValidationReport) -> list[list[str]]:
    kinds: dict[tuple[object, ...], list[TensorReport]] = defaultdict(list)
    for t in report.tensors:
        kinds[(_kind(t.name), t.shape, t.dtype, t.axis, t.required)].append(t)
    rows = []
    for (kind, shape, dtype, axis, required), tensors in kinds.items():
        size = sum(t.size for t in tensors)
        held = sum(t.holds for t in tensors)
        pattern = str(report.pattern) if report.pattern and held == len(tensors) else f"{held} of {len(tensors)}"
        if report.detected:  # each kind with the finest that it holds
            pattern = ", ".join(sorted({str(t.satisfies[0]) if t.satisfies else "none" for t in tensors}))
        rows.append(
            [
                f"{kind}" if required else f"{kind} (not required)",
                str(len(tensors)),
                "x".join(map(str, shape)) if isinstance(shape, tuple) else "",
                str(dtype),
                str(axis),
                pattern if report.pattern else "none",
                f"{sum(t.groups for t in tensors):,}",
                f"{sum(t.violations for t in tensors):,}",
                f"{sum(t.short for t in tensors):,}",
                f"{sum(t.nonzeros for t in tensors) / size:.4f}" if size else "-",
                tensors[0].tensor_cores,
            ]
        )
    return rows
