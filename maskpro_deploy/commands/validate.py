"""`maskpro-deploy validate`: prove that a file or folder holds the N:M pattern."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import click

from maskpro_deploy.commands.options import PATH, PATTERN, json_option, threads_option
from maskpro_deploy.system.output import emit
from maskpro_deploy.system.progress import Meter


@click.command("validate", short_help="Prove that a file or folder holds the N:M pattern.")
@click.argument("path", type=PATH)
@click.option(
    "--sparsity", "pattern", type=PATTERN, help="The pattern to prove; taken from masks or manifest, or found, if not given."
)
@click.option("--at-most", is_flag=True, help="Allow fewer than N nonzeros in a group (all that sparse hardware needs).")
@click.option("--transposable", is_flag=True, help="Ask it of the transposes too; asked in any case where masks claim it.")
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
def command(path: Path, html: Path | None, as_json: bool, **settings: Any) -> None:
    r"""Prove that PATH holds the N:M pattern: a checkpoint, a safetensors, mask or ONNX file, or a bundle.

    Every group of M consecutive weights along the reduction axis must have exactly N nonzeros, and every value must be
    finite. Where masks are known, weights must be zero wherever the mask is. Exit code: 0 it holds, 1 it does not, or nothing
    could be checked, 2 PATH cannot be read.

    \b
    Examples:
      maskpro-deploy validate sparse
      maskpro-deploy validate bundle --json
      maskpro-deploy validate model.onnx --sparsity 2:4 --at-most
      maskpro-deploy validate sparse --transposable
      maskpro-deploy validate mask_compressed.npz --html report.html
    """
    from maskpro_deploy.models import DEMO, resolve
    from maskpro_deploy.reports import proof
    from maskpro_deploy.reports.blocks import check_page, write
    from maskpro_deploy.validation import validate

    if html is not None:
        check_page(html, "--html")
    target = resolve(DEMO) if str(path) == DEMO and not path.exists() else path
    with closing(Meter("validating", "weights")) as meter:
        report = validate(target, progress=meter, **settings)
    if html is not None:
        write(proof.build_page(report), html)
    emit(as_json, report.to_json(), proof.render_text(report))
    if not report.holds:
        click.get_current_context().exit(1)
