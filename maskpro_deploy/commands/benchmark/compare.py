"""`maskpro-deploy benchmark compare`."""

from __future__ import annotations

from pathlib import Path

import click

from maskpro_deploy.commands.benchmark.options import least_difference_option
from maskpro_deploy.commands.options import PATH, force_option, json_option


@click.command("compare")
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option("--out", type=PATH, help="Folder for result.json, report.md and report.html.")
@least_difference_option
@force_option
@json_option
def command(a: Path, b: Path, out: Path | None, least_difference: float, force: bool, as_json: bool) -> None:
    r"""Compare two results of `benchmark latency` or `benchmark throughput`: result.json files or their folders.

    Cases and models of one name are matched, and what differs between the runs is listed first. The runs were not interleaved, so
    drift counts as a difference: to compare two bundles, measure them in one run with --against.

    \b
    Example:
      maskpro-deploy benchmark compare report-before report-after --out comparison
    """
    from maskpro_deploy.runs.comparison import report_comparison
    from maskpro_deploy.runs.output import Output

    report_comparison(a, b, Output(out=out, force=force, as_json=as_json), least_difference=least_difference)
