"""`maskpro-deploy demo`: the whole path on a small real model."""

from __future__ import annotations

from pathlib import Path

import click

from maskpro_deploy.commands.options import DURATION, PATH, json_option, seed_option
from maskpro_deploy.errors import InputError
from maskpro_deploy.system.output import emit, table

MARKER = "result.json"


@click.command()
@click.option("--out", type=PATH, default="demo-out", show_default=True, help="Folder for all results.")
@click.option("--budget", "budget_s", type=DURATION, default="5m", show_default=True, help="Time to learn.")
@seed_option
@json_option
def command(out: Path, budget_s: float, seed: int, as_json: bool) -> None:
    r"""Run the whole path on SmolLM2-135M: learn, validate, export, build, evaluate, measure, serve.

    The model is fetched once (93 MB); afterwards everything is offline. A demo that was interrupted goes on
    learning where it was.

    \b
    Example:
      maskpro-deploy demo
      maskpro-deploy demo --budget 15m --out results
    """
    from maskpro_deploy.demo.page import build_page
    from maskpro_deploy.demo.run import check_platform, run
    from maskpro_deploy.demo.state import Demo

    check_platform()
    from maskpro_deploy.reports.blocks import REPORT_FILE, write
    from maskpro_deploy.system.files import write_json

    _check_out(out)
    demo = Demo(out=out, budget_s=budget_s, seed=seed)
    run(demo)
    figures = {**demo.figures, "not_measured": demo.not_measured}
    write_json(out / MARKER, figures)
    write(build_page(demo), out / REPORT_FILE)
    lines = [table(demo.rows), "", "not measured here:", *(f"  {point}" for point in demo.not_measured)]
    emit(as_json, {"report": str(out / REPORT_FILE), **figures}, "\n".join([*lines, "", f"report: {out / REPORT_FILE}"]))


def _check_out(out: Path) -> None:
    """The demo replaces its own results and nothing else.

    Raises:
        InputError: the folder holds something that is not of a demo.
    """
    own = {"sparse", "sparse.learning", "bundle", "bundle-dense", "bundle-fp16", MARKER, "report.html"}
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file.\nChoose another --out.")
    foreign = [p.name for p in out.iterdir() if p.name not in own and not p.name.startswith(".")] if out.exists() else []
    if foreign:
        raise InputError(f"{out} holds other things than a demo's results ({foreign[0]}).\nChoose another --out.")
