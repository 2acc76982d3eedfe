"""`maskpro-deploy demo`: the whole path on a small real model."""

from __future__ import annotations

from pathlib import Path

import click

from maskpro_deploy.commands.options import DURATION, PATH, json_option, seed_option
from maskpro_deploy.system.output import emit


@click.command()
@click.option("--out", type=PATH, default="demo-out", show_default=True, help="Folder for all results.")
@click.option("--budget", "budget_s", type=DURATION, default="5m", show_default=True, help="Time to learn, masks and weights.")
@seed_option
@json_option
def command(out: Path, budget_s: float, seed: int, as_json: bool) -> None:
    r"""Run the whole path on SmolLM2-135M: learn, recover, validate, export, build, evaluate, measure, serve.

    The model is fetched once (93 MB); afterwards everything is offline. A demo that was interrupted goes on
    learning where it was.

    \b
    Example:
      maskpro-deploy demo
      maskpro-deploy demo --budget 15m --out results
    """
    from maskpro_deploy.demo.run import check_platform, run

    check_platform()
    from maskpro_deploy.demo.results import check_out, render_text, write_results
    from maskpro_deploy.demo.state import Demo

    check_out(out)
    demo = Demo(out=out, budget_s=budget_s, seed=seed)
    run(demo)
    emit(as_json, write_results(demo), render_text(demo))
